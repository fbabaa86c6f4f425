"""The values that flow through the package.

Shapes: B rows, L positions, V vocabulary with the mask token, N chosen positions in row-major order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from sfumato.rng import Rng


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
class Loss:
    """What an objective returns."""

    value: Tensor  # scalar to backpropagate, nats per trainable token
    nll: Tensor  # [B, L] the objective's unweighted estimate of its bound, 0 where not counted
    count: Tensor  # scalar, trainable tokens
    correct: Tensor  # scalar, corrupted positions whose most likely token is the clean one
    corrupted: Tensor  # scalar, positions that were scored


class Denoiser(Protocol):
    """Reads noisy tokens, returns logits of the clean token AT each position."""

    def __call__(self, tokens: Tensor, t: Tensor, where: Tensor | None = None) -> Tensor:
        """tokens [B, L], t [B], where [B, L] bool -> [B, L, V], or [N, V] at `where`."""
        ...

    def given(self, left: Tensor | None = None, right: Tensor | None = None) -> "Denoiser":
        """The same denoiser, also seeing text before and after the tokens; [B, P] each."""
        ...


class Step(Protocol):
    """One rule for deciding positions.

    `exact`: with a perfect denoiser, and as steps get small, it samples the model's own law.
    """

    exact: bool

    def __call__(self, canvas: Canvas, logits: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        """logits [N, V] at the noisy positions; t > s [B], the times before and after."""
        ...


class Objective(Protocol):
    """Turns a batch into a loss, calling the denoiser itself."""

    def __call__(self, denoiser: Denoiser, batch: Batch, rng: Rng) -> Loss: ...


Filter = Callable[[Tensor, Canvas], Tensor]  # logits [N, V] at the noisy positions -> new logits
