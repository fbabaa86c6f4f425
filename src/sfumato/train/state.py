"""Every tensor that a training step reads, by name: what a checkpoint holds.

Names and shapes are those of whole weights, so that a checkpoint of many processes goes on in any
other number of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.train.optim import Average
from sfumato.train.world import placed, whole


@dataclass(frozen=True)
class State:
    """Views into what trains: weights, their average, and the optimizers' memory."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    average: Average | None = None

    def weights(self) -> dict[str, Tensor]:
        """What the model is saved with: averaged weights if there are any, tied ones once."""
        own = self.average.values if self.average else dict(self.model.named_parameters())
        kept = {name for name, _ in self.model.named_parameters()} | _persistent(self.model)
        both = {**dict(self.model.named_buffers()), **own}
        return {name: _portable(both[name]) for name in both if name in kept}

    def training(self) -> dict[str, Tensor]:
        """What only training needs."""
        found = {}
        if self.average:
            for name, param in self.model.named_parameters():
                found[f"weight.{name}"] = _portable(param)
        names = {id(param): name for name, param in self.model.named_parameters()}
        for optimizer in self.optimizers:
            for param, memory in optimizer.state.items():
                for key, value in memory.items():
                    found[f"{key}.{names[id(param)]}"] = _portable(value)
        return found

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor], training: Mapping[str, Tensor]) -> None:
        """Put back what `weights` and `training` returned."""
        params = dict(self.model.named_parameters())
        own = {name: training[f"weight.{name}"] for name in params} if self.average else weights
        _fill(params, own)
        _fill({name: b for name, b in self.model.named_buffers() if name in weights}, weights)
        if self.average:
            _fill(self.average.values, weights)
        owners = {
            name: optimizer
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for name in _names_of(group["params"], params)
        }
        for full_name, value in training.items():
            key, _, name = full_name.partition(".")
            if key == "weight":
                continue
            param = params[name]
            value = value.to(param.device)
            memory = owners[name].state[param]
            memory[key] = placed(value, param).clone() if value.shape == param.shape else value


def _portable(tensor: Tensor) -> Tensor:
    return whole(tensor.detach()).contiguous().cpu()


def _persistent(model: nn.Module) -> set[str]:
    return set(model.state_dict(keep_vars=True)) & {name for name, _ in model.named_buffers()}


def _names_of(wanted: Iterable[Tensor], params: Mapping[str, Tensor]) -> list[str]:
    inside = {id(param) for param in wanted}
    return [name for name, param in params.items() if id(param) in inside]


def _fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(placed(values[name].to(tensor.device), tensor))
