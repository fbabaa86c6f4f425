"""One page of HTML that shows a text as it emerges: a slider over the steps, and nothing to load.

A page is as large as 300 kB; where there are more steps than that has room for, some are left out.
"""

import html
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfumato.cli.colours import LEVELS, ON_DARK, ON_LIGHT, shade
from sfumato.cli.live import printable
from sfumato.decoding.logits import probability_of
from sfumato.errors import DataError
from sfumato.types import MOVED, Canvas

if TYPE_CHECKING:
    from sfumato.lm.pages import Page, PageReader

LARGEST = 300_000  # bytes of a page
FRAMES = 240  # kept at least, where there are so many

Cell = int | tuple[str, int, int]  # noisy positions; or text, the step that decided it, per mille


@dataclass(frozen=True)
class Frame:
    """A page, and how probable each token was when it was decided, [B, L]; nan: not known."""

    page: "Page"
    probs: Tensor


@dataclass
class Recorder:
    """A filter that changes nothing and remembers what the rule saw, for one request."""

    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    every: int = 1  # of how many pages one is kept
    last: Frame | None = None

    def __call__(self, logits: Tensor, canvas: Canvas, where: Tensor) -> Tensor:
        self.seen.append((logits, where))
        return logits

    def recorded(self, pages: "Iterator[Page]") -> "Iterator[Page]":
        """The pages, kept while they pass by; of many, fewer, so that memory has a bound."""
        for page in pages:
            self.last = self._frame(page)
            if page.step % self.every == 0:
                self.frames.append(self.last)
            if len(self.frames) > 2 * FRAMES:
                self.every, self.frames = 2 * self.every, self.frames[::2]
            yield page

    def _frame(self, page: "Page") -> Frame:
        tokens = page.canvas.tokens
        index = page.canvas.memory.get(MOVED)
        index = torch.arange(tokens.shape[1], device=tokens.device) if index is None else index
        index = index.expand(tokens.shape)
        old, origin = index >= 0, index.clamp_min(0)
        probs = torch.full(tokens.shape, torch.nan, device=tokens.device)
        if self.last is not None:
            probs = torch.where(old, self.last.probs.gather(1, origin), probs)
        newly = page.decided == page.step
        probs = probs.masked_fill(newly & (page.step > 0), torch.nan)
        for logits, where in self.seen:
            number = where.flatten().cumsum(0).view(where.shape) - 1  # row of `logits`
            chosen = newly & old & where.gather(1, origin)
            rows = number.gather(1, origin)[chosen]
            probs[chosen] = probability_of(tokens[chosen], logits[rows]).float()
        self.seen.clear()
        return Frame(replace(page, canvas=replace(page.canvas, memory={})), probs)


def write_page(recorder: Recorder, reader: "PageReader", path: Path, facts: str) -> str:
    """Write the page; returns what was written, in words."""
    assert recorder.last is not None, "pages were recorded"
    frames, every = [*recorder.frames], recorder.every
    if frames[-1].page.step != recorder.last.page.step:
        frames.append(recorder.last)
    cells = [_cells(reader, frame) for frame in frames]
    shown = [frame.page.step for frame in frames]
    while True:
        text = _document(shown, cells, facts)
        size = len(text.encode())
        if size <= LARGEST:
            break
        if len(shown) <= 2:
            raise DataError(
                f"a page of this text has {size // 1000} kB, more than {LARGEST // 1000}; write "
                "fewer or shorter texts"
            )
        keep = sorted({*range(0, len(shown), 2), len(shown) - 1})
        shown, cells, every = [shown[n] for n in keep], [cells[n] for n in keep], 2 * every
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror}; give --html another file"
        ) from None
    left_out = f", one step in {every} shown" if every > 1 else ""
    return f"{path}: {size // 1000} kB{left_out}"


def _cells(reader: "PageReader", frame: Frame) -> list[list[Cell]]:
    """Of every row, its text token by token."""
    return [_row(reader, frame, row) for row in range(len(frame.page.request.rows))]


def _row(reader: "PageReader", frame: Frame, row: int) -> list[Cell]:
    parts = [part for part in frame.page.request.rows[row] if isinstance(part, slice)]
    width = frame.probs.shape[1]
    places = iter([place for part in parts for place in range(*part.indices(width))])
    probs, cells = frame.probs[row].tolist(), []
    for piece in reader.pieces(frame.page, row, by_token=True):
        known = [probs[next(places)] for _ in piece.tokens]
        if piece.step < 0:
            cells += [1] * len(known)
        elif piece.step == 0 or not known or known[0] != known[0]:  # nan
            cells.append((_shown(piece.text), piece.step, -1))
        else:
            cells.append((_shown(piece.text), piece.step, round(1000 * known[0])))
    return cells


def _shown(text: str) -> str:
    return printable(text).replace("\r", "\u240d")


def _document(shown: list[int], cells: list[list[list[Cell]]], facts: str) -> str:
    rows = [
        [_changes(before, after) for before, after in zip([[], *row], row, strict=False)]
        for row in zip(*cells, strict=True)
    ]
    data = {"steps": shown, "rows": rows}
    final = [
        "".join("\u2591" * cell if isinstance(cell, int) else cell[0] for cell in row)
        for row in cells[-1]
    ]
    parts = {
        "FACTS": html.escape(facts),
        "TEXTS": "".join(f"<p>{html.escape(text)}</p>" for text in final),
        "DATA": _script(data),
        "LIGHT": _script([shade(n, ON_LIGHT) for n in range(LEVELS + 1)]),
        "DARK": _script([shade(n, ON_DARK) for n in range(LEVELS + 1)]),
        "VERSION": version("sfumato"),
    }
    template = files("sfumato.cli").joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def _script(value: Any) -> str:
    """JSON that ends no script, whatever it holds."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _changes(before: list[Cell], after: list[Cell]) -> list[list[Any]]:
    """What makes one row of cells the next: [at, how many go, the cells that come...]."""
    if len(before) == len(after):
        changes: list[list[Any]] = []
        for at, (old, new) in enumerate(zip(before, after, strict=True)):
            if old != new:
                if changes and changes[-1][0] + changes[-1][1] == at:
                    changes[-1][1] += 1
                    changes[-1].append(new)
                else:
                    changes.append([at, 1, new])
        return changes
    least = min(len(before), len(after))
    head = next((n for n in range(least) if before[n] != after[n]), least)
    alike = (n for n in range(least - head) if before[-1 - n] != after[-1 - n])
    tail = next(alike, least - head)
    return [[head, len(before) - head - tail, *after[head : len(after) - tail]]]
