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


Look = Callable[[Tensor, Tensor, Tensor], Tensor]  # tokens, t, where -> logits [N, V]


@runtime_checkable
class LeavesOut(Protocol):
    """A denoiser for rules that verify what is decided."""

    def leave_one_out(self, tokens: Tensor, t: Tensor, where: Tensor) -> Tensor:
        """Logits [N, V] at `where`, each about as if its position were masked."""
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


@runtime_checkable
class Objective(Protocol):
    """Turns a batch into a loss, calling the denoiser itself; rng has one key, the run's."""

    def __call__(self, denoiser: Trainable, batch: Batch, rng: Rng) -> Loss: ...
