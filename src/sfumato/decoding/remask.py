"""Rules that take decisions back: a revised position becomes noisy again and is decided anew.

The same conventions as `decoding/unmask.py`.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from sfumato.arguments import PositiveShare, Share, TokenId, check_fields
from sfumato.decoding.logits import log_odds, probability_of
from sfumato.decoding.step import PLACES, RENOISE, Prediction, Step, commit, draw_at
from sfumato.decoding.unmask import highest, odds_of, spread
from sfumato.errors import ConfigError
from sfumato.noise.schedules import Schedule
from sfumato.rng import Rng
from sfumato.types import Canvas

Eta = Annotated[float, Field(ge=0, le=1, description="use 0.02")]


@runtime_checkable
class Rate(Protocol):
    """How often ReMDM puts a decided token back: sigma [B], given its largest lawful value [B]."""

    def __call__(self, limit: Tensor, t: Tensor, s: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Cap:
    """sigma = min(eta, largest)."""

    eta: Eta = 0.02

    def __post_init__(self):
        check_fields(self, "remasking {}")

    def __call__(self, limit: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return limit.clamp_max(self.eta)


@dataclass(frozen=True)
class Rescale:
    """sigma = eta * largest."""

    eta: Eta = 0.02

    def __post_init__(self):
        check_fields(self, "remasking {}")

    def __call__(self, limit: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return self.eta * limit


@dataclass(frozen=True)
class During:
    """sigma = min(eta, largest) while t_off <= s < t <= t_on, and 0 outside."""

    eta: Eta
    t_on: Share
    t_off: Share

    def __post_init__(self):
        check_fields(self, "remasking {}")

    def __call__(self, limit: Tensor, t: Tensor, s: Tensor) -> Tensor:
        inside = (t <= self.t_on) & (s >= self.t_off)
        return torch.where(inside, limit.clamp_max(self.eta), 0.0)


@dataclass(frozen=True)
class Plateau:
    """A schedule that stops at `alpha_on` from `t_on` to `t_off` (time runs from 1 to 0)."""

    schedule: Schedule
    t_on: Share
    t_off: Share
    alpha_on: Share
    low = 0.0
    high = 1.0

    def __post_init__(self):
        check_fields(self, "remasking {}")
        if not (0 < self.t_off < self.t_on < 1 and 0 < self.alpha_on < 1):
            raise ConfigError(
                "the remasking loop needs 0 < t_off < t_on < 1 and 0 < alpha_on < 1; got "
                f"t_on {self.t_on}, t_off {self.t_off}, alpha_on {self.alpha_on}"
            )

    def alpha(self, t: Tensor) -> Tensor:
        early = self.alpha_on * self.schedule.alpha(
            ((t - self.t_on) / (1 - self.t_on)).clamp_min(0)
        )
        late = (1 - self.alpha_on) * self.schedule.alpha((t / self.t_off).clamp_max(1))
        return early + torch.where(t < self.t_off, late, 0.0)

    def dalpha(self, t: Tensor) -> Tensor:
        early = self.schedule.dalpha(((t - self.t_on) / (1 - self.t_on)).clamp_min(0))
        late = self.schedule.dalpha((t / self.t_off).clamp_max(1))
        early = early * self.alpha_on / (1 - self.t_on)
        late = late * (1 - self.alpha_on) / self.t_off
        return torch.where(t > self.t_on, early, torch.where(t < self.t_off, late, 0.0))

    def time(self, alpha: Tensor) -> Tensor:
        early = self.t_on + (1 - self.t_on) * self.schedule.time(alpha / self.alpha_on)
        late = self.t_off * self.schedule.time((alpha - self.alpha_on) / (1 - self.alpha_on))
        return torch.where(alpha <= self.alpha_on, early, late)


@dataclass(frozen=True)
class Remasking(Step):
    """ReMDM (arXiv 2503.00307, eq. 5-7): decided tokens are masked again with probability sigma,
    and the chance of revealing grows so that the marginals stay those of the process.

    With `by_confidence` (section 4.1), the decided tokens of a row share sigma out among them by
    softmax(-confidence at the time of decision), so that at most one is revised a step, on average,
    and what was decided in doubt first. Masked tokens have no share: they are revealed at the
    process's own rate, which therefore falls behind. Its authors share out the largest lawful sigma
    (Cap(1.0)); a small eta, fit for the sigma of each token, revises little here.
    """

    schedule: Schedule
    mask_id: TokenId
    rate: Rate = field(default_factory=Cap)
    by_confidence: bool = False
    trained: Schedule | None = None  # the network's, if it is told the time and this is another
    revises = True
    reopens = True  # also what is wholly decided: to stop there would favour what was drawn at once

    def __post_init__(self):
        check_fields(self)
        vars(self).update(exact=not self.by_confidence)

    def law(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """sigma, of each decided token or of all together, and the chance of revealing: [B]."""
        alpha_t, alpha_s = self.schedule.alpha(t.double()), self.schedule.alpha(s.double())
        alpha_s = torch.where(s <= 0, torch.ones_like(alpha_s), alpha_s)
        limit = ((1 - alpha_s) / alpha_t.clamp_min(1e-300)).clamp_max(1.0)
        sigma = self.rate(limit, t, s)
        made_up = torch.zeros_like(sigma) if self.by_confidence else sigma
        reveal = (alpha_s - (1 - made_up) * alpha_t) / (1 - alpha_t).clamp_min(1e-300)
        return sigma, reveal.clamp(0, 1)

    def told(self, canvas: Canvas, t: Tensor, rng: Rng) -> Tensor:
        """When a text of the network's own schedule is as noisy as this one, [B]."""
        return t if self.trained is None else self.trained.time(self.schedule.alpha(t))

    def sigma(self, canvas: Canvas, t: Tensor, s: Tensor) -> Tensor:
        """P(a decided token is masked again), [B, L]; 0 where nothing is decided."""
        decided = ~canvas.noisy & ~canvas.fixed
        share = decided.double()
        if self.by_confidence:
            known = canvas.memory.get("confidence", share)  # not there yet: the same for all
            share = (-known).masked_fill(~decided, -torch.inf).softmax(1).nan_to_num(0.0)
        return self.law(t, s)[0][:, None] * share

    def wanted(self, canvas: Canvas, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        u = rng.fold(PLACES).uniform(canvas.tokens.shape[1])
        return canvas.noisy & (u < self.law(t, s)[1][:, None])

    def __call__(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        where, tokens = seen.where, draw_at(canvas, seen.where, seen, rng)
        again = rng.fold(RENOISE).uniform(canvas.tokens.shape[1]) < self.sigma(canvas, t, s)
        memory = canvas.memory
        if self.by_confidence:
            known = memory.get("confidence", torch.ones_like(tokens, dtype=torch.float32))
            sure = probability_of(tokens[where], seen.logits)
            known = torch.where(where, spread(sure, where, 0.0), known)
            memory = {**memory, "confidence": known}
        new = commit(canvas, where, tokens)
        return replace(
            new,
            tokens=new.tokens.masked_fill(again, self.mask_id),
            noisy=new.noisy | again,
            memory=memory,
        )


def loop(
    schedule: Schedule,
    mask_id: int,
    *,
    eta: float = 0.02,
    t_on: float = 0.55,
    t_off: float = 0.05,
    alpha_on: float = 0.9,
) -> Remasking:
    """ReMDM's loop: write most of the text by `t_on`, revise it until `t_off`, then finish."""
    plateau = Plateau(schedule, t_on, t_off, alpha_on)
    return Remasking(plateau, mask_id, rate=During(eta, t_on, t_off), trained=schedule)


@dataclass(frozen=True)
class Wino(Step):
    """Draft wide, verify narrow (WINO, arXiv 2507.18578): decide every position above `draft`,
    at most max(5, min(20, 0.7 left)) of them; take back those whose leave-one-out probability
    falls below `verify`, always fewer than were newly decided, so that it ends.

    Needs `leave_one_out` of its denoiser: the loop asks for it because of `verifies`.
    """

    schedule: Schedule
    mask_id: TokenId
    draft: PositiveShare = 0.6
    verify: Share = 0.9
    exact = False
    verifies = True
    revises = True

    def __post_init__(self):
        check_fields(self, "WINO {}")

    def wanted(self, canvas: Canvas, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        return ~canvas.fixed & canvas.noisy.any(1, keepdim=True)

    def __call__(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        where, tokens = seen.where, draw_at(canvas, canvas.noisy & seen.where, seen, rng)
        scores = spread(log_odds(seen.logits), where, -torch.inf)
        left = canvas.noisy.sum(1)
        cap = (0.7 * left).long().clamp(5, 20)
        sure = (canvas.noisy & (scores > odds_of(self.draft))).sum(1)
        count = torch.where(s <= 0, left, sure.minimum(cap).clamp_min(1)).minimum(left)
        chosen = highest(scores, canvas.noisy, count)
        standing = spread(log_odds(seen.logits, canvas.tokens[where]), where, torch.inf)
        decided = where & ~canvas.noisy
        room = torch.where(s <= 0, 0, (count - 1).clamp_min(0))
        back = highest(-standing, decided & (standing < odds_of(self.verify)), room)
        new = commit(canvas, chosen, tokens)
        return replace(
            new, tokens=new.tokens.masked_fill(back, self.mask_id), noisy=new.noisy | back
        )
