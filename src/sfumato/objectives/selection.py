"""Which positions are masked, with the weight that the bound gives them."""

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from sfumato.arguments import Share, check_fields
from sfumato.errors import ConfigError
from sfumato.noise.schedules import Linear, Schedule
from sfumato.rng import Rng
from sfumato.types import Batch


class Draw(NamedTuple):
    noisy: Tensor  # [B, L] bool
    weight: Tensor  # [B] what the bound multiplies each masked token's cross-entropy by
    t: Tensor  # [B]


@runtime_checkable
class Selection(Protocol):
    @property
    def whole(self) -> bool:
        """Whether every noise rate is drawn as the bound weighs it: else the mean is no bound."""
        ...

    def __call__(self, batch: Batch, u: Tensor, rng: Rng) -> Draw:
        """u [B] in (0, 1) places each row in time; rng has one key a row."""
        ...


@runtime_checkable
class PairedSelection(Selection, Protocol):
    """A selection that also knows the weight of what it leaves out."""

    def complement(self, batch: Batch, draw: Draw) -> Draw:
        """The other trainable tokens masked instead, weighted for the same bound."""
        ...


@dataclass(frozen=True)
class ExactK:
    """Exactly k of the n trainable tokens, k uniform on 1..n: weight n / k.

    The schedule-free form of the bound (LLaDA, arXiv 2502.09992, eq. 14): no cut near t = 0, and
    much lower variance than independent masking. `low` and `high` clip the rate k / n in training.
    """

    low: Share = 0.0
    high: Share = 1.0
    schedule: Schedule = field(default_factory=Linear)  # only tells a time-conditioned network t

    def __post_init__(self):
        check_fields(self, "a noise interval's {}")
        if not self.low < self.high:
            raise ConfigError(
                f"a noise interval needs 0 <= low < high <= 1, got [{self.low}, {self.high}]"
            )

    @property
    def whole(self) -> bool:
        return self.low == 0 and self.high == 1

    def __call__(self, batch: Batch, u: Tensor, rng: Rng) -> Draw:
        n = batch.trainable.sum(1)
        rate = self.low + u * (self.high - self.low)
        k = torch.minimum((rate * n).floor().long() + 1, n)
        order = rng.uniform(batch.tokens.shape[1]).masked_fill(~batch.trainable, 2.0)
        kth = order.sort(1).values.gather(1, (k - 1).clamp_min(0)[:, None])
        return self._weighed(batch, (order <= kth) & batch.trainable)

    def complement(self, batch: Batch, draw: Draw) -> Draw:
        """k and n - k pair up, and n, whose complement would mask nothing, with itself."""
        rest = batch.trainable & ~draw.noisy
        return self._weighed(batch, torch.where(rest.any(1, keepdim=True), rest, draw.noisy))

    def _weighed(self, batch: Batch, noisy: Tensor) -> Draw:
        share = noisy.sum(1).double() / batch.trainable.sum(1).clamp_min(1)
        return Draw(noisy, 1 / share.clamp_min(1e-9), self.schedule.time(1 - share))


@dataclass(frozen=True)
class Bernoulli:
    """Each token independently, at the schedule's rate: weight -alpha' / (1 - alpha) (MDLM)."""

    schedule: Schedule = field(default_factory=Linear)
    __post_init__ = check_fields

    @property
    def whole(self) -> bool:
        return self.schedule.low == 0 and self.schedule.high == 1

    def __call__(self, batch: Batch, u: Tensor, rng: Rng) -> Draw:
        alpha = self.schedule.alpha(u)
        noisy = (rng.uniform(batch.tokens.shape[1]) >= alpha[:, None]) & batch.trainable
        return Draw(noisy, -self.schedule.dalpha(u) / (1 - alpha), u)

    def complement(self, batch: Batch, draw: Draw) -> Draw:
        """Masked at rate alpha, whose density along t is -alpha': weight -alpha' / alpha."""
        alpha = self.schedule.alpha(draw.t)
        weight = -self.schedule.dalpha(draw.t) / alpha
        return Draw(batch.trainable & ~draw.noisy, weight, self.schedule.time(1 - alpha))


SELECTIONS = {"exact_k": ExactK, "bernoulli": Bernoulli}
