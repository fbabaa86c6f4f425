"""How weights move: Muon, learning rates over time, and the average of the weights."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sfumato.models.layers import Block
from sfumato.train.config import TrainOptions
from sfumato.train.world import placed, whole

# Odd quintics a x + b x^3 + c x^5, one an iteration: the first four of Polar Express (Amsel et al.,
# arXiv 2505.16932) bring singular values from 0.001 of the norm up to between 0.44 and 1.56. What
# is trained so is as good as with five iterations of Jordan's fixed quintic (docs/log.md). SAFETY
# keeps rounding in bfloat16 from lifting values beyond 1, where the first grows without end.
QUINTICS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
)
SAFETY = 1.01
ADAM_LEARNING_RATE = 3e-3  # of what Muon leaves: embeddings, norms, head


class Pieces(NamedTuple):
    """How a weight is made up of matrices that are orthogonalised each by itself."""

    number: int = 1
    axis: int = 0  # 0: one above the other, 1: side by side


class Muon(torch.optim.Optimizer):
    """Momentum whose step is the nearest orthogonal matrix (Jordan et al., 2024), for matrices.

    Whatever the shape of an m x n weight, and into how many `pieces` it is cut, the entries of a
    step have a mean square of lr ** 2 / n. Sharded weights are gathered for the step.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        *,
        dtype: torch.dtype = torch.float32,  # of the iteration; bfloat16 is enough
    ):
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(params, {**defaults, "pieces": Pieces()})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._step_one(param, param.grad, group)

    def _step_one(self, param: Tensor, grad: Tensor, group: dict) -> None:
        state = self.state[param]
        if not state:
            state["momentum"] = torch.zeros_like(param)
        average = state["momentum"].lerp_(grad, 1 - group["momentum"])
        ahead = whole(grad.lerp(average, group["momentum"]))  # Nesterov
        number, axis = group["pieces"]
        pieces = ahead.unflatten(axis, (number, -1)).movedim(axis, 0) if number > 1 else ahead
        step = orthogonal(pieces, self.dtype).to(ahead.dtype)
        if number > 1:
            step = step.movedim(0, axis).reshape(ahead.shape)
        scale = math.sqrt(max(pieces.shape[-2:]) / ahead.shape[1])
        if group["weight_decay"]:
            param.mul_(1 - group["lr"] * group["weight_decay"])
        param.add_(placed(step, param), alpha=-group["lr"] * scale)


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """U V' of the singular value decomposition U S V' of [..., m, n], nearly."""
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    norm = torch.linalg.matrix_norm(x, keepdim=True)
    x = x.to(dtype) / (SAFETY * norm).clamp_min(1e-20).to(dtype)
    multiply_add = torch.addmm if x.dim() == 2 else torch.baddbmm
    for a, b, c in QUINTICS:
        gram = x @ x.mT
        polynomial = multiply_add(gram, gram, gram, beta=b / SAFETY**3, alpha=c / SAFETY**5)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(a / SAFETY)
        x = polynomial @ x
    return x if wide else x.mT


def build_optimizers(
    model: PreTrainedModel, options: TrainOptions, dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the network and AdamW for the rest, or AdamW alone.

    Matrices are the weights of linear layers but the output head; only they decay.
    """
    matrices = matrix_names(model)
    rest = [p for name, p in model.named_parameters() if name not in matrices and p.requires_grad]
    cut: dict[Pieces, list[Tensor]] = {}
    for name, param in model.named_parameters():
        if name in matrices and param.requires_grad:
            cut.setdefault(matrices[name], []).append(param)
    adam = {
        "betas": (options.adam_beta1, options.adam_beta2),
        "eps": options.adam_epsilon,
        "fused": True,
    }
    if options.optimizer == "adamw":
        decayed = {
            "params": [p for params in cut.values() for p in params],
            "weight_decay": options.weight_decay,
        }
        groups = [decayed, {"params": rest, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, options.learning_rate, **adam)]
    rate = options.adam_learning_rate or ADAM_LEARNING_RATE
    muon = Muon(
        [{"params": params, "pieces": pieces} for pieces, params in cut.items()],
        options.learning_rate,
        options.momentum,
        options.weight_decay,
        dtype=dtype,
    )
    return [muon, torch.optim.AdamW(rest, rate, weight_decay=0.0, **adam)]


def matrix_names(model: PreTrainedModel) -> dict[str, Pieces]:
    """Parameter names of the matrices that Muon takes -> the pieces it cuts them into.

    A head of attention is a matrix of its own, and so are as many neurons of an MLP, if they come
    out even: as good as whole matrices, and several times cheaper (docs/log.md).
    """
    head = model.get_output_embeddings()
    names = {
        f"{name}.weight": Pieces()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    for name, block in model.named_modules():
        if isinstance(block, Block):
            heads, width = block.attention.heads, block.attention.width
            groups, odd = divmod(block.mlp.down.in_features, width)
            groups = 1 if odd else groups
            names[f"{name}.attention.qkv.weight"] = Pieces(3 * heads, 0)
            names[f"{name}.attention.out.weight"] = Pieces(heads, 1)
            names[f"{name}.mlp.gate_up.weight"] = Pieces(2 * groups, 0)
            names[f"{name}.mlp.down.weight"] = Pieces(groups, 1)
    return names


def rate_factor(step: int, options: TrainOptions) -> float:
    """The learning rate of a step, 0 the first, as a share of its peak."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    start, low = options.warmup_steps, options.min_lr_ratio
    if options.lr_scheduler_type == "wsd":
        decay = options.decay_steps or max(1, options.max_steps // 5)
        start = max(start, options.max_steps - decay)
    done = max(0, step - start) / max(1, options.max_steps - start)
    match options.lr_scheduler_type:
        case "constant":
            return 1.0
        case "cosine":
            return low + (1 - low) * (1 + math.cos(math.pi * done)) / 2
        case "linear" | "wsd":
            return 1 - (1 - low) * done


def set_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Every group's learning rate: its peak times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group.setdefault("peak", group["lr"])
            group["lr"] = factor * group["peak"]


class Average:
    """Exponential moving average of the weights, in their own precision.

    The decay grows as (1 + n) / (10 + n) up to its value, so that early weights are soon forgotten.
    """

    def __init__(self, params: Mapping[str, Tensor], decay: float):
        self.params = dict(params)
        self.decay = decay
        self.values = {name: param.detach().clone() for name, param in params.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, value in self.values.items():
            value.lerp_(self.params[name], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model with averaged weights, for as long as the context lasts."""
        own = [param.detach().clone() for param in self.params.values()]
        self._put(self.values.values())
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Iterable[Tensor]) -> None:
        for param, value in zip(self.params.values(), values, strict=True):
            param.copy_(value)
