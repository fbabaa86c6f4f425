"""What a step rule is, and what it is told.

A rule turns one canvas into the next: which positions are decided, and to what. It is a small
value, derived from `Step`, which says what a rule does not say itself.

Shapes: B rows, L positions, V vocabulary with the mask token, N positions whose logits are known.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from sfumato.decoding.logits import draw_tokens, most_likely
from sfumato.rng import Rng
from sfumato.types import Canvas, Filter

TOKENS, PLACES, RENOISE = 0, 1, 2  # what a step's random streams are for
FLAGS = ("exact", "revises", "reopens", "verifies", "absorbing")  # what a rule says of itself


@dataclass(frozen=True)
class Prediction:
    """What a network says of a canvas, after the filters that do not sharpen.

    Rules judge by `logits`. Tokens are drawn from `at`, after the filters that sharpen: these are
    applied where a rule draws only, for they cost more than all else that a rule does.
    """

    logits: Tensor  # [N, V]
    where: Tensor  # [B, L] bool, the positions of `logits`
    canvas: Canvas
    filters: tuple[Filter, ...] = ()  # those that sharpen

    def at(self, chosen: Tensor) -> Tensor:
        """Logits [n, V] to draw from, at chosen positions [B, L], all of them among `where`."""
        logits = self.plain(chosen)
        for change in self.filters:
            logits = change(logits, self.canvas, chosen)
        return logits

    def plain(self, chosen: Tensor) -> Tensor:
        """The same before the filters."""
        picked = chosen[self.where]
        return self.logits if bool(picked.all()) else self.logits[picked]

    @property
    def greedy(self) -> bool:
        """Whether only the most likely token is left."""
        return any(getattr(change, "greedy", False) for change in self.filters)


def commit(canvas: Canvas, chosen: Tensor, tokens: Tensor) -> Canvas:
    """Write `tokens` [B, L] at the chosen positions, which are decided from now on."""
    return replace(
        canvas,
        tokens=torch.where(chosen, tokens, canvas.tokens),
        noisy=canvas.noisy & ~chosen,
    )


def draw_at(canvas: Canvas, chosen: Tensor, seen: Prediction, rng: Rng) -> Tensor:
    """Tokens [B, L], drawn anew at the chosen positions, which `seen` must know."""
    tokens = canvas.tokens.clone()
    if seen.greedy:
        tokens[chosen] = most_likely(seen.plain(chosen))
    else:
        u = rng.fold(TOKENS).uniform(canvas.tokens.shape[1])
        tokens[chosen] = draw_tokens(seen.at(chosen), u[chosen])
    return tokens


class Step(ABC):
    """One rule for deciding positions; what a rule does not say of itself is as it is here."""

    exact: bool = False  # with a perfect denoiser and small steps, it samples the model's own law
    revises: bool = False  # it takes decisions back
    reopens: bool = False  # ... also where nothing is noisy, so that only s = 0 is the end
    verifies: bool = False  # its logits must come from `leave_one_out` of the denoiser
    absorbing: bool = True  # the noise that it undoes is masks

    @property
    def rule(self) -> "Step":
        """The rule itself, of one that is around another."""
        return self

    def wanted(self, canvas: Canvas, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """[B, L] bool, the positions whose logits the rule needs; t > s, [B] each."""
        return canvas.noisy

    def told(self, canvas: Canvas, t: Tensor, rng: Rng) -> Tensor:
        """[B], the times that the network is told; same rng."""
        return t

    def within(self, page: Canvas, rows: Sequence[int], starts: Sequence[int], width: int) -> Self:
        """The rule for blocks of a page: of these rows, `width` columns from these ones on."""
        return self

    @abstractmethod
    def __call__(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        """The next canvas; `seen` is of the positions that `wanted` named; same rng."""


class Chooser(Step):
    """A rule whose choice depends on the state and the logits alone, so that its texts have an
    exact likelihood (`likelihood.by_decoder`)."""

    @abstractmethod
    def choose(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor) -> Tensor:
        """[B, L] bool, the positions to decide."""

    def __call__(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        chosen = self.choose(canvas, seen, t, s)
        return commit(canvas, chosen, draw_at(canvas, chosen, seen, rng))


@dataclass(frozen=True)
class Around(Step):
    """A rule around another: what it does not say itself, the other one says."""

    step: Step

    def __post_init__(self):
        inner = self.step
        vars(self).update(
            revises=inner.revises,
            reopens=inner.reopens,
            verifies=inner.verifies,
            absorbing=inner.absorbing,
        )

    @property
    def rule(self) -> Step:
        return self.step.rule

    def within(self, page: Canvas, rows: Sequence[int], starts: Sequence[int], width: int) -> Self:
        return replace(self, step=self.step.within(page, rows, starts, width))

    def wanted(self, canvas: Canvas, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        return self.step.wanted(canvas, t, s, rng)

    def told(self, canvas: Canvas, t: Tensor, rng: Rng) -> Tensor:
        return self.step.told(canvas, t, rng)
