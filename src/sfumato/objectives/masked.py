"""Batches in, losses out.

Every loss is in nats per trainable token. What is backpropagated (`value`) may weigh noise rates as
training likes; the bound that is reported (`nll`) always carries the bound's own weights. The two
are different quantities, and only `continuous.Bound` and the bound weight make them equal.

Corruption is a pure function of the run's seed and a row's slot, so a loss does not depend on
workers, ranks, accumulation or resumption.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, NamedTuple, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from sfumato.arguments import Amount, Count, Share, TokenId, check_fields
from sfumato.denoisers.abilities import autoregressive, conditioned, two_stream
from sfumato.errors import ConfigError
from sfumato.models.attention import HIDDEN, positions_from
from sfumato.noise.schedules import Linear, Schedule
from sfumato.rng import Rng
from sfumato.types import ABSENT, Batch, Loss, Objective, PairBatch, Scorer, Trainable

Slot = Annotated[int, Field(ge=0, lt=2**63)]  # the place of a row in a run's order

# --- when: one number in (0, 1) a row, spread over the global batch ---


@runtime_checkable
class Times(Protocol):
    def __call__(self, slots: Tensor, rng: Rng) -> Tensor:
        """[B] slots -> [B] float64 in [0, 1), each uniform by itself."""
        ...


@dataclass(frozen=True)
class Independent:
    """Every row draws its own."""

    def __call__(self, slots: Tensor, rng: Rng) -> Tensor:
        return rng.fold(slots).uniform(1)[:, 0]


def _strata(slots: Tensor, size: int) -> Tensor:
    """A stratum 0..size-1 for each slot of a global batch; neighbours get distant ones, so that
    every micro-batch of it is spread out too."""
    stride = max(1, round(size * 0.6180339887))
    while math.gcd(stride, size) != 1:
        stride += 1
    return slots % size * stride % size


@dataclass(frozen=True)
class Stratified:
    """One draw in each of G equal parts of (0, 1), G the rows of a global batch (MDLM)."""

    global_batch: Amount
    __post_init__ = check_fields

    def __call__(self, slots: Tensor, rng: Rng) -> Tensor:
        u = rng.fold(slots).uniform(1)[:, 0]
        turn = rng.fold(slots // self.global_batch).fold(0).uniform(1)[:, 0]
        part = _strata(slots, self.global_batch) + (turn * self.global_batch).floor()
        return (part + u) / self.global_batch % 1


@dataclass(frozen=True)
class Systematic:
    """G equidistant times with one common random offset (GIDD; VDM, arXiv 2107.00630)."""

    global_batch: Amount
    __post_init__ = check_fields

    def __call__(self, slots: Tensor, rng: Rng) -> Tensor:
        offset = rng.fold(slots // self.global_batch).uniform(1)[:, 0]
        return (_strata(slots, self.global_batch) / self.global_batch + offset) % 1


TIMES = {"independent": Independent, "stratified": Stratified, "systematic": Systematic}

# --- which: the positions that are masked, with the weight the bound gives them ---


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

# --- how much: the weight of each masked token in the training loss ---


@runtime_checkable
class Weight(Protocol):
    def __call__(self, draw: Draw, batch: Batch) -> Tensor:
        """[B, L], or [B, 1] where all masked tokens of a row weigh the same."""
        ...


@dataclass(frozen=True)
class BoundWeight:
    """The bound itself."""

    def __call__(self, draw: Draw, batch: Batch) -> Tensor:
        return draw.weight[:, None]


@dataclass(frozen=True)
class ConstantWeight:
    """1 for every masked token: seed of many first recipes, not a likelihood."""

    def __call__(self, draw: Draw, batch: Batch) -> Tensor:
        return torch.ones_like(draw.weight)[:, None]


@dataclass(frozen=True)
class ClippedWeight:
    """The bound's weight, at most `limit`: nearly clean rows shout less."""

    limit: Annotated[float, Field(gt=0, description="use 4")] = 4.0

    def __post_init__(self):
        check_fields(self, "weight {}")

    def __call__(self, draw: Draw, batch: Batch) -> Tensor:
        return draw.weight.clamp_max(self.limit)[:, None]


@dataclass(frozen=True)
class Cart:
    """More for tokens with visible neighbours: half the sum over visible i of
    p (1 - p) ** (|l - i| - 1) (Dream's CART, arXiv 2508.15487)."""

    p: Annotated[float, Field(gt=0, lt=1, title="between 0 and 1", description="use 0.3")] = 0.3

    def __post_init__(self):
        check_fields(self, "CART {}")

    def __call__(self, draw: Draw, batch: Batch) -> Tensor:
        place = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        apart = (place[:, None] - place[None]).abs()
        kernel = torch.where(apart > 0, self.p * (1 - self.p) ** (apart - 1).clamp_min(0), 0.0)
        same = batch.segments[:, :, None] == batch.segments[:, None, :]
        return 0.5 * torch.einsum("li,bli,bi->bl", kernel, same.float(), (~draw.noisy).float())


WEIGHTS = {
    "bound": BoundWeight,
    "constant": ConstantWeight,
    "clipped": ClippedWeight,
    "cart": Cart,
}

# --- the objectives ---


@dataclass(frozen=True)
class MaskedDiffusion:
    """Masked diffusion: predict the masked tokens from the visible ones.

    MDLM (arXiv 2406.07524), MD4, RADD, LLaDA are choices of `times`, `selection` and `weight`.
    With `complementary`, each row is seen twice, the second time with the other positions masked,
    so that every token is predicted (Fast-dLLM v2, LLaDA2.0); `nll` has the rows twice, too.
    """

    mask_id: TokenId
    times: Times
    selection: Selection = field(default_factory=ExactK)
    weight: Weight = field(default_factory=BoundWeight)
    complementary: bool = False

    def __post_init__(self):
        check_fields(self)
        if self.complementary and not isinstance(self.selection, PairedSelection):
            raise ConfigError(
                f"complementary needs a selection with a complement, as ExactK or Bernoulli; "
                f"{type(self.selection).__name__} has none"
            )

    def __call__(self, denoiser: Trainable, batch: Batch, rng: Rng) -> Loss:
        batch, noise = self.noise(batch, rng)
        return _masked_loss(reading(denoiser, batch), batch, noise, self)

    def noise(self, batch: Batch, rng: Rng) -> tuple[Batch, "Noise"]:
        """The rows that are scored, twice as many if `complementary`, and what masks them."""
        u = self.times(batch.slots, rng.fold(0))
        draw = self.selection(batch, u, rng.fold(1).fold(batch.slots))
        if isinstance(self.selection, PairedSelection) and self.complementary:
            other = self.selection.complement(batch, draw)
            batch = _twice(batch)
            draw = Draw(*(torch.cat(pair) for pair in zip(draw, other, strict=True)))
        shape = draw.noisy.shape
        weight, bound = self.weight(draw, batch), draw.weight[:, None]
        return batch, Noise(draw.noisy, weight.expand(shape), bound.expand(shape), draw.t)


class Noise(NamedTuple):
    """What is masked, and what each masked token's cross-entropy is multiplied by."""

    noisy: Tensor  # [B, L] bool
    weight: Tensor  # [B, L] in the training loss
    bound: Tensor  # [B, L] in the bound
    t: Tensor  # [B], or [B, L]


def _masked_loss(denoiser: Scorer, batch: Batch, noise: Noise, masked: MaskedDiffusion) -> Loss:
    noisy = noise.noisy
    value, nll, correct = denoiser.score(
        batch.tokens.masked_fill(noisy, masked.mask_id),
        noise.t.float(),
        noisy,
        batch.tokens[noisy],
        noise.weight[noisy].float(),
        segments=batch.segments,
    )
    integrand = torch.zeros(noisy.shape, device=nll.device)
    integrand[noisy] = noise.bound[noisy].float() * nll
    loss = _loss(value, integrand, batch.trainable.sum(), correct)
    return replace(loss, bounds=masked.selection.whole)


def _twice(batch: Batch) -> Batch:
    return type(batch)(*(torch.cat((part, part)) for part in vars(batch).values()))


# --- block diffusion: masked diffusion inside a block, given the clean text before it ---


@dataclass(frozen=True)
class BlockDiffusion:
    """A block is a row of `masked` that sees those before it (BD3-LM, arXiv 2503.09573, eq. 8).

    Blocks of `size` tokens count from the start of each document, and the last may be shorter. Of
    size 1, the bound is the exact likelihood from left to right; of the size of the row, this is
    `masked` itself. `masked.times` should spread over rows x blocks; a row of several documents may
    have more than length / size blocks, which then share the times of the next rows'.
    """

    size: Count
    masked: MaskedDiffusion

    def __post_init__(self):
        check_fields(self, size="block size")

    def __call__(self, denoiser: Trainable, batch: Batch, rng: Rng) -> Loss:
        if isinstance(batch, PairBatch):
            raise ConfigError("block diffusion does not read sources; use masked diffusion")
        blocks, at = cut(batch, self.size)
        scored, noise = self.masked.noise(blocks, rng)
        if len(scored.tokens) > len(blocks.tokens):
            batch, at = (
                _twice(batch),
                torch.cat((at, torch.where(at < 0, -1, at + batch.tokens.numel()))),
            )
        inside = at >= 0

        def spread(values: Tensor) -> Tensor:
            full = values.new_zeros(batch.tokens.numel())
            full[at[inside]] = values.expand(at.shape)[inside]
            return full.view(batch.tokens.shape)

        noise = Noise(*map(spread, (noise.noisy, noise.weight, noise.bound, noise.t[:, None])))
        stream = two_stream(denoiser, batch.tokens, self.size)
        return _masked_loss(stream, batch, noise, self.masked)


def cut(batch: Batch, size: int) -> tuple[Batch, Tensor]:
    """Blocks of a batch as rows [N, size], and where they are in it: [N, size] of B * L, or -1.

    The slot of block j is slot * ceil(L / size) + j.
    """
    rows, length = batch.tokens.shape
    positions = positions_from(batch.segments)
    visible = batch.segments != HIDDEN
    number = ((positions % size == 0) & visible).cumsum(1) - 1
    counts = number[:, -1:] + 1
    block = (number + counts.cumsum(0) - counts)[visible]
    at = torch.full((int(counts.sum()), size), -1, device=block.device)
    at[block, (positions % size)[visible]] = torch.arange(rows * length, device=block.device)[
        visible.flatten()
    ]
    inside = at >= 0
    slots = torch.zeros(len(at), dtype=torch.int64, device=block.device)
    slots[block] = (batch.slots[:, None] * -(-length // size) + number)[visible]
    return Batch(
        batch.tokens.flatten()[at],
        batch.trainable.flatten()[at] & inside,
        torch.where(inside, 0, HIDDEN),
        slots,
    ), at


@dataclass(frozen=True)
class Curriculum:
    """One objective after another, each in the slots before its end; the last for the rest."""

    stages: Annotated[  # by rising ends
        tuple[tuple[Slot, Objective], ...], Field(title="pairs of an end in slots and an objective")
    ]
    last: Objective
    __post_init__ = check_fields

    def __call__(self, denoiser: Trainable, batch: Batch, rng: Rng) -> Loss:
        slot = int(batch.slots[0])
        now = next((objective for end, objective in self.stages if slot < end), None)
        if now is None:
            return self.last(denoiser, batch, rng)
        return replace(now(denoiser, batch, rng), bounds=False)  # for another way of reading


@dataclass(frozen=True)
class NextToken:
    """Autoregression: the exact negative log-likelihood, left to right.

    Give it `denoisers.full.autoregressive(model, mask_id)`, which undoes the shift.
    """

    def __call__(self, denoiser: Trainable, batch: Batch, rng: Rng) -> Loss:
        where = batch.trainable
        targets = batch.tokens[where]
        value, nll, correct = reading(denoiser, batch).score(
            batch.tokens,
            torch.zeros(len(batch.tokens), device=batch.tokens.device),
            where,
            targets,
            torch.ones(len(targets), device=batch.tokens.device),
            segments=batch.segments,
        )
        each = torch.zeros(where.shape, device=nll.device)
        each[where] = nll
        return _loss(value, each, where.sum(), correct)


@dataclass(frozen=True)
class CausalFirst:
    """Next tokens in the slots before `until`, then another objective, with the same weights.

    A masked model sits for long on a plateau where it predicts without context; a causal one leaves
    it at once, and what its layers have learnt by then carries over (docs/log.md has the figures).
    """

    then: Objective
    until: Slot
    __post_init__ = check_fields

    def __call__(self, denoiser: Trainable, batch: Batch, rng: Rng) -> Loss:
        if int(batch.slots[0]) < self.until:
            return replace(NextToken()(autoregressive(denoiser), batch, rng), bounds=False)
        return self.then(denoiser, batch, rng)


@dataclass(frozen=True)
class DroppedSource:
    """Another objective, each row without its source at a given rate.

    So that the model also learns to write from nothing, which guidance needs (Ho & Salimans, arXiv
    2207.12598). Which rows depends on the run's seed and their slots alone.
    """

    then: Objective
    rate: Share
    __post_init__ = check_fields

    def __call__(self, denoiser: Trainable, batch: Batch, rng: Rng) -> Loss:
        assert isinstance(batch, PairBatch), "checked before training: there are pairs"
        dropped = rng.fold(2).fold(batch.slots).uniform(1) < self.rate
        seen = replace(batch, source=batch.source.masked_fill(dropped, ABSENT))
        return replace(
            self.then(denoiser, seen, rng), bounds=False
        )  # of texts without sources, too


def reading(denoiser: Trainable, batch: Batch) -> Trainable:
    """The denoiser that reads the sources of a batch, if it has any."""
    return conditioned(denoiser, batch.source) if isinstance(batch, PairBatch) else denoiser


def _loss(value: Tensor, nll: Tensor, count: Tensor, correct: Tensor) -> Loss:
    """Everything per trainable token; rows without one give 0."""
    corrupted = torch.tensor(correct.numel(), device=count.device)
    return Loss(value / count.clamp_min(1), nll, count, correct.sum(), corrupted)
