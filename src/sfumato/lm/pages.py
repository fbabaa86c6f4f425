"""What passes between a request and its text: the pages, the result, and their reader."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass
from itertools import groupby, takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sfumato.decoding.constrained import Span
from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.request import Request, RowPart
from sfumato.decoding.rules import rule_name
from sfumato.grammar.automaton import SPACED
from sfumato.types import MOVED, Canvas

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NOISE = "\u2591"  # a shade, for what is not decided yet

REASONS = (
    "end",  # the text ended by itself
    "length",  # as many tokens as were asked for are written
    "stop",  # one of the strings that were to stop it is next
    "canvas",  # the model's canvas is full; the text is cut there
    "unfinished",  # writing was broken off
)


@dataclass(frozen=True)
class Page:
    """The state of generation after one step."""

    request: Request
    step: int  # from 1; 0 is the blank page
    canvas: Canvas
    decided: Tensor  # [B, L] the step that decided each position; 0 given, -1 still noisy

    @classmethod
    def blank(cls, request: Request) -> "Page":
        return cls(request, 0, request.canvas, torch.where(request.canvas.fixed, 0, -1))

    @staticmethod
    def last(pages: Iterator["Page"]) -> "Page":
        return deque(pages, maxlen=1)[0]

    def after(self, canvas: Canvas) -> "Page":
        """The page of the next step, whose positions may have moved."""
        tokens, noisy, decided = self.canvas.tokens, self.canvas.noisy, self.decided
        moved = canvas.memory.get(MOVED)
        if moved is not None:
            old = moved >= 0
            tokens, noisy, decided = (
                each.gather(1, moved.clamp_min(0)) for each in (tokens, noisy, decided)
            )
            tokens, noisy = torch.where(old, tokens, canvas.tokens), noisy & old
            decided = decided.masked_fill(~old, 0)
        changed = (tokens != canvas.tokens) | (noisy & ~canvas.noisy)
        decided = torch.where(changed, self.step + 1, decided)
        decided = torch.where(canvas.noisy, -1, decided)
        return Page(self.request, self.step + 1, canvas, decided)


@dataclass(frozen=True)
class Generation:
    """What came out, one entry a row."""

    texts: tuple[str, ...]  # what is new
    full_texts: tuple[str, ...]  # with what was given, which stays as it was to the byte
    fills: tuple[tuple[str, ...], ...]  # with infilling, the new text of each gap
    tokens: tuple[tuple[int, ...], ...]  # of `texts`; before a stop, the last may hold more
    finish_reasons: tuple[str, ...]  # why each row's text stops where it does: see `REASONS`
    num_steps: int  # steps taken
    tokens_per_step: float  # new positions decided a step, mean over rows
    options: GenerationOptions  # these make the same texts again
    log_probs: tuple[float, ...] = ()  # log p of each row's fills, where it was asked for
    searched: tuple[str, ...] = ()  # ... the best of "all" fills, or of those that were "drawn"

    @property
    def text(self) -> str:
        """The first row, with what was given."""
        return self.full_texts[0]

    @property
    def seed(self) -> int | None:
        return self.options.seed

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        made = asdict(self)
        made["options"]["step"] = rule_name(self.options.step)
        return made


class Piece(NamedTuple):
    """A stretch of a page's text."""

    text: str  # empty where it is noise
    step: int  # that decided it; 0 given, -1 still noisy
    tokens: tuple[int, ...]
    stopped: bool = False  # what would come next is a stop


class _Run(NamedTuple):
    """Neighbouring positions that are all decided, or all noisy."""

    ids: list[int]
    steps: list[int]
    before: int | None  # the given token left of it
    led: bool  # its first token begins with a space that is not its own
    first: bool  # nothing of its part is left of it


@dataclass(frozen=True)
class PageReader:
    """Turns pages into text: given text as it was given, tokens decoded, cut at the first end."""

    tokenizer: "PreTrainedTokenizerFast"
    ends: frozenset[int]  # ids that end a text

    def finish(self, page: Page) -> Generation:
        """The result, from the last page of a request."""
        request = page.request
        rows = [list(self.pieces(page, row)) for row in range(len(request.rows))]
        fills = tuple(tuple(p.text for p in pieces if p.tokens) for pieces in rows)
        gaps = isinstance(request.rows[0][-1], str)
        new = float((~page.canvas.fixed & ~page.canvas.noisy).sum()) / len(rows)
        return Generation(
            texts=tuple(map("".join, fills)),
            full_texts=tuple("".join(piece.text for piece in pieces) for pieces in rows),
            fills=fills if gaps else (),
            tokens=tuple(tuple(i for p in pieces for i in p.tokens) for pieces in rows),
            finish_reasons=tuple(self.reason(page, row) for row in range(len(rows))),
            num_steps=page.step,
            tokens_per_step=new / max(page.step, 1),
            options=request.options,
        )

    def reason(self, page: Page, row: int) -> str:
        """Why a row's text stops where it does, one of `REASONS`; gaps have the asked length."""
        parts = [part for part in page.request.rows[row] if isinstance(part, slice)]
        ids, steps, fixed = (
            [n for part in parts for n in values[row, part].tolist()]
            for values in (page.canvas.tokens, page.decided, page.canvas.fixed)
        )
        # what was never written is filling, though it looks like ends
        ended = (n for n, i in enumerate(ids) if i in self.ends and steps[n] > 0 and not fixed[n])
        end = next(ended, len(ids))
        pieces = list(self.pieces(page, row)) if page.request.options.stop else []
        if any(piece.stopped for piece in pieces):
            return "stop"
        if any(step < 0 for step in steps[:end]):
            return "unfinished"
        if end < len(ids):
            return "end"
        options = page.request.options
        asked = isinstance(page.request.rows[row][-1], str) or options.length == fixed.count(False)
        return "length" if asked else "canvas"

    def show(self, page: Page, row: int = 0, noise: str = NOISE) -> str:
        """One row of a page, with `noise` for every position that is not decided yet."""
        pieces = self.pieces(page, row)
        return "".join(noise * len(p.tokens) if p.step < 0 else p.text for p in pieces)

    def pieces(
        self, page: Page, row: int, *, by_step: bool = False, by_token: bool = False
    ) -> Iterator[Piece]:
        """One row from left to right; with `by_step`, apart wherever another step decided, with
        `by_token` at every token."""
        for part in page.request.rows[row]:
            if isinstance(part, str):
                yield Piece(part, 0, ())
                continue
            for run in _runs(page, row, part):
                if run.steps[0] < 0:
                    yield Piece("", -1, tuple(run.ids))
                    continue
                end = next((n for n, i in enumerate(run.ids) if i in self.ends), None)
                kept = run._replace(ids=run.ids[:end], steps=run.steps[:end])
                text = self._decode(kept)
                cut = self._cut(page, row, part, text) if run.first else None
                if cut is not None:
                    text = text[:cut]
                    reaching = self._reaching(kept, text)
                    kept = kept._replace(ids=kept.ids[:reaching], steps=kept.steps[:reaching])
                if by_step or by_token:
                    yield from self._split(kept, text, by_token)
                elif kept.ids:
                    yield Piece(text, max(kept.steps), tuple(kept.ids))
                if cut is not None:
                    yield Piece("", 0, (), stopped=True)
                if end is not None or cut is not None:
                    return

    def decode(self, ids: list[int]) -> str:
        """The text of tokens, as it is: special tokens are no part of it."""
        text = self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _decode(self, run: _Run) -> str:
        """Its text as it reads after the token before it: some tokenizers put spaces between."""
        text = self.decode(run.ids)
        if run.before is not None:
            lead, whole = self.decode([run.before]), self.decode([run.before, *run.ids])
            text = whole.removeprefix(lead) if whole.startswith(lead) else text
        return text.removeprefix(" ") if run.led else text

    def _cut(self, page: Page, row: int, part: slice, text: str) -> int | None:
        """Where the first stop begins in the text of a part, as far as it is decided."""
        stops = page.request.options.stop
        if stops and (page.decided[row, part] < 0).any():
            text = text.rstrip("\ufffd")  # half a character, which may become whole
        found = [place for stop in stops if (place := text.find(stop)) >= 0]
        return min(found, default=None)

    def _reaching(self, run: _Run, text: str) -> int:
        """How many of the run's tokens spell the text, which is the beginning of its own."""

        def spelt(count: int) -> int:
            return _shared(self._decode(run._replace(ids=run.ids[:count])), text)

        return bisect_left(range(len(run.ids) + 1), len(text), key=spelt)

    def _split(self, run: _Run, text: str, by_token: bool) -> Iterator[Piece]:
        """A character whose bytes several tokens hold goes to the last of them.

        Tokens are decoded behind the last place where their text is known to begin, and the token
        before it: what is decoded grows with the text, and not with its square.
        """
        start = done = agreed = known = 0  # tokens, characters; tokens, characters that agree
        numbers = range(len(run.ids))
        for _, group in groupby(numbers, key=None if by_token else run.steps.__getitem__):
            stop = list(group)[-1] + 1
            upto = len(text)
            if stop < len(run.ids):
                behind = run._replace(ids=run.ids[agreed:stop])
                if agreed:
                    behind = behind._replace(before=run.ids[agreed - 1], led=False)
                so_far = self._decode(behind)
                pairs = zip(so_far, text[known : known + len(so_far)], strict=False)
                alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
                upto = max(done, known + alike)
                if alike == len(so_far):
                    agreed, known = stop, upto
            yield Piece(text[done:upto], run.steps[start], tuple(run.ids[start:stop]))
            start, done = stop, upto


def _shared(one: str, other: str) -> int:
    """Characters with which both begin."""
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return len(list(alike))


def _runs(page: Page, row: int, part: slice) -> Iterator[_Run]:
    ids, steps = page.canvas.tokens[row, part].tolist(), page.decided[row, part].tolist()
    for _, group in groupby(range(len(ids)), key=lambda n: steps[n] < 0):
        first, *others = group
        run = slice(first, first + 1 + len(others))
        before = None if first else _before(page, row, part.start)
        led = not first and (row, part.start) in page.request.led
        yield _Run(ids[run], steps[run], before, led, not first)


def _before(page: Page, row: int, start: int) -> int | None:
    """The given token left of a part."""
    if start:
        return int(page.canvas.tokens[row, start - 1])
    left = page.request.left
    return None if left is None or not left.shape[1] else int(left[row, -1])


def spans(rows: Sequence[Sequence[RowPart]], led: Set[tuple[int, int]]) -> list[Span]:
    """What a grammar has to fill: every stretch that is written, and how it begins."""
    written = [(row, part) for row, parts in enumerate(rows) for part in parts]
    places = [(row, part.start, part.stop) for row, part in written if isinstance(part, slice)]
    return [Span(*place, SPACED if place[:2] in led else 0) for place in places]


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
