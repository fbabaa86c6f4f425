"""The values that flow through the package.

Shapes: B rows, L positions, V vocabulary with the mask token, N chosen positions, row by row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from sfumato.rng import Rng

MOVED = "moved"  # in a canvas's memory: where each position was on the page before; -1: it is new
ABSENT = -1  # in place of a token of a source: nothing is there


@dataclass(frozen=True)
class Canvas:
    """The whole state of generation; every step returns a new one."""

    tokens: Tensor  # [B, L] int64
    noisy: Tensor  # [B, L] bool, still to be decided
    fixed: Tensor  # [B, L] bool, given text: never written
    memory: Mapping[str, Tensor] = field(default_factory=dict)  # what a rule keeps, [B, L, ...]


@dataclass(frozen=True)
class Batch:
    """Rows of training text."""

    tokens: Tensor  # [B, L] int64, clean
    trainable: Tensor  # [B, L] bool: may be corrupted, counts in the loss
    segments: Tensor  # [B, L] int64, document of each position: attention never crosses them
    slots: Tensor  # [B] int64, place of the row in the run's order: seeds its corruption


@dataclass(frozen=True)
class PairBatch(Batch):
    """Rows of training text, each with the text that it is written from."""

    source: Tensor  # [B, S] int64, `ABSENT` in padding, and all over a row without a source


@dataclass(frozen=True)
class Loss:
    """What an objective returns."""

    value: Tensor  # scalar to backpropagate, nats per trainable token
    nll: Tensor  # [B, L] the objective's unweighted estimate of its bound, 0 where not counted
    count: Tensor  # scalar, trainable tokens
    correct: Tensor  # scalar, corrupted positions whose most likely token is the clean one
    corrupted: Tensor  # scalar, positions that were scored
    bounds: bool = True  # whether nll is on average a bound for the model as it will be read


class Denoiser(Protocol):
    """Reads noisy tokens, returns logits of the clean token AT each position.

    The mask token has probability 0 in every prediction: its logit is -inf.
    """

    def __call__(
        self,
        tokens: Tensor,  # [B, L]
        t: Tensor,  # [B]
        where: Tensor | None = None,  # [B, L] bool
        *,
        segments: Tensor | None = None,  # [B, L]
    ) -> Tensor:
        """Logits [B, L, V], or [N, V] at the positions `where`."""
        ...

    def given(self, left: Tensor | None = None, right: Tensor | None = None) -> "Denoiser":
        """The same denoiser, also seeing text [B, P] before and after the tokens."""
        ...


class Integrand(Protocol):
    """What an objective wants to know of the logits at some positions."""

    def __call__(self, logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """logits [n, V] at positions `part` of [N] -> (nll [n] with gradient, correct [n])."""
        ...


class Scorer(Protocol):
    """What objectives train: it never returns the logits of a whole batch."""

    def score(
        self,
        tokens: Tensor,  # [B, L]
        t: Tensor,  # [B]
        where: Tensor,  # [B, L] bool
        targets: Tensor,  # [N] clean tokens at `where`
        weights: Tensor,  # [N]
        *,
        segments: Tensor | None = None,  # [B, L]
        integrand: Integrand | None = None,  # cross-entropy of the targets if None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scalar sum of weights * nll with gradient; nll [N]; correct [N] bool."""
        ...


class Trainable(Denoiser, Scorer, Protocol):
    """A denoiser that objectives can train."""


# logits [N, V] at the positions `where` [B, L] of a canvas -> new logits
Filter = Callable[[Tensor, Canvas, Tensor], Tensor]


@dataclass(frozen=True)
class Sharp:
    """Logits as tokens are drawn from them: after the filters that sharpen, which are applied where
    a rule draws only: they cost more than all else that a rule does."""

    logits: Tensor  # [N, V]
    where: Tensor  # [B, L] bool, the positions of `logits`
    canvas: Canvas
    filters: tuple[Filter, ...] = ()

    def at(self, chosen: Tensor) -> Tensor:
        """Logits [n, V] at chosen positions [B, L], all of them among `where`."""
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


class Step(Protocol):
    """One rule for deciding positions.

    `exact`: with a perfect denoiser, and as steps get small, it samples the model's own law. More
    attributes are asked for where a rule has them. `verifies`: its logits must come from
    `leave_one_out` of the denoiser. `revises`: it takes decisions back. `reopens`: also where
    nothing is noisy, so only s = 0 is the end. `told(canvas, t, rng)`: the times [B] that the
    network is told, where they are not t; same rng. `corruption`: the noise that it undoes, where
    that is not masks.
    """

    @property
    def exact(self) -> bool: ...

    def wanted(self, canvas: Canvas, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """[B, L] bool, the positions whose logits the rule needs; t > s, [B] each."""
        ...

    def __call__(
        self,
        canvas: Canvas,
        where: Tensor,
        logits: Tensor,
        sharp: Sharp,
        t: Tensor,
        s: Tensor,
        rng: Rng,
    ) -> Canvas:
        """logits [N, V] at the positions `where`, which `wanted` named; same rng.

        Tokens are drawn from `sharp`; what is sure is judged by `logits`.
        """
        ...


@runtime_checkable
class Objective(Protocol):
    """Turns a batch into a loss, calling the denoiser itself; rng has one key, the run's."""

    def __call__(self, denoiser: Trainable, batch: Batch, rng: Rng) -> Loss: ...
