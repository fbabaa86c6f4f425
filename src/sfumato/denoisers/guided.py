"""Classifier-free guidance: further towards a condition than the model would go by itself.

Ho & Salimans (arXiv 2207.12598), for text as in LLaDA (arXiv 2502.09992): logits c + w (c - u),
which is u + (1 + w) (c - u), of the prediction c with the condition and u without it. For the law
of one token that is p_c^(1 + w) p_u^-w, normalised (Schiff et al., arXiv 2412.10193).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from sfumato.arguments import Kind
from sfumato.denoisers.blocks import BlockReader, NetworkReader
from sfumato.denoisers.full import Full
from sfumato.types import ABSENT

Reads = TypeVar("Reads", Full, NetworkReader)
SCALE = Kind(Annotated[float, Field(ge=0, title="a number of at least 0", description="use 1")])


@dataclass(frozen=True)
class Guided:
    """A denoiser that sees a condition, pushed away from one that does not.

    Both rows go through the network in one forward, wherever one can be made of them. `scale` 0 is
    the denoiser itself, and costs no more.
    """

    denoiser: Full
    unconditional: Full
    scale: float
    hidden: Tensor | None = None  # [B, page] bool: what the unconditional one sees as masks
    start: int = 0  # of the present tokens on the page

    def __post_init__(self):
        SCALE.check("guidance", self.scale)  # alone: one is made anew for every block

    def given(
        self,
        left: Tensor | None = None,
        right: Tensor | None = None,
        left_hidden: Tensor | None = None,
    ) -> "Guided":
        """Both also seeing text around the tokens; parts of the page, if some of it is hidden."""
        hides_left, hides_right, start = left, right, self.start
        if left is not None:
            hides_left = self._hide(left, self.start)
            start += left.shape[1]
        if right is not None and self.hidden is not None:
            hides_right = self._hide(right, self.hidden.shape[1] - right.shape[1])
        return replace(
            self,
            denoiser=self.denoiser.given(left, right, left_hidden),
            unconditional=self.unconditional.given(hides_left, hides_right, left_hidden),
            start=start,
        )

    def __call__(
        self,
        tokens: Tensor,  # [B, L]
        t: Tensor,  # [B]
        where: Tensor | None = None,  # [B, L] bool
        *,
        segments: Tensor | None = None,  # [B, L]
    ) -> Tensor:
        """Logits [B, L, V] or [N, V]."""
        if self.scale == 0:
            return self.denoiser(tokens, t, where, segments=segments)
        hides = self._hide(tokens, self.start)
        if self._both is None:
            shown = self.denoiser(tokens, t, where, segments=segments)
            return self._guide(shown, self.unconditional(hides, t, where, segments=segments))
        wanted = None if where is None else _twice(where)
        whole = None if segments is None else _twice(segments)
        logits = self._both(torch.cat((tokens, hides)), _twice(t), wanted, segments=whole)
        return self._guide(*logits.chunk(2))

    def leave_one_out(self, tokens: Tensor, t: Tensor, where: Tensor) -> Tensor:
        """Logits [N, V] at `where`, guided, each as if its position were masked."""
        if self.scale == 0:
            return self.denoiser.leave_one_out(tokens, t, where)
        hides = self._hide(tokens, self.start)
        if self._both is None:
            shown = self.denoiser.leave_one_out(tokens, t, where)
            return self._guide(shown, self.unconditional.leave_one_out(hides, t, where))
        both = torch.cat((tokens, hides))
        return self._guide(*self._both.leave_one_out(both, _twice(t), _twice(where)).chunk(2))

    @cached_property
    def _both(self) -> Full | None:
        return self.denoiser.beside(self.unconditional)

    def _hide(self, tokens: Tensor, start: int) -> Tensor:
        """Tokens as the unconditional denoiser sees them; they stand at `start` on the page."""
        if self.hidden is None:
            return tokens
        here = self.hidden[:, start : start + tokens.shape[1]]
        return tokens.masked_fill(here, self.denoiser.mask_id)

    def _guide(self, shown: Tensor, unshown: Tensor) -> Tensor:
        return pushed(shown, unshown, self.scale)


@dataclass(frozen=True)
class GuidedReader(BlockReader):
    """A reader that sees a condition, pushed away from one that does not; both go along."""

    shown: BlockReader
    unshown: BlockReader
    scale: float

    def __post_init__(self):
        SCALE.check("guidance", self.scale)

    @property
    def size(self) -> int:  # type: ignore[override]
        return self.shown.size

    @property
    def settles(self) -> bool:  # type: ignore[override]
        return self.shown.settles

    @property
    def room(self) -> int:
        return min(self.shown.room, self.unshown.room)

    def begin(self, tokens: Tensor, lengths: Tensor) -> "GuidedReader":
        return self._both(lambda reader: reader.begin(tokens, lengths))

    def advance(
        self, tokens: Tensor, t: Tensor, where: Tensor, keep: Tensor
    ) -> tuple[Tensor, "GuidedReader"]:
        c, shown = self.shown.advance(tokens, t, where, keep)
        u, unshown = self.unshown.advance(tokens, t, where, keep)
        return pushed(c, u, self.scale), GuidedReader(shown, unshown, self.scale)

    def settled(self, tokens: Tensor, keep: Tensor) -> "GuidedReader":
        return self._both(lambda reader: reader.settled(tokens, keep))

    def leave_one_out(self, tokens: Tensor, t: Tensor, where: Tensor) -> Tensor:
        c, u = (one.leave_one_out(tokens, t, where) for one in (self.shown, self.unshown))
        return pushed(c, u, self.scale)

    def select(self, rows: Tensor) -> "GuidedReader":
        return self._both(lambda reader: reader.select(rows))

    def _both(self, change: Callable[[BlockReader], BlockReader]) -> "GuidedReader":
        return GuidedReader(change(self.shown), change(self.unshown), self.scale)


def pushed(shown: Tensor, unshown: Tensor, scale: float) -> Tensor:
    """What is impossible with the condition, as the mask token is, stays impossible."""
    guided = shown + scale * (shown - unshown)
    return torch.where(shown.isneginf(), shown, guided)


def towards_source(denoiser: Full, source: Tensor, scale: float) -> Guided:
    """Towards a source [B, S]; the encoder runs once, and not for the side that lacks it."""
    return Guided(*sides(denoiser, source), scale)


def sides(denoiser: Reads, source: Tensor) -> tuple[Reads, Reads]:
    """What has read a source [B, S], and what has read none in its place."""
    shown = denoiser.conditioned(source)
    if shown.source is None:  # text on the left, then
        return shown, denoiser.conditioned(torch.full_like(source, ABSENT))
    return shown, shown.sourced(shown.source.dropped())


def towards_prompt(
    denoiser: Full,
    scale: float,
    hidden: Tensor,  # [B, page] bool, the prompt on the page
    left: Tensor | None = None,  # [B, P] or before it
    left_hidden: Tensor | None = None,  # [B, P] bool, padding
    left_prompt: Tensor | None = None,  # [B, P] bool, what of it is prompt
) -> Guided:
    """Towards given text, which the other side sees as masks."""
    other = denoiser
    if left is not None and left_prompt is not None:
        masked = left.masked_fill(left_prompt, denoiser.mask_id)
        other = denoiser.given(left=masked, left_hidden=left_hidden)
        denoiser = denoiser.given(left=left, left_hidden=left_hidden)
    return Guided(denoiser, other, scale, hidden)


def _twice(tensor: Tensor) -> Tensor:
    return torch.cat((tensor, tensor))
