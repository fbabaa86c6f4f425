"""Parts of a page: blocks cut out and put back, filters for them, and what follows a text's end."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.noise.corruption import Corruption
from sfumato.rng import Rng
from sfumato.types import Canvas, Filter


def blank(corruption: Corruption, template: Tensor, fixed: Tensor, rng: Rng) -> Canvas:
    """A canvas of pure noise around given text: template [B, L], fixed [B, L] bool."""
    noise = corruption.prior((template.shape[0], template.shape[1]), rng)
    return Canvas(torch.where(fixed, template, noise), noisy=~fixed, fixed=fixed)


def filled(page: Canvas, ends: Sequence[int], filler: int) -> Canvas:
    """The page with the rest of a row filled, as if given, where the row's text is over."""
    after = behind_end(page, ends)
    if not bool(after.any()):
        return page
    return replace(
        page,
        tokens=page.tokens.masked_fill(after, filler),
        noisy=page.noisy & ~after,
        fixed=page.fixed | after,
    )


def behind_end(page: Canvas, ends: Sequence[int]) -> Tensor:
    """[B, L] bool: what is not given behind the first of `ends` that a row has written, if nothing
    before it is noisy."""
    found = torch.isin(page.tokens, torch.tensor(ends, device=page.tokens.device))
    found &= ~page.fixed & (~page.noisy).long().cumprod(1).bool()
    return (found.cumsum(1) > found.long()) & ~page.fixed


Place = tuple[slice | Tensor, slice | Tensor]  # an index of a page [B, L]: where a block of it is


def on_page(change: Filter, page: Canvas, at: Place) -> Filter:
    """A filter for blocks of a page; one that is `blind` to the canvas as it is."""
    return change if getattr(change, "blind", False) else OnPage(change, page, at)


@dataclass(frozen=True)
class OnPage:
    """A filter that sees the whole page, and positions on it, where the step sees a block."""

    change: Filter
    page: Canvas
    at: Place

    @property
    def sharpens(self) -> bool:
        return getattr(self.change, "sharpens", False)

    @property
    def greedy(self) -> bool:
        return getattr(self.change, "greedy", False)

    def __call__(self, logits: Tensor, canvas: Canvas, where: Tensor) -> Tensor:
        wide = torch.zeros_like(self.page.noisy)
        wide[self.at] = where
        return self.change(logits, pasted(self.page, self.at, canvas), wide)


def pasted(page: Canvas, at: Place, part: Canvas) -> Canvas:
    """The page with a block's tokens in it."""
    tokens, noisy = page.tokens.clone(), page.noisy.clone()
    tokens[at], noisy[at] = part.tokens, part.noisy
    return replace(page, tokens=tokens, noisy=noisy)


def columns(canvas: Canvas, start: int, stop: int) -> Canvas:
    return Canvas(
        canvas.tokens[:, start:stop],
        canvas.noisy[:, start:stop],
        canvas.fixed[:, start:stop],
        {key: kept[:, start:stop] for key, kept in canvas.memory.items()},
    )


def paste(canvas: Canvas, start: int, part: Canvas) -> Canvas:
    """The page with a block in it; of the block's memory, what the page had from the first."""

    def pasted(page: Tensor, block: Tensor) -> Tensor:
        page = page.clone()
        page[:, start : start + block.shape[1]] = block
        return page

    return replace(
        canvas,
        tokens=pasted(canvas.tokens, part.tokens),
        noisy=pasted(canvas.noisy, part.noisy),
        fixed=pasted(canvas.fixed, part.fixed),
        memory={key: pasted(kept, part.memory[key]) for key, kept in canvas.memory.items()},
    )
