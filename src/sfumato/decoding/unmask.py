"""The rules that turn one canvas into the next: which positions are decided, and to what.

Every rule is a small value. `exact` says whether, with a perfect denoiser and as steps get small,
the rule samples the model's own law; tests hold it to that. A rule whose choice of positions looks
at the drawn tokens is biased towards the mode, however many steps it takes; one that looks only at
the state and the logits is not.

Shapes: canvas [B, L]; logits [N, V] at the positions `where` [B, L]; t > s [B]. `step` has what a
rule is, and the parts that all rules share.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sfumato.arguments import Count, Positive, check_fields
from sfumato.decoding.logits import entropies, lead_odds, log_odds
from sfumato.decoding.step import PLACES, RENOISE, Chooser, Prediction, Step, commit, draw_at
from sfumato.noise.corruption import Corruption
from sfumato.noise.schedules import Schedule, reveal_rate
from sfumato.rng import Rng
from sfumato.types import Canvas

Level = Annotated[float, Field(gt=0, le=1, description="use 0.9")]

# --- the parts that rules share ---


def spread(values: Tensor, where: Tensor, empty: float) -> Tensor:
    """values [N] put back at the positions `where`, `empty` elsewhere: [B, L]."""
    full = torch.full(where.shape, empty, dtype=values.dtype, device=values.device)
    full[where] = values
    return full


def quota(canvas: Canvas, schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """How many positions of each row the schedule wants decided by s: [B].

    ceil(left * reveal rate): on the linear schedule exactly LLaDA's even split.
    """
    left = canvas.noisy.sum(1)
    return (left * reveal_rate(schedule, t, s) - 1e-9).ceil().long().clamp_min(0)


def highest(scores: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """The `count` [B] highest scores of each row; ties go to the left. [B, L] bool."""
    least = torch.finfo(torch.float64).min  # a score of -inf is still one among these
    ranked = scores.double().clamp_min(least).masked_fill(~among, -torch.inf)
    order = ranked.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    rank = torch.empty_like(order).scatter(1, order, places)
    return (rank < count[:, None]) & among


def odds_of(probability: float) -> float:
    """The log odds of a probability."""
    return math.inf if probability == 1 else math.log(probability) - math.log1p(-probability)


# --- rules whose choice of positions needs no logits: only those positions are computed ---


@dataclass(frozen=True)
class Ancestral(Step):
    """The reverse process itself, for any corruption (D3PM, MDLM, GIDD)."""

    corruption: Corruption
    exact = True

    def __post_init__(self):
        check_fields(self)
        vars(self).update(absorbing=self.corruption.absorbing)

    def wanted(self, canvas: Canvas, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        if not self.corruption.absorbing:
            return canvas.noisy
        u = rng.fold(PLACES).uniform(canvas.tokens.shape[1])
        return canvas.noisy & (u < reveal_rate(self.corruption.schedule, t, s)[:, None])

    def __call__(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        if self.corruption.absorbing:
            return commit(canvas, seen.where, draw_at(canvas, seen.where, seen, rng))
        where, shape = seen.where, canvas.tokens.shape
        law = self.corruption.posterior(
            seen.at(where).double().softmax(-1),
            canvas.tokens[where],
            t.double()[:, None].expand(shape)[where],
            s.double()[:, None].expand(shape)[where],
        )
        tokens = draw_at(canvas, where, Prediction(law.log(), where, canvas), rng)
        done = (s <= 0)[:, None]
        return replace(canvas, tokens=tokens, noisy=canvas.noisy & ~done)


@dataclass(frozen=True)
class FirstHitting(Step):
    """One position a step, chosen evenly, at the very time when the process would reveal it
    (Zheng et al., arXiv 2409.02908, section 4.1): no error of time steps. The network is told that
    very time. What is left at the end goes at once.
    """

    schedule: Schedule
    exact = True
    __post_init__ = check_fields

    def wanted(self, canvas: Canvas, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        scores = rng.fold(PLACES).uniform(canvas.tokens.shape[1])
        count = torch.where(s <= 0, canvas.noisy.sum(1), 1)
        return highest(scores, canvas.noisy, count)

    def __call__(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        time = self.told(canvas, t, rng)[:, None].expand(canvas.tokens.shape)
        new = commit(canvas, seen.where, draw_at(canvas, seen.where, seen, rng))
        return replace(new, memory={**canvas.memory, "time": time})

    def told(self, canvas: Canvas, t: Tensor, rng: Rng) -> Tensor:
        """When the next position is revealed, [B]: the largest of n noise rates below the last."""
        left = canvas.noisy.sum(1).clamp_min(1)
        last = canvas.memory["time"][:, 0] if "time" in canvas.memory else t
        u = rng.fold(RENOISE).uniform(1)[:, 0]
        return self.schedule.time(1 - (1 - self.schedule.alpha(last.double())) * u ** (1 / left))


@dataclass(frozen=True)
class RandomOrder(Step):
    """The schedule's share of positions, chosen evenly."""

    schedule: Schedule
    exact = True
    __post_init__ = check_fields

    def wanted(self, canvas: Canvas, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        scores = rng.fold(PLACES).uniform(canvas.tokens.shape[1])
        return highest(scores, canvas.noisy, quota(canvas, self.schedule, t, s))

    def __call__(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        return commit(canvas, seen.where, draw_at(canvas, seen.where, seen, rng))


@dataclass(frozen=True)
class LeftToRight(Chooser):
    """The schedule's share of positions, leftmost first: with one a step, autoregression."""

    schedule: Schedule
    exact = True
    __post_init__ = check_fields

    def wanted(self, canvas: Canvas, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        places = torch.arange(canvas.tokens.shape[1], device=canvas.tokens.device)
        count = quota(canvas, self.schedule, t, s)
        return highest(-places.expand_as(canvas.tokens).double(), canvas.noisy, count)

    def choose(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor) -> Tensor:
        return seen.where


# --- rules that rank positions by their logits ---


@dataclass(frozen=True)
class TopConfidence(Step):
    """The schedule's share, by the probability of the token that was DRAWN (LLaDA, MaskGIT).

    Biased towards the mode even with a perfect denoiser: a likely draw is decided earlier.
    """

    schedule: Schedule
    exact = False
    __post_init__ = check_fields

    def __call__(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        where, tokens = seen.where, draw_at(canvas, seen.where, seen, rng)
        scores = spread(log_odds(seen.logits, tokens[where]), where, -torch.inf)
        chosen = highest(scores, canvas.noisy, quota(canvas, self.schedule, t, s))
        return commit(canvas, chosen, tokens)


@dataclass(frozen=True)
class TopProbability(Chooser):
    """The schedule's share, by the probability of the most likely token."""

    schedule: Schedule
    exact = True
    __post_init__ = check_fields

    def choose(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor) -> Tensor:
        scores = spread(log_odds(seen.logits), seen.where, -torch.inf)
        return highest(scores, canvas.noisy, quota(canvas, self.schedule, t, s))


@dataclass(frozen=True)
class Margin(Chooser):
    """The schedule's share, by how far the most likely token leads (arXiv 2502.06768)."""

    schedule: Schedule
    exact = True
    __post_init__ = check_fields

    def choose(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor) -> Tensor:
        scores = spread(lead_odds(seen.logits), seen.where, -torch.inf)
        return highest(scores, canvas.noisy, quota(canvas, self.schedule, t, s))


@dataclass(frozen=True)
class LowEntropy(Chooser):
    """The schedule's share, surest first by entropy (Dream)."""

    schedule: Schedule
    exact = True
    __post_init__ = check_fields

    def choose(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor) -> Tensor:
        scores = spread(-entropies(seen.logits), seen.where, -torch.inf)
        return highest(scores, canvas.noisy, quota(canvas, self.schedule, t, s))


# --- rules that decide as many positions as they dare, and at least the schedule's share ---


@dataclass(frozen=True)
class Threshold(Chooser):
    """Every position whose most likely token reaches `level` (Fast-dLLM, arXiv 2505.22618)."""

    schedule: Schedule
    level: Level = 0.9
    exact = False

    def __post_init__(self):
        check_fields(self, level="threshold level")

    def choose(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor) -> Tensor:
        scores = spread(log_odds(seen.logits), seen.where, -torch.inf)
        share = highest(scores, canvas.noisy, quota(canvas, self.schedule, t, s))
        return share | (canvas.noisy & (scores >= odds_of(self.level)))


@dataclass(frozen=True)
class Factor(Chooser):
    """The most positions n with (n + 1)(1 - c_n) < factor, c_n the n-th highest confidence
    (Fast-dLLM, arXiv 2505.22618, section 3.3)."""

    schedule: Schedule
    factor: Annotated[float, Field(gt=0, description="use 1")] = 1.0
    exact = False

    def __post_init__(self):
        check_fields(self)

    def choose(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor) -> Tensor:
        scores = spread(log_odds(seen.logits), seen.where, -torch.inf)
        doubt = scores.neg().sigmoid().masked_fill(~canvas.noisy, torch.inf).sort(1).values
        number = torch.arange(1, scores.shape[1] + 1, device=scores.device)
        allowed = (number + 1) * doubt < self.factor
        most = torch.where(allowed, number, 0).amax(1)
        count = torch.maximum(most, quota(canvas, self.schedule, t, s))
        return highest(scores, canvas.noisy, count)


@dataclass(frozen=True)
class EntropyBound(Chooser):
    """The longest run of surest positions whose joint entropy error stays below `gamma` nats:
    the sum of their entropies less the largest (EB-Sampler, arXiv 2505.24857).

    It bounds how far the parallel draw is from the joint law; at 0, one position a step.
    """

    schedule: Schedule
    gamma: Annotated[float, Field(ge=0, description="in nats")] = 0.1

    def __post_init__(self):
        check_fields(self, gamma="entropy bound gamma")
        vars(self).update(exact=self.gamma == 0)

    def choose(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor) -> Tensor:
        entropy = spread(entropies(seen.logits), seen.where, torch.inf)
        ordered = entropy.masked_fill(~canvas.noisy, torch.inf).sort(1).values
        error = F.pad(
            ordered[:, :-1].cumsum(1), (1, 0)
        )  # ascending: the current one is the largest
        within = (error <= self.gamma) & ~ordered.isinf()
        count = torch.maximum(within.sum(1), quota(canvas, self.schedule, t, s))
        return highest(-entropy, canvas.noisy, count)


@dataclass(frozen=True)
class Klass(Step):
    """Positions that are sure, and whose prediction has stopped moving: confidence above `level`
    and KL from the last `patience` predictions below `eps` (KLASS, arXiv 2511.05664)."""

    schedule: Schedule
    level: Level = 0.6
    eps: Positive = 0.015
    patience: Count = 2
    exact = False

    def __post_init__(self):
        check_fields(self, "KLASS {}")

    def __call__(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        where, logp = seen.where, seen.logits.float().log_softmax(-1)
        calm = torch.zeros_like(canvas.tokens)
        if "logp" in canvas.memory:
            before = canvas.memory["logp"][where]
            moved = (logp.exp() * (logp - before).nan_to_num(0.0, posinf=30, neginf=-30)).sum(-1)
            calm[where] = torch.where(moved < self.eps, canvas.memory["calm"][where] + 1, 0)
        scores = spread(log_odds(seen.logits), seen.where, -torch.inf)
        stable = canvas.noisy & (calm >= self.patience) & (scores > odds_of(self.level))
        share = highest(scores, canvas.noisy, quota(canvas, self.schedule, t, s))
        chosen = stable | share
        memory = torch.zeros((*canvas.tokens.shape, logp.shape[-1]), device=logp.device)
        memory[where] = logp
        new = commit(canvas, chosen, draw_at(canvas, chosen, seen, rng))
        return replace(new, memory={**canvas.memory, "logp": memory, "calm": calm})
