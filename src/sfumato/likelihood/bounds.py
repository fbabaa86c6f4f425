"""How probable a model finds texts: bounds and exact values, and how sure we are of the number.

Every function returns a `Likelihood`: nats for each row, and the noise of that estimate. They
differ in what they are about. `exact_k`, `continuous` and `discrete` bound -log p under the random
order of the diffusion; `any_order` is the same bound by other draws; `by_order`, `by_decoder` and
`left_to_right` are exact, each for its own way of writing a text.

`rng` has one key, the run's; what a row draws depends on it and the row's slot alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.arguments import COUNT
from sfumato.errors import ConfigError
from sfumato.likelihood.exact import check_masked, mean
from sfumato.likelihood.result import Likelihood
from sfumato.noise.corruption import Corruption
from sfumato.noise.schedules import Schedule, reveal_rate
from sfumato.objectives.blocks import BlockDiffusion
from sfumato.objectives.bound import Continuous
from sfumato.objectives.masked import MaskedDiffusion
from sfumato.objectives.selection import Draw, ExactK
from sfumato.objectives.times import Times
from sfumato.rng import Rng
from sfumato.types import Batch, Objective, Trainable


def bound(
    denoiser: Trainable, corruption: Corruption, batch: Batch, rng: Rng, *, samples: int = 1
) -> Likelihood:
    """The bound to report for a diffusion model: `exact_k` if it is masked, else `continuous`."""
    estimator = exact_k if corruption.absorbing else continuous
    return estimator(denoiser, corruption, batch, rng, samples=samples)


@torch.no_grad()
def exact_k(
    denoiser: Trainable, corruption: Corruption, batch: Batch, rng: Rng, *, samples: int = 1
) -> Likelihood:
    """The bound with exactly k of n tokens masked, k spread evenly over 1..n (LLaDA, eq. 14).

    E over k and positions of n / k times the cross-entropy of the masked tokens. Free of the
    schedule, and of the lowest variance: the bound to report for masked models.
    """
    check_masked("exact_k", corruption)
    return average(
        f"exact_k(samples={samples})",
        lambda times: _within_blocks(
            denoiser,
            MaskedDiffusion(corruption.mask_id, times, ExactK(schedule=corruption.schedule)),
        ),
        denoiser,
        batch,
        rng,
        samples,
    )


def _within_blocks(denoiser: Trainable, masked: MaskedDiffusion) -> Objective:
    """A block-causal model reads clean text before a block: its bound is a sum over blocks."""
    size = getattr(denoiser, "block_size", None)
    return BlockDiffusion(size, masked) if size else masked


@torch.no_grad()
def continuous(
    denoiser: Trainable, corruption: Corruption, batch: Batch, rng: Rng, *, samples: int = 1
) -> Likelihood:
    """The continuous-time bound of any corruption; `objectives.bound` says how it is drawn."""
    schedule = corruption.schedule
    if schedule.low > 0 or schedule.high < 1:
        raise ConfigError(
            f"the bound integrates over all noise rates, and {schedule} leaves some out; "
            "evaluate with a schedule that runs from 0 to 1, or a masked model with exact_k"
        )
    return average(
        f"continuous(samples={samples})",
        lambda times: Continuous(corruption, times),
        denoiser,
        batch,
        rng,
        samples,
    )


@torch.no_grad()
def discrete(
    denoiser: Trainable,
    corruption: Corruption,
    batch: Batch,
    rng: Rng,
    *,
    num_steps: int,
    samples: int | None = None,
) -> Likelihood:
    """The bound of ancestral generation in T equal steps (MDLM, arXiv 2406.07524, eq. 8).

    Sum over steps of (alpha_s - alpha_t) / (1 - alpha_t) times the cross-entropy of the masked
    tokens; of the T steps `samples` are drawn, evenly spread (None: every one, once). Generation
    starts with everything masked and ends with nothing masked, whatever the schedule: so where
    alpha(1) is not 0, a token is masked at t with probability (1 - alpha_t) / (1 - alpha_1), which
    is what leads to these rates; and where alpha(0) is not 1, the last step reveals what is left.
    """
    check_masked("discrete", corruption)
    if num_steps < 1:
        raise ConfigError(f"num_steps must be at least 1, got {num_steps}")
    samples = num_steps if samples is None else samples
    return average(
        f"discrete(num_steps={num_steps}, samples={samples})",
        lambda times: _within_blocks(
            denoiser,
            MaskedDiffusion(corruption.mask_id, times, _StepOf(corruption.schedule, num_steps)),
        ),
        denoiser,
        batch,
        rng,
        samples,
    )


@dataclass(frozen=True)
class _StepOf:
    """One of T equal steps from t to s; the sum over them is T times their mean.

    One token of a row is masked for certain, which `objectives.bound` explains: of n p masked
    ones on average, rows with k come k / (n p) times as often as they should.
    """

    schedule: Schedule
    num_steps: int
    whole = True

    def __call__(self, batch: Batch, u: Tensor, rng: Rng) -> Draw:
        place = (u * self.num_steps).floor().clamp_max(self.num_steps - 1)
        s, t = place / self.num_steps, (place + 1) / self.num_steps
        masked = (1 - self.schedule.alpha(t)) / (1 - self.schedule.alpha(torch.ones_like(t)))
        length, trainable = batch.tokens.shape[1], batch.trainable
        first = rng.fold(0).uniform(length).masked_fill(~trainable, 2.0).argmin(1, keepdim=True)
        noisy = (rng.uniform(length) >= 1 - masked[:, None]).scatter(1, first, True) & trainable
        often = noisy.sum(1).clamp_min(1) / (trainable.sum(1) * masked).clamp_min(1e-300)
        return Draw(noisy, self.num_steps * reveal_rate(self.schedule, t, s) / often, t)


@dataclass(frozen=True)
class _Equidistant:
    """The times of one of `samples` draws, with one random offset for each row or block."""

    number: int
    samples: int
    rng: Rng

    def __call__(self, slots: Tensor, rng: Rng) -> Tensor:
        offset = self.rng.fold(self.samples).fold(slots).uniform(1)[:, 0]
        return (self.number + offset) / self.samples


def average(
    estimator: str,
    objective: Callable[[Times], Objective],
    denoiser: Trainable,
    batch: Batch,
    rng: Rng,
    samples: int,
) -> Likelihood:
    """Mean of an objective at `samples` equidistant times."""
    samples = COUNT.check("samples", samples)
    losses = [
        objective(_Equidistant(number, samples, rng))(denoiser, batch, rng.fold(number))
        for number in range(samples)
    ]
    return mean(
        estimator,
        [loss.nll.double() for loss in losses],
        *_noise_in_order(torch.stack([loss.nll.double().sum(1) for loss in losses])),
        batch,
        sum(float(loss.correct) for loss in losses),
        sum(float(loss.corrupted) for loss in losses),
    )


def _noise_in_order(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Of the mean of draws [S, B] at times in order: standard error, degrees of freedom, [B] each.

    From the differences of neighbours: what the times themselves make of a draw is nearly the same
    in both, and spread out evenly adds nothing to the error of the mean. What is left of it makes
    the error too large, never too small. Neighbouring differences share a draw, so that of S - 1
    some two thirds are independent, and fewer where some times are noisier than others.
    """
    count = len(draws)
    if count == 1:
        unknown = torch.full_like(draws[0], math.nan)
        return unknown, unknown
    squares = draws.diff(dim=0).square()
    total, most = squares.sum(0), 2 * (count - 1) ** 2 / (3 * count - 4)
    freedom = 2 * total.square() / squares.square().sum(0)
    return (total / (2 * count * (count - 1))).sqrt(), freedom.nan_to_num(most).clamp(1, most)
