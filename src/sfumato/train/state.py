"""Every tensor that a training step reads, by name: what a checkpoint holds.

Names and shapes are those of whole weights, so that a checkpoint of many processes goes on in any
other number of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.train.optim import Average
from sfumato.train.world import placed, reshard, whole


@dataclass(frozen=True)
class State:
    """Views into what trains: weights, their average, and the optimizers' memory."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    average: Average | None = None

    def weights(self) -> dict[str, Tensor]:
        """What the model is saved with: averaged weights if there are any, tied ones once."""
        reshard(self.model)
        own = self.average.values if self.average else dict(self.model.named_parameters())
        return {name: _portable(value) for name, value in own.items()}

    def training(self) -> dict[str, Tensor]:
        """What only training needs."""
        found = {}
        if self.average:
            for name, param in self.model.named_parameters():
                found[f"weight.{name}"] = _portable(param)
        reshard(self.model)
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
        if self.average:
            _fill(self.average.values, weights)
        owners = {
            id(param): optimizer
            for optimizer in self.optimizers
            for group in optimizer.param_groups
            for param in group["params"]
        }
        for place, value in training.items():
            key, _, name = place.partition(".")
            if key == "weight":
                continue
            param = params[name]
            memory = owners[id(param)].state[param]
            value = value.to(param.device)
            memory[key] = placed(value, param).clone() if value.shape == param.shape else value


def _portable(tensor: Tensor) -> Tensor:
    return whole(tensor.detach()).contiguous().cpu()


def _fill(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(placed(values[name].to(tensor.device), tensor))
