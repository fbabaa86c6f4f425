"""The continuous-time bound of any corruption: to train by, and to measure by.

`Bound` draws t evenly and noise as the corruption does. Its mean is right, its variance
is infinite. Let p = 1 - alpha be the noise rate and n the tokens of a row. Near p = 0 some token is
noisy with probability n p, and what it then adds is 1 / p times a logarithm: the mean converges,
and the square, which integrates 1 / p, does not. Hybrid noise is worse, as its spread begins like a
root of time. Near p = 1 a token is still clean with probability alpha and then adds 1 / alpha, as
long as alpha is above 1 / V: its square integrates to log V, most of which few draws never see.
Four changes mend that, and none of them moves the mean.

Time. Draws are spread over p. The integrand is a derivative in t; over p it is divided by -alpha',
and no schedule has a singular end then. The density of p is that of `MIX`.

Hits. In the draws of a row with noise one token, drawn evenly, is hit for certain, and the others
as ever. Rows with k hits come k / (n p) times as often as they should, so they weigh n p / k: this
takes the 1 / p away. The row without any hit, of probability alpha ** n, has draws of its own, as
its part may be steep: a clean token that surprises looks like noise long before there is any.

End. The integral itself diverges at p = 0, slowly, for a network that is never quite sure of clean
tokens: in continuous time it goes on correcting what is right. Generation does not: its last step
draws all that is left at once. So the integral ends at the noise rate `LAST`, and the cross-entropy
-log p(x_0 | x_t) there is added: a bound for jumps down to it and one last draw. For a perfect
denoiser that is more than the whole integral by what pairs of noisy tokens say of each other, of
the order of LAST ** 2.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.arguments import check_fields
from sfumato.noise.corruption import Corruption, any_other
from sfumato.objectives.loss import reading
from sfumato.objectives.times import Times
from sfumato.rng import Rng
from sfumato.types import Batch, Loss, Trainable

LAST = 1e-3  # noise rate that is left to the last draw
MIX = (0.4, 0.5, 0.1)  # shares of the densities 1 / p, 1 and 1 / sqrt(1 - p); see docs/log.md
UNHIT = 0.25  # share of the draws for rows without a hit
LAST_DRAWS = 0.02  # share of the draws at LAST


@dataclass(frozen=True)
class Bound:
    """An objective to train by: UDLM, GIDD, MDLM again."""

    corruption: Corruption
    times: Times
    __post_init__ = check_fields

    def __call__(self, denoiser: Trainable, batch: Batch, rng: Rng) -> Loss:
        t = self.times(batch.slots, rng.fold(0))
        drawn = self.corruption.corrupt(batch.tokens, t, rng.fold(1).fold(batch.slots))
        tokens = torch.where(batch.trainable, drawn, batch.tokens)
        certain = torch.ones_like(t)
        never = torch.zeros_like(t, dtype=torch.bool)
        loss = per_token(self.corruption, denoiser, batch, tokens, t, certain, never)
        schedule = self.corruption.schedule
        return replace(loss, bounds=schedule.low == 0 and schedule.high == 1)


@dataclass(frozen=True)
class Continuous:
    """An objective to measure by: its `nll` is the bound, with an error that few draws tell."""

    corruption: Corruption
    times: Times
    __post_init__ = check_fields

    def __call__(self, denoiser: Trainable, batch: Batch, rng: Rng) -> Loss:
        corruption = self.corruption
        at = place(self.times(batch.slots, rng.fold(0)), 0.0 if corruption.absorbing else UNHIT)
        t = time_of(corruption, at.alpha)
        tokens, chance = hit(corruption, batch, at, t, rng.fold(1).fold(batch.slots))
        weight = at.weight * chance / torch.where(at.last, LAST, -corruption.kernel(t).dalpha)
        return per_token(corruption, denoiser, batch, tokens, t, weight, at.last)


def per_token(
    corruption: Corruption,
    denoiser: Trainable,
    batch: Batch,
    tokens: Tensor,  # [B, L] noisy
    t: Tensor,  # [B]
    weight: Tensor,  # [B]
    last: Tensor,  # [B] bool: rows whose cross-entropy counts, and not the integrand
) -> Loss:
    where = batch.trainable
    targets, seen = batch.tokens[where], tokens[where]
    times, weights, ends = (each[:, None].expand(where.shape)[where] for each in (t, weight, last))

    def integrand(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        mask = torch.tensor([corruption.mask_id], device=logits.device)
        logp = logits.index_fill(-1, mask, -torch.inf).log_softmax(-1)
        jumps = corruption.bound(logp, targets[part], seen[part], times[part])
        drawn = -logp.gather(-1, targets[part][:, None])[:, 0]
        return torch.where(ends[part], drawn, jumps), logp.argmax(-1) == targets[part]

    value, nll, correct = reading(denoiser, batch).score(
        tokens,
        t.float(),
        where,
        targets,
        weights.float(),
        segments=batch.segments,
        integrand=integrand,
    )
    each = torch.zeros(where.shape, device=nll.device)
    each[where] = weights.float() * nll.detach()
    count, noisy = where.sum(), seen != targets
    return Loss(value / count.clamp_min(1), each, count, correct[noisy].sum(), noisy.sum())


class Place(NamedTuple):
    """Where the draws of rows [B] are."""

    alpha: Tensor  # [B]
    unhit: Tensor  # [B] bool, without noise
    last: Tensor  # [B] bool, at the last draw
    weight: Tensor  # [B] over p; at the last draw, LAST for all of it


def place(u: Tensor, unhit_share: float) -> Place:
    """u [B], spread over (0, 1), as rows without a hit and rows with one, each from p = LAST up."""
    unhit = u < unhit_share
    v = torch.where(unhit, 1 - u / max(unhit_share, 1e-9), (u - unhit_share) / (1 - unhit_share))
    share = torch.where(unhit, unhit_share, 1 - unhit_share)
    last = v < LAST_DRAWS
    v = ((v - LAST_DRAWS) / (1 - LAST_DRAWS)).clamp(1e-12, 1 - 1e-12)
    steep, mixed = _spread(v, (1.0, 0.0, 0.0)), _spread(v, MIX)
    alpha, density = (torch.where(unhit, *pair) for pair in zip(steep, mixed, strict=True))
    each = torch.where(last, LAST / LAST_DRAWS, 1 / density / (1 - LAST_DRAWS))
    return Place(torch.where(last, 1 - LAST, alpha), unhit, last, each / share)


def _spread(v: Tensor, mix: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """alpha where a mixture of densities of p over (LAST, 1) has v below it, and the mixture there.

    The place is sought on the scale of log(p / (1 - p)), where neither end is lost to rounding, as
    far as a time that a network is told, in float32, differs from 1.
    """
    low_p, even, high_p = mix
    room, root = -math.log(LAST), math.sqrt(1 - LAST)

    def below(z: Tensor) -> Tensor:
        p, alpha = z.sigmoid(), (-z).sigmoid()
        near_1 = 1 - alpha.sqrt() / root
        return low_p * (1 + p.log() / room) + even * (p - LAST) / (1 - LAST) + high_p * near_1

    z = _root(below, v, math.log(LAST / (1 - LAST)), 16.0)
    p, alpha = z.sigmoid(), (-z).sigmoid()
    density = low_p / (room * p) + even / (1 - LAST) + high_p / (2 * root * alpha.sqrt())
    return alpha, density


def time_of(corruption: Corruption, alpha: Tensor) -> Tensor:
    """The t [B] at which a token is clean with probability alpha [B].

    Sought on the scale of log(t / (1 - t)), as noise may begin with any power of t.
    """
    return _root(lambda z: -corruption.kernel(z.sigmoid()).alpha, -alpha, -700.0, 36.0).sigmoid()


def _root(f: Callable[[Tensor], Tensor], value: Tensor, low: float, high: float) -> Tensor:
    """Where the rising f has a value [B] between two places, by halving."""
    least, most = torch.full_like(value, low), torch.full_like(value, high)
    for _ in range(60):
        middle = (least + most) / 2
        short = f(middle) < value
        least, most = torch.where(short, middle, least), torch.where(short, most, middle)
    return (least + most) / 2


def hit(
    corruption: Corruption, batch: Batch, at: Place, t: Tensor, rng: Rng
) -> tuple[Tensor, Tensor]:
    """Rows [B, L] with at least one hit, or without any; over their chance [B], what they weigh."""
    trainable, length = batch.trainable, batch.tokens.shape[1]
    count = trainable.sum(1)
    first = rng.fold(0).uniform(length).masked_fill(~trainable, 2.0).argmin(1, keepdim=True)
    hits = (rng.fold(1).uniform(length) >= at.alpha[:, None]).scatter(1, first, True)
    hits = hits & trainable & ~at.unhit[:, None]
    kernel = corruption.kernel(t)
    spread = (kernel.spread / (kernel.spread + kernel.mask))[:, None]
    other = any_other(corruption, rng.fold(2).uniform(length))
    noise = torch.where(rng.fold(3).uniform(length) < spread, other, corruption.mask_id)
    some = count * (1 - at.alpha) / hits.sum(1).clamp_min(1)
    return torch.where(hits, noise, batch.tokens), torch.where(at.unhit, at.alpha**count, some)
