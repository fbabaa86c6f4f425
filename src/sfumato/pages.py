"""What passes between a request and its text: the task, the pages, the result."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.options import GenerationOptions
from sfumato.rng import Rng
from sfumato.types import Canvas, Filter


@dataclass(frozen=True)
class Task:
    """One request on its way from options to text."""

    options: GenerationOptions
    prompts: tuple[str, ...]
    canvas: Canvas
    rng: Rng
    seed: int
    filters: tuple[Filter, ...]
    left: Tensor | None
    hidden: Tensor | None
    whole: bool = False  # the text is the whole canvas, as in infilling

    @property
    def num_steps(self) -> int:
        """Steps that will be taken at most."""
        return self.options.num_steps or int(self.canvas.noisy.sum(1).max())


@dataclass(frozen=True)
class Page:
    """The state of generation after one step."""

    step: int  # from 1; 0 is the blank page
    canvas: Canvas
    decided: Tensor  # [B, L] the step that decided each position; 0 given, -1 still noisy
    given: Tensor  # [B, P] text before the canvas that every row sees


@dataclass(frozen=True)
class Generation:
    """What came out, one entry a row."""

    texts: tuple[str, ...]  # the new text; with infilling, all of it
    prompts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]  # of `texts`
    num_steps: int  # steps taken
    tokens_per_step: float  # new positions decided a step, mean over rows
    seed: int

    @property
    def full_texts(self) -> tuple[str, ...]:
        """Prompt and new text of every row."""
        return tuple(p + t for p, t in zip(self.prompts, self.texts, strict=True))

    @property
    def text(self) -> str:
        """Prompt and new text of the first row."""
        return self.full_texts[0]

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return asdict(self)


def template(rows: Sequence[Sequence[int]], width: int, blank: int) -> tuple[Tensor, Tensor]:
    """Given tokens at the start of each row: tokens [B, width], and where they are [B, width]."""
    tokens = torch.full((len(rows), width), blank, dtype=torch.int64)
    given = torch.zeros((len(rows), width), dtype=torch.bool)
    for number, ids in enumerate(rows):
        tokens[number, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        given[number, : len(ids)] = True
    return tokens, given


def left_padded(rows: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Given tokens at the end of each row: tokens [B, P], and where the filling is [B, P]."""
    width = max(map(len, rows))
    turned, given = template([row[::-1] for row in rows], width, filler)
    return turned.flip(1), ~given.flip(1)
