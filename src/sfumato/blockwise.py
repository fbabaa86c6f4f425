"""Generation block after block, every row at its own pace.

Rows of a batch are at different blocks, at different steps, and end at different times; what a
row gets does not depend on its neighbours. One pass of the network serves all: rows whose block is
noisy are denoised, rows whose block has just been finished have it read.

Shapes: B rows of the page and W columns; R rows that are still written; S positions of a block.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.errors import ConfigError
from sfumato.generate import OnPage, pasted, placed
from sfumato.readers import Reader
from sfumato.rng import Rng
from sfumato.types import Canvas, Filter, Sharp, Step


@dataclass(frozen=True)
class _Rows:
    """How far the rows that are still written have got; all [R]."""

    number: Tensor  # the row of the page
    first: Tensor  # the first block to write, and the last
    last: Tensor
    block: Tensor
    tick: Tensor  # steps taken in the block
    share: Tensor  # steps that it has
    reading: Tensor  # bool: the block is finished, or given, and is only read

    def select(self, rows: Tensor) -> "_Rows":
        return _Rows(*(part[rows] for part in vars(self).values()))


@dataclass(frozen=True)
class _Group:
    """Rows that take the same kind of step: those that begin a block, or those that go on."""

    index: Tensor  # [n] among the R rows
    part: Canvas  # their blocks
    t: Tensor
    s: Tensor
    rng: Rng
    step: Step


@torch.no_grad()
def generate_blocks(
    reader: Reader,
    canvas: Canvas,
    step: Step,
    rng: Rng,
    *,
    num_steps: int | None = None,
    filters: Sequence[Filter] = (),
    ends: Sequence[int] = (),
    filler: int = 0,
) -> Iterator[Canvas]:
    """Yield the page [B, W] after every pass; a text begins in the first column.

    `num_steps` is shared out over the blocks that a row writes (None: one step for every noisy
    position). Where one of `ends` is written, and nothing before it is noisy, the row is done: the
    rest counts as given, filled with `filler`, and no more is computed for it.
    """
    size, width = reader.size, canvas.tokens.shape[1]
    page = _widened(canvas, -width % size, filler)
    noisy = page.noisy.unflatten(1, (-1, size)).any(-1)
    alive = noisy.any(1).nonzero()[:, 0]
    if not len(alive):
        yield canvas
        return
    first = noisy[alive].long().argmax(1)
    last = noisy.shape[1] - 1 - noisy[alive].flip(1).long().argmax(1)
    most = int((last - first).max()) + 1
    if num_steps is not None and num_steps < most:
        raise ConfigError(
            f"num_steps {num_steps} is less than the {most} blocks of {size} positions to write; "
            f"use num_steps={most} or more, or none"
        )
    writer = _Writer(step, rng, num_steps, tuple(filters), tuple(ends), filler, size)
    zeros = torch.zeros_like(alive)
    rows = _Rows(alive, first, last, first, zeros, zeros, zeros.bool())
    rows = replace(rows, share=writer.shares(page, rows))
    reader, memory = reader.begin(page.tokens[alive], first * size), {}
    while len(rows.number):
        page, memory, reader, rows = writer.tick(page, memory, reader, rows)
        yield _narrowed(page, width)
        alive = (rows.block <= rows.last).nonzero()[:, 0]
        if len(alive) < len(rows.number):
            rows, reader = rows.select(alive), reader.select(alive)
            memory = {key: values[alive] for key, values in memory.items()}


@dataclass(frozen=True)
class _Writer:
    """What does not change from tick to tick."""

    step: Step
    rng: Rng
    num_steps: int | None
    filters: tuple[Filter, ...]
    ends: tuple[int, ...]
    filler: int
    size: int

    def shares(self, page: Canvas, rows: _Rows) -> Tensor:
        """[R] steps that each row's block has."""
        if self.num_steps is None:
            return self._block(page, rows, {}).noisy.sum(1).clamp_min(1)
        number, blocks = rows.block - rows.first, rows.last - rows.first + 1
        return self.num_steps // blocks + (number < self.num_steps % blocks)

    def tick(
        self, page: Canvas, memory: Mapping[str, Tensor], reader: Reader, rows: _Rows
    ) -> tuple[Canvas, Mapping[str, Tensor], Reader, _Rows]:
        """One pass over the next block of every row."""
        finished = None
        if reader.room > 1 and bool(rows.reading.all()):  # read it with the next one, in one pass
            beyond = self._moved(page, rows, rows.reading, torch.zeros_like(rows.reading))
            if not bool(beyond.reading.any()) and bool((beyond.block <= beyond.last).all()):
                finished, rows = self._block(page, rows, {}).tokens, beyond
        before = self._block(page, rows, memory)
        groups = self._groups(page, before, rows)
        where = torch.zeros_like(before.noisy)
        seen = torch.zeros(len(where), dtype=torch.float64, device=where.device)
        for group in groups:
            args = (group.part, group.t, group.s, group.rng)
            where[group.index] = group.step.wanted(*args)
            told = getattr(self.step, "told", None)
            seen[group.index] = told(group.part, group.t, group.rng) if told else group.t
        logits, reader = self._look(reader, before.tokens, seen, where, rows.reading, finished)
        tokens, noisy, kept = before.tokens.clone(), before.noisy.clone(), {}
        owner = where.nonzero()[:, 0]
        for group in groups:
            own = logits[torch.isin(owner, group.index)] if len(groups) > 1 else logits
            after = self._stepped(page, rows.select(group.index), group, where, own)
            tokens[group.index], noisy[group.index] = after.tokens, after.noisy
            for key, values in after.memory.items():
                empty = values.new_zeros((len(tokens), *values.shape[1:]))
                kept.setdefault(key, empty)[group.index] = values
        over = rows.reading | ~noisy.any(1)
        if getattr(self.step, "reopens", False):
            over &= rows.reading | (rows.tick + 1 >= rows.share)
        after = replace(before, tokens=tokens, noisy=noisy)
        page = pasted(page, self._at(rows), after)
        page, ended = self._ended(page, rows, after, over)
        return page, kept, reader, self._moved(page, rows, over, ended)

    def _groups(self, page: Canvas, part: Canvas, rows: _Rows) -> list[_Group]:
        """A rule remembers within a block: rows that begin one know nothing yet."""
        t = (1 - rows.tick.double() / rows.share).clamp_min(0)
        s = (1 - (rows.tick + 1).double() / rows.share).clamp_min(0)
        rng = self.rng.select(rows.number).fold(rows.block).fold(rows.tick)
        groups = []
        for begins in (True, False):
            index = (((rows.tick == 0) == begins) & ~rows.reading).nonzero()[:, 0]
            if len(index):
                memory = {} if begins else {k: v[index] for k, v in part.memory.items()}
                own = Canvas(part.tokens[index], part.noisy[index], part.fixed[index], memory)
                starts = (rows.block[index] * self.size).tolist()
                step = placed(self.step, page, rows.number[index].tolist(), starts, self.size)
                groups.append(_Group(index, own, t[index], s[index], rng.select(index), step))
        return groups

    def _look(
        self,
        reader: Reader,
        tokens: Tensor,
        t: Tensor,
        where: Tensor,
        keep: Tensor,
        finished: Tensor | None,  # [R, S] the block before, not read yet
    ) -> tuple[Tensor, Reader]:
        """The network runs only if a row wants something of it."""
        logits, t = torch.zeros((0, 1), device=tokens.device), t[:, None].expand(tokens.shape)
        nowhere, wanted = torch.zeros_like(where), bool(where.any())
        verifies = getattr(self.step, "verifies", False)
        if finished is not None:
            keep = torch.ones_like(keep)
            if verifies:
                _, reader = reader.advance(finished, nowhere.double(), nowhere, keep)
            else:
                tokens, t = torch.cat((finished, tokens), 1), torch.cat((nowhere.double(), t), 1)
                where = torch.cat((nowhere, where), 1)
        if verifies:
            if wanted:
                logits = reader.leave_one_out(tokens, t, where)
            if finished is None and bool(keep.any()):
                _, reader = reader.advance(tokens, t, nowhere, keep)
        elif wanted or bool(keep.any()):
            found, reader = reader.advance(tokens, t, where, keep)
            logits = found if wanted else logits
        return logits, reader

    def _stepped(
        self, page: Canvas, rows: _Rows, group: _Group, where: Tensor, logits: Tensor
    ) -> Canvas:
        where = where[group.index]
        wide = [OnPage(change, page, self._at(rows)) for change in self.filters]
        if bool(where.any()):
            for change in wide:
                if not change.sharpens:
                    logits = change(logits, group.part, where)
        sharp = Sharp(logits, where, group.part, tuple(c for c in wide if c.sharpens))
        return group.step(group.part, where, logits, sharp, group.t, group.s, group.rng)

    def _ended(
        self, page: Canvas, rows: _Rows, part: Canvas, over: Tensor
    ) -> tuple[Canvas, Tensor]:
        """The page with the rest of ended rows filled, and which rows [R] have ended."""
        settled = (~part.noisy).long().cumprod(1).bool() & ~part.fixed
        if getattr(self.step, "reopens", False):
            settled &= over[:, None]
        found = torch.isin(part.tokens, torch.tensor(self.ends, device=over.device)) & settled
        ended = found.any(1) & ~rows.reading
        if not bool(ended.any()):
            return page, ended
        place = torch.arange(page.tokens.shape[1], device=over.device)
        end = rows.block * self.size + found.long().argmax(1)
        after = torch.zeros_like(page.noisy)
        after[rows.number[ended]] = place > end[ended, None]
        after &= ~page.fixed
        tokens = page.tokens.masked_fill(after, self.filler)
        fixed, noisy = page.fixed | after, page.noisy & ~after
        return replace(page, tokens=tokens, noisy=noisy, fixed=fixed), ended

    def _moved(self, page: Canvas, rows: _Rows, over: Tensor, ended: Tensor) -> _Rows:
        """Finished blocks are read next, and read ones left behind; nobody waits."""
        leave = ended | (over & (rows.reading | (rows.block == rows.last)))
        block = torch.where(ended, rows.last + 1, rows.block + leave)
        tick = torch.where(over, 0, rows.tick + 1)
        moved = replace(rows, block=block, tick=tick, reading=over & ~leave)
        within = block <= rows.last
        safe = replace(moved, block=torch.where(within, block, rows.last))
        noisy = self._block(page, safe, {}).noisy.any(1)
        share = torch.where(leave, self.shares(page, safe), rows.share)
        return replace(moved, share=share, reading=moved.reading | (leave & within & ~noisy))

    def _at(self, rows: _Rows) -> tuple[Tensor, Tensor]:
        """Where the rows' blocks are on the page: indices [R, 1] and [R, S]."""
        place = torch.arange(self.size, device=rows.block.device)
        return rows.number[:, None], rows.block[:, None] * self.size + place

    def _block(self, page: Canvas, rows: _Rows, memory: Mapping[str, Tensor]) -> Canvas:
        at = self._at(rows)
        return Canvas(page.tokens[at], page.noisy[at], page.fixed[at], memory)


def _widened(canvas: Canvas, by: int, filler: int) -> Canvas:
    """With given filling on the right, up to whole blocks."""
    pad = torch.nn.functional.pad
    return Canvas(
        pad(canvas.tokens, (0, by), value=filler),
        pad(canvas.noisy, (0, by), value=False),
        pad(canvas.fixed, (0, by), value=True),
    )


def _narrowed(page: Canvas, width: int) -> Canvas:
    return Canvas(page.tokens[:, :width], page.noisy[:, :width], page.fixed[:, :width])
