"""Classifier-free guidance: further towards a condition than the model would go by itself.

Ho & Salimans (arXiv 2207.12598), for text as in LLaDA (arXiv 2502.09992): logits c + w (c - u),
which is u + (1 + w) (c - u), of the prediction c with the condition and u without it. For the law
of one token that is p_c^(1 + w) p_u^-w, normalised (Schiff et al., arXiv 2412.10193).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sfumato.arguments import Kind
from sfumato.denoisers.full import Cached, Full
from sfumato.errors import ConfigError
from sfumato.types import ABSENT

SCALE = Kind(Annotated[float, Field(ge=0, title="a number of at least 0", description="use 1")])


@dataclass(frozen=True)
class Guided:
    """A denoiser that sees a condition, pushed away from one that does not.

    Both rows go through the network in one forward, wherever one can be made of them. `scale` 0 is
    the denoiser itself, and costs no more.
    """

    denoiser: Full | Cached
    unconditional: Full | Cached
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
            denoiser=_given(self.denoiser, left, right, left_hidden),
            unconditional=_given(self.unconditional, hides_left, hides_right, left_hidden),
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
        if not (isinstance(self.denoiser, Full) and isinstance(self.unconditional, Full)):
            raise ConfigError("a cache cannot leave tokens out; use a step rule that never revises")
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
        if isinstance(self.denoiser, Full) and isinstance(self.unconditional, Full):
            return self.denoiser.beside(self.unconditional)
        return None

    def _hide(self, tokens: Tensor, start: int) -> Tensor:
        """Tokens as the unconditional denoiser sees them; they stand at `start` on the page."""
        if self.hidden is None:
            return tokens
        here = self.hidden[:, start : start + tokens.shape[1]]
        return tokens.masked_fill(here, self.denoiser.mask_id)

    def _guide(self, shown: Tensor, unshown: Tensor) -> Tensor:
        """What is impossible with the condition, as the mask token is, stays impossible."""
        guided = shown + self.scale * (shown - unshown)
        return torch.where(shown.isneginf(), shown, guided)


def towards_source(denoiser: Full | Cached, source: Tensor, scale: float) -> Guided:
    """Towards a source [B, S]; the encoder runs once, and not for the side that lacks it."""
    shown = denoiser.conditioned(source)
    if shown.source is None:  # text on the left, then
        return Guided(shown, denoiser.conditioned(torch.full_like(source, ABSENT)), scale)
    return Guided(shown, shown.sourced(shown.source.dropped()), scale)


def towards_prompt(
    denoiser: Full | Cached,
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


def _given(
    denoiser: Full | Cached, left: Tensor | None, right: Tensor | None, left_hidden: Tensor | None
) -> Full | Cached:
    return denoiser.given(left=left, right=right, left_hidden=left_hidden)


def _twice(tensor: Tensor) -> Tensor:
    return torch.cat((tensor, tensor))
