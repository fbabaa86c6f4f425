"""Rows of a page that are written block after block, each at its own pace.

Rows are at different blocks, at different steps, and end at different times; what a row gets does
not depend on its neighbours. One pass of the network serves all: rows whose block is noisy are
denoised, rows whose block has just been finished have it read.

Shapes: B rows of the page and W columns; R rows that are still written; S positions of a block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.decoding.filters import divided
from sfumato.decoding.page import on_page, pasted
from sfumato.decoding.step import Prediction, Step
from sfumato.denoisers.blocks import BlockReader
from sfumato.errors import ConfigError
from sfumato.rng import Rng
from sfumato.types import Canvas, Filter


@dataclass(frozen=True)
class _Row:
    """How far a row that is still written has got; numbers of Python, for there is one in every
    pass, and each would be a call of torch."""

    number: int  # the row of the page
    first: int  # the first block to write, and the last
    last: int
    noisy: tuple[int, ...]  # positions to write in each block of the page
    block: int
    tick: int = 0  # steps taken in the block
    share: int = 1  # steps that it has
    reading: bool = False  # the block is finished, or given, and is only read


@dataclass(frozen=True)
class _Group:
    """Rows that take the same kind of step: those that begin a block, or those that go on."""

    index: Tensor | slice  # [n] among the R rows, or all of them
    part: Canvas  # their blocks
    at: tuple[Tensor, Tensor]  # of the blocks on the page
    t: Tensor
    s: Tensor
    rng: Rng
    step: Step


@dataclass(frozen=True)
class Clerk:
    """What does not change from tick to tick."""

    step: Step
    rng: Rng
    num_steps: int | None
    filters: tuple[Filter, ...]
    ends: tuple[int, ...]
    filler: int
    size: int
    settles: bool  # the reader's blocks need not be read when they are finished

    def begin(self, page: Canvas) -> list[_Row]:
        """The rows in which there is something to write, at the first block of each."""
        rows = []
        for number, noisy in enumerate(page.noisy.unflatten(1, (-1, self.size)).sum(2).tolist()):
            blocks = [block for block, count in enumerate(noisy) if count]
            if blocks:
                row = _Row(number, blocks[0], blocks[-1], tuple(noisy), blocks[0])
                rows.append(replace(row, share=self._share(row)))
        most = max((row.last - row.first + 1 for row in rows), default=0)
        if self.num_steps is not None and self.num_steps < most:
            raise ConfigError(
                f"num_steps {self.num_steps} is less than the {most} blocks of {self.size} "
                f"positions to write; use num_steps={most} or more, or none"
            )
        return rows

    def tick(
        self, page: Canvas, memory: Mapping[str, Tensor], reader: BlockReader, rows: list[_Row]
    ) -> tuple[Canvas, Mapping[str, Tensor], BlockReader, list[_Row]]:
        """One pass over the next block of every row."""
        finished = None
        if not self.settles and all(row.reading for row in rows) and reader.room > 1:
            beyond = [self._moved(row, over=True, ended=False) for row in rows]
            if all(row.block <= row.last and not row.reading for row in beyond):
                finished = page.tokens[self._at(rows, page)]  # read with the next, in one pass
                rows = beyond
        at = self._at(rows, page)
        before = Canvas(page.tokens[at], page.noisy[at], page.fixed[at], memory)
        groups = self._groups(page, before, at, rows)
        where = torch.zeros_like(before.noisy)
        seen = torch.zeros(len(rows), dtype=torch.float64, device=where.device)
        for group in groups:
            args = (group.part, group.t, group.s, group.rng)
            where[group.index] = group.step.wanted(*args)
            seen[group.index] = group.step.told(group.part, group.t, group.rng)
        keep = torch.tensor([row.reading for row in rows], device=where.device)
        logits, reader = self._look(reader, before.tokens, seen, where, keep, finished)
        tokens, noisy, kept = before.tokens.clone(), before.noisy.clone(), {}
        for group in groups:
            mine = torch.zeros_like(where)
            mine[group.index] = where[group.index]
            own = logits[mine[where]] if len(groups) > 1 else logits
            after = self._stepped(page, group, where[group.index], own)
            tokens[group.index], noisy[group.index] = after.tokens, after.noisy
            for key, values in after.memory.items():
                empty = values.new_zeros((len(tokens), *values.shape[1:]))
                kept.setdefault(key, empty)[group.index] = values
        after = replace(before, tokens=tokens, noisy=noisy)
        page = pasted(page, at, after)
        over = [
            row.reading or not (left or (self.step.reopens and row.tick + 1 < row.share))
            for row, left in zip(rows, noisy.any(1).tolist(), strict=True)
        ]
        if reader.settles:
            reader = reader.settled(tokens, torch.tensor(over, device=where.device))
        page, ended = self._ended(page, rows, after, over)
        moved = [self._moved(*each) for each in zip(rows, over, ended, strict=True)]
        return page, kept, reader, moved

    def _groups(
        self, page: Canvas, part: Canvas, at: tuple[Tensor, Tensor], rows: Sequence[_Row]
    ) -> list[_Group]:
        """A rule remembers within a block: rows that begin one know nothing yet."""
        groups = []
        for begins in (True, False):
            chosen = [
                i for i, row in enumerate(rows) if (row.tick == 0) == begins and not row.reading
            ]
            if chosen:
                groups.append(self._group(page, part, at, rows, chosen, begins))
        return groups

    def _group(
        self,
        page: Canvas,
        part: Canvas,
        at: tuple[Tensor, Tensor],
        rows: Sequence[_Row],
        chosen: list[int],
        begins: bool,
    ) -> _Group:
        device, own = part.tokens.device, [rows[i] for i in chosen]
        index: Tensor | slice = slice(None)
        if len(chosen) < len(rows):
            index = torch.tensor(chosen, device=device)
        memory = {} if begins else {key: values[index] for key, values in part.memory.items()}
        passed = [(row.tick / row.share, (row.tick + 1) / row.share) for row in own]
        times = torch.tensor(passed, dtype=torch.float64, device=device)
        t, s = (1 - times).clamp_min(0).unbind(1)
        folds = torch.tensor([(row.number, row.block, row.tick) for row in own], device=device)
        number, block, tick = folds.unbind(1)
        return _Group(
            index,
            Canvas(part.tokens[index], part.noisy[index], part.fixed[index], memory),
            (at[0][index], at[1][index]),
            t,
            s,
            self.rng.select(number).fold(block).fold(tick),
            self.step.within(
                page,
                [row.number for row in own],
                [row.block * self.size for row in own],
                self.size,
            ),
        )

    def _look(
        self,
        reader: BlockReader,
        tokens: Tensor,
        t: Tensor,
        where: Tensor,
        keep: Tensor,
        finished: Tensor | None,  # [R, S] the block before, not read yet
    ) -> tuple[Tensor, BlockReader]:
        """The network runs only if a row wants something of it, or has something read."""
        logits, t = torch.zeros((0, 1), device=tokens.device), t[:, None].expand(tokens.shape)
        nowhere, wanted = torch.zeros_like(where), bool(where.any())
        if self.settles:
            return reader.advance(tokens, t, where, nowhere[:, 0])
        if finished is not None:
            keep = torch.ones_like(keep)
            if self.step.verifies:
                _, reader = reader.advance(finished, nowhere.double(), nowhere, keep)
            else:
                tokens, t = torch.cat((finished, tokens), 1), torch.cat((nowhere.double(), t), 1)
                where = torch.cat((nowhere, where), 1)
        if self.step.verifies:
            if wanted:
                logits = reader.leave_one_out(tokens, t, where)
            if finished is None and bool(keep.any()):
                _, reader = reader.advance(tokens, t, nowhere, keep)
        elif wanted or bool(keep.any()):
            found, reader = reader.advance(tokens, t, where, keep)
            logits = found if wanted else logits
        return logits, reader

    def _stepped(self, page: Canvas, group: _Group, where: Tensor, logits: Tensor) -> Canvas:
        plain, sharpening = divided(on_page(each, page, group.at) for each in self.filters)
        if bool(where.any()):
            for change in plain:
                logits = change(logits, group.part, where)
        seen = Prediction(logits, where, group.part, sharpening)
        return group.step(group.part, seen, group.t, group.s, group.rng)

    def _ended(
        self, page: Canvas, rows: Sequence[_Row], part: Canvas, over: Sequence[bool]
    ) -> tuple[Canvas, list[bool]]:
        """The page with the rest of ended rows filled, and which rows have ended."""
        nobody, device = [False] * len(rows), part.tokens.device
        found = torch.isin(part.tokens, torch.tensor(self.ends, device=device)) & ~part.fixed
        if not bool(found.any()):
            return page, nobody
        found &= (~part.noisy).long().cumprod(1).bool()
        ended = [
            end and not row.reading and (done or not self.step.reopens)
            for row, end, done in zip(rows, found.any(1).tolist(), over, strict=True)
        ]
        if not any(ended):
            return page, nobody
        after = torch.zeros_like(page.noisy)
        for row, first, end in zip(rows, found.long().argmax(1).tolist(), ended, strict=True):
            if end:
                after[row.number, row.block * self.size + first + 1 :] = True
        after &= ~page.fixed
        tokens = page.tokens.masked_fill(after, self.filler)
        fixed, noisy = page.fixed | after, page.noisy & ~after
        return replace(page, tokens=tokens, noisy=noisy, fixed=fixed), ended

    def _moved(self, row: _Row, over: bool, ended: bool) -> _Row:
        """Finished blocks are read next, and read ones left behind; nobody waits."""
        if ended:
            return replace(row, block=row.last + 1)
        if not over:
            return replace(row, tick=row.tick + 1)
        if not (row.reading or self.settles) and row.block < row.last:
            return replace(row, tick=0, reading=True)
        row = replace(row, block=row.block + 1, tick=0, reading=False)
        if row.block > row.last:
            return row
        return replace(row, share=self._share(row), reading=not row.noisy[row.block])

    def _share(self, row: _Row) -> int:
        """Steps that the row's block has."""
        if self.num_steps is None:
            return max(1, row.noisy[row.block])
        least, more = divmod(self.num_steps, row.last - row.first + 1)
        return least + (row.block - row.first < more)

    def _at(self, rows: Sequence[_Row], page: Canvas) -> tuple[Tensor, Tensor]:
        """Where the rows' blocks are on the page: indices [R, 1] and [R, S]."""
        found = [(row.number, row.block * self.size) for row in rows]
        number, start = torch.tensor(found, device=page.tokens.device)[..., None].unbind(1)
        return number, start + torch.arange(self.size, device=start.device)


def widened(canvas: Canvas, by: int, filler: int) -> Canvas:
    """With given filling on the right, up to whole blocks."""
    pad = torch.nn.functional.pad
    return Canvas(
        pad(canvas.tokens, (0, by), value=filler),
        pad(canvas.noisy, (0, by), value=False),
        pad(canvas.fixed, (0, by), value=True),
    )


def narrowed(page: Canvas, width: int) -> Canvas:
    if page.tokens.shape[1] == width:
        return page
    return Canvas(page.tokens[:, :width], page.noisy[:, :width], page.fixed[:, :width])
