"""One step of training: gradients of a whole global batch, then the optimizers."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from sfumato.denoisers.abilities import dropping_out
from sfumato.errors import TrainingError
from sfumato.rng import Rng
from sfumato.train.config import TrainOptions
from sfumato.train.optim import rate_factor, set_rates
from sfumato.train.state import State
from sfumato.train.world import World, whole
from sfumato.types import Batch, Loss, Objective, Trainable

DROPOUT = 4  # like trainer.SEARCHES, what objectives do not fold the run's seed with


class Scored(nn.Module):
    """Network and objective as one module: a whole loss is one forward pass to DDP and FSDP."""

    def __init__(self, model: nn.Module, denoiser: Trainable):
        super().__init__()
        self.model = model
        self.denoiser = denoiser

    def forward(self, objective: Objective, batch: Batch, rng: Rng) -> Loss:
        own = rng.fold(DROPOUT).fold(batch.slots)
        return objective(dropping_out(self.denoiser, own), batch, rng)


@dataclass(frozen=True)
class Totals:
    """What one step saw, over all its rows."""

    nats: float  # the loss, summed over trainable tokens
    bound: float  # the bound's estimate, likewise; nan if the objective's is none
    count: float  # trainable tokens
    correct: float
    corrupted: float
    grad_norm: float  # before clipping

    @property
    def loss(self) -> float:
        return self.nats / max(1.0, self.count)


@dataclass(frozen=True)
class Stepper:
    """Everything that a step needs but its rows."""

    scored: nn.Module  # `Scored`, spread over the processes
    objective: Objective
    state: State
    options: TrainOptions
    seed: int
    dtype: torch.dtype
    world: World

    def __call__(self, step: int, batches: Sequence[Batch]) -> Totals:
        """Take step number `step`, 0 the first, on this process's micro-batches.

        The gradient is that of sum(value * count) / sum(count) over all processes' batches.
        """
        self.scored.train()
        batches = [to_device(batch, self.world.device) for batch in batches]
        rng = Rng.from_seed(self.seed, device=self.world.device)
        # any fixed number would do here: the true count is known only when all have been scored
        scale = batches[0].tokens.numel() * len(batches)
        sums, rows = torch.zeros(5, dtype=torch.float64, device=self.world.device), []
        for part, batch in enumerate(batches):
            last = part == len(batches) - 1
            with synchronised(self.scored, last), self._autocast():
                loss = self.scored(self.objective, batch, rng)
                nats = loss.value * loss.count
                (nats / scale).backward()
            bound = loss.nll.sum() if loss.bounds else torch.full_like(nats, math.nan)
            terms = (nats.detach(), bound, loss.count, loss.correct, loss.corrupted)
            sums += torch.stack([term.double() for term in terms])
            rows.append(loss.nll.isfinite().all(1))
        grads = [param.grad for param in self._params() if param.grad is not None]
        totals = self._totals(self.world.sum(sums), grads, scale)
        self._check(step, totals, batches, rows)
        factor = scale * self.world.size / max(1.0, totals.count)
        if 0 < self.options.max_grad_norm < totals.grad_norm:
            factor *= self.options.max_grad_norm / totals.grad_norm
        if factor != 1:
            for grad in grads:
                grad.mul_(factor)
        self._update(step)
        return totals

    def _params(self) -> list[Tensor]:
        return [param for param in self.state.model.parameters() if param.requires_grad]

    def _autocast(self) -> AbstractContextManager:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.world.device.type, self.dtype, enabled=enabled)

    def _totals(self, sums: Tensor, grads: Sequence[Tensor], scale: int) -> Totals:
        nats, bound, count, correct, corrupted = sums.tolist()
        norm = float(whole(get_total_norm(grads))) if grads else 0.0
        norm *= scale * self.world.size / max(1.0, count)
        return Totals(nats, bound, count, correct, corrupted, norm)

    def _check(
        self, step: int, totals: Totals, batches: Sequence[Batch], rows: Sequence[Tensor]
    ) -> None:
        """Stop before the optimizers see a gradient that is not finite: every process does."""
        if math.isfinite(totals.nats) and math.isfinite(totals.grad_norm):
            return
        slots = [
            b.slots.repeat(len(r) // len(b.slots))[~r] for b, r in zip(batches, rows, strict=True)
        ]
        bad = torch.cat(slots).unique().tolist()
        names = [
            name
            for name, param in self.state.model.named_parameters()
            if param.grad is not None and not bool(whole(param.grad).isfinite().all())
        ]
        where = [f"rows in slots {bad}"] if bad else []
        where += [f"gradient of {names[0]}"] if names else []
        raise TrainingError(
            f"loss {totals.loss} and gradient norm {totals.grad_norm} at step {step + 1}"
            f"{' (' + ', '.join(where) + ')' if where else ''}: training stopped before this step "
            "changed a weight; try a lower learning rate, a smaller train.max_grad_norm, or "
            "train.precision=fp32"
        )

    def _update(self, step: int) -> None:
        set_rates(self.state.optimizers, rate_factor(step, self.options))
        for optimizer in self.state.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if self.state.average:
            self.state.average.update(step)


def to_device(batch: Batch, device: torch.device) -> Batch:
    return type(batch)(
        **{f.name: getattr(batch, f.name).to(device, non_blocking=True) for f in fields(batch)}
    )


@contextmanager
def synchronised(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Whether a backward pass in this context averages gradients over processes, or only adds."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(wanted, recurse=False)
    if isinstance(module, DistributedDataParallel) and not wanted:
        with module.no_sync():
            yield
    else:
        yield
