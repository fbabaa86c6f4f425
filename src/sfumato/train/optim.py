"""How weights move: Muon, learning rates over time, and the average of the weights."""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sfumato.train.config import TrainOptions
from sfumato.train.world import placed, whole

# Jordan's odd quintic a x + b x^3 + c x^5, applied five times, brings singular values from 0.002 up
# to between 0.7 and 1.2. Coefficients that converge faster (Polar Express, arXiv 2505.16932) save
# one step in five, but in bfloat16, without their safety factor, a run of ours diverged.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
# Linear layers that hold several matrices, one above the other: each is orthogonalised by itself.
STACKED = {"qkv": 3, "gate_up": 2}
ADAM_LEARNING_RATE = 3e-3  # of what Muon leaves: embeddings, norms, head


class Muon(torch.optim.Optimizer):
    """Momentum whose step is the nearest orthogonal matrix (Jordan et al., 2024), for matrices.

    The step of an m x n matrix is scaled by sqrt(max(1, m / n)). A group's `stacked` says how many
    matrices lie above each other in its weights. Sharded weights are gathered for the step.
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
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "stacked": 1}
        super().__init__(params, defaults)
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
        ahead = grad.lerp(average, group["momentum"])  # Nesterov
        step = whole(ahead)
        matrices = step.chunk(group["stacked"])
        for matrix in matrices:
            matrix.copy_(orthogonal(matrix, self.dtype))
        scale = math.sqrt(max(1, matrices[0].shape[0] / matrices[0].shape[1]))
        if group["weight_decay"]:
            param.mul_(1 - group["lr"] * group["weight_decay"])
        param.add_(placed(step, param), alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """U V' of the singular value decomposition U S V' of [m, n], to about a third."""
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x.to(dtype) / x.norm().clamp_min(1e-20).to(dtype)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.T
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        x = polynomial @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def build_optimizers(
    model: PreTrainedModel, options: TrainOptions, dtype: torch.dtype
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the network and AdamW for the rest, or AdamW alone.

    Matrices are the weights of linear layers but the output head; only they decay.
    """
    matrices = matrix_names(model)
    rest = [p for name, p in model.named_parameters() if name not in matrices and p.requires_grad]
    stacks: dict[int, list[Tensor]] = {}
    for name, param in model.named_parameters():
        if name in matrices and param.requires_grad:
            stacks.setdefault(matrices[name], []).append(param)
    adam = {
        "betas": (options.adam_beta1, options.adam_beta2),
        "eps": options.adam_epsilon,
        "fused": True,
    }
    if options.optimizer == "adamw":
        decayed = {
            "params": [p for params in stacks.values() for p in params],
            "weight_decay": options.weight_decay,
        }
        groups = [decayed, {"params": rest, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, options.learning_rate, **adam)]
    rate = options.adam_learning_rate or ADAM_LEARNING_RATE
    muon = Muon(
        [{"params": params, "stacked": stacked} for stacked, params in stacks.items()],
        options.learning_rate,
        options.momentum,
        options.weight_decay,
        dtype=dtype,
    )
    return [muon, torch.optim.AdamW(rest, rate, weight_decay=0.0, **adam)]


def matrix_names(model: PreTrainedModel) -> dict[str, int]:
    """Parameter names of the matrices that Muon takes -> how many are stacked in each."""
    head = model.get_output_embeddings()
    return {
        f"{name}.weight": STACKED.get(name.rpartition(".")[2], 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


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
