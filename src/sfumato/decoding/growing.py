"""A canvas that grows while it is written, for models of full attention that know where texts end.

DAEDAL (arXiv 2508.00819). First, while the model does not see an end in the last positions of the
blank canvas, masks are added behind it. Then, while text is written, a masked position of which the
model has no idea becomes several, as long as the end still lacks certainty.

Rows grow apart: what a row lacks to the widest is hidden from it, so that its text does not depend
on its neighbours. A heuristic: whatever the step rule, the texts are not a draw from a law.

Shapes: B rows, L positions of the widest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.decoding.canvas import NO_COMPILE
from sfumato.decoding.decoder import GAPS, SOURCE, Decoder, Writer, check_prefix, ending
from sfumato.decoding.filters import divided
from sfumato.decoding.logits import confidences
from sfumato.decoding.options import GenerationOptions, Growth
from sfumato.decoding.page import behind_end
from sfumato.decoding.request import Request
from sfumato.decoding.step import Prediction, Step
from sfumato.decoding.unmask import spread
from sfumato.denoisers.full import Full
from sfumato.errors import ConfigError
from sfumato.models.attention import HIDDEN
from sfumato.rng import Rng
from sfumato.types import MOVED, Canvas, Filter


@dataclass(frozen=True)
class Growing(Decoder):
    """Where positions have moved, a page's memory says from where (`MOVED`).

    `num_steps` is for a row of the most positions, and a shorter one takes its share (None: one a
    new token). Blocks count from the left; one that grows pushes those after it along. Where a text
    has ended, the blocks after it are padding.
    """

    refuses = {  # noqa: RUF012 (a class variable of the base)
        "approx_cache": "approx_cache keeps places that would move; leave it out, or grow",
        "grammar": "a grammar is for a length that is known; leave it out, or grow",
        "guidance": "guidance hides places that would move; leave it out, or grow",
        "lookahead": "lookahead=False hides where the text ends; leave it out, or grow",
        "torch_compile": NO_COMPILE,
        GAPS: "infilling has no grow: use gap_length, tokens for each gap",
    }
    takes = frozenset({"grow", SOURCE})

    denoiser: Full
    growth: Growth
    places: Sequence[slice]  # of each row, that may be written
    block: int | None = None

    @classmethod
    def suits(cls, writer: Writer, options: GenerationOptions) -> bool:
        return options.grow is not None

    @classmethod
    def settled(cls, writer: Writer, options: GenerationOptions) -> GenerationOptions:
        if not writer.corruption.absorbing:
            raise ConfigError(
                "a canvas grows by masks, and this model was trained on "
                f"{type(writer.corruption).__name__.lower()} noise; leave grow out"
            )
        if options.layout != "padded":
            raise ConfigError(
                "this model has no padding and does not see where a canvas' text ends; leave grow "
                "out and give a length"
            )
        return options

    @classmethod
    def check_request(cls, writer: Writer, request: Request) -> None:
        check_prefix(writer, request)

    @classmethod
    @torch.no_grad()
    def of(cls, writer: Writer, request: Request) -> "Growing":
        shown = Full.of(writer.compute(request), writer.special.mask)
        if request.source is not None:  # and nothing is on the left: all is on one page
            shown = shown.conditioned(request.source)
        places = [part for row in request.rows for part in row if isinstance(part, slice)]
        own = {"growth": request.options.growth(), "places": places}
        return cls(denoiser=shown, block=request.options.block, **own, **ending(writer))

    @torch.no_grad()
    def pages(
        self,
        canvas: Canvas,  # blank behind given text
        step: Step,
        rng: Rng,
        *,
        num_steps: int | None = None,
        filters: Sequence[Filter] = (),
    ) -> Iterator[Canvas]:
        """Yield the page after every addition and every step."""
        denoiser, growth, block = self.denoiser, self.growth, self.block
        most = torch.tensor([place.stop for place in self.places], device=canvas.tokens.device)
        begin = torch.tensor([place.start for place in self.places], device=canvas.tokens.device)
        width = begin + canvas.noisy.sum(1)
        blocks = 1 if block is None else -(-int(most.max()) // block)
        if num_steps is not None and num_steps < blocks:
            raise ConfigError(
                f"num_steps {num_steps} is less than up to {blocks} blocks of {block} to write; "
                f"use num_steps={blocks} or larger blocks"
            )
        ending = (tuple(self.ends), self.filler)
        clerk = _Clerk(denoiser, step, growth, most, *ending, tuple(filters))
        outside = ~_between(canvas, 0, width)
        canvas = replace(canvas, tokens=canvas.tokens.masked_fill(outside, denoiser.mask_id))
        growing = torch.ones_like(most, dtype=torch.bool)
        while True:
            growing = growing & (width < most)
            if bool(growing.any()):
                growing = growing & (clerk.end_seen(canvas, width, growing) < growth.enough)
            if not bool(growing.any()):
                break
            count = torch.where(growing, (most - width).clamp_max(growth.by), 0)
            canvas, width = clerk.stretched(canvas, width, width - 1, count)
            yield clerk.shown(canvas, width)
        rate = torch.ones_like(most).double()
        if num_steps is not None:
            rate = (most - begin).double() / num_steps
        begin, number = torch.zeros_like(width), 0
        while bool((begin < width).any()):
            stop = width if block is None else torch.minimum(begin + block, width)
            owed = (canvas.noisy & _between(canvas, begin, stop)).sum(1).double()
            now = _Block(begin, stop, owed, owed, rng.fold(number))
            canvas = replace(canvas, memory={})
            for tick in range(canvas.tokens.shape[1] + int(most.max())):
                busy = clerk.busy(canvas, now)
                if not bool(busy.any()):
                    break
                canvas, width, now = clerk.tick(canvas, width, now, busy, tick, rate)
                yield clerk.shown(canvas, width)
                kept = {key: value for key, value in canvas.memory.items() if key != MOVED}
                canvas = replace(canvas, memory=kept)
            begin, number = torch.where(clerk.ended(canvas, now), width, now.stop), number + 1


@dataclass(frozen=True)
class _Block:
    """Where each row's block is; the positions that it writes, and of these those that its clock
    still has, float64; all [B]."""

    begin: Tensor
    stop: Tensor
    total: Tensor
    owed: Tensor
    rng: Rng


def _between(canvas: Canvas, low: Tensor | int, high: Tensor) -> Tensor:
    """[B, L] bool, the positions from low up to high of each row."""
    place = torch.arange(canvas.tokens.shape[1], device=canvas.tokens.device)
    low = torch.as_tensor(low, device=place.device).expand(high.shape)
    return (place >= low[:, None]) & (place < high[:, None])


@dataclass(frozen=True)
class _Clerk:
    """What does not change from step to step."""

    denoiser: Full
    step: Step
    growth: Growth
    most: Tensor
    ends: tuple[int, ...]
    filler: int
    filters: tuple[Filter, ...]

    def is_end(self, canvas: Canvas) -> Tensor:
        return torch.isin(canvas.tokens, torch.tensor(self.ends, device=canvas.tokens.device))

    def shown(self, canvas: Canvas, width: Tensor) -> Canvas:
        """With padding, for readers, where the network and the filters have masks."""
        padded = ~_between(canvas, 0, width)
        return replace(canvas, tokens=canvas.tokens.masked_fill(padded, self.filler))

    def busy(self, canvas: Canvas, now: _Block) -> Tensor:
        """[B] whether a row's block is still written."""
        left = (canvas.noisy & _between(canvas, now.begin, now.stop)).any(1)
        return (now.owed > 0) & (left | self.step.reopens)

    def look(self, canvas: Canvas, width: Tensor, t: Tensor, where: Tensor) -> Tensor:
        """Logits [N, V] at `where`; what a row lacks to the widest is hidden."""
        read = self.denoiser.leave_one_out if self.step.verifies else self.denoiser
        segments = torch.where(_between(canvas, 0, width), 0, HIDDEN)
        hides = {"segments": segments} if bool((segments == HIDDEN).any()) else {}
        return read(canvas.tokens, t.float(), where, **hides)

    def tail(self, canvas: Canvas, width: Tensor) -> Tensor:
        """[B, L] bool, the last of the new positions."""
        return _between(canvas, width - self.growth.window, width) & ~canvas.fixed

    def end_seen(self, canvas: Canvas, width: Tensor, rows: Tensor) -> Tensor:
        """[B] how probable an end is in the last positions, on average; 1 in other rows."""
        where = self.tail(canvas, width) & canvas.noisy & rows[:, None]
        logits = self.look(canvas, width, torch.ones_like(width), where)
        return torch.where(rows, self._mean_end(canvas, width, where, logits), 1.0)

    def _mean_end(self, canvas: Canvas, width: Tensor, where: Tensor, logits: Tensor) -> Tensor:
        """[B]; of decided positions what they are counts, of `where` what logits [N, V] say."""
        said = self.is_end(canvas).double()
        said[where] = logits.double().softmax(-1)[:, list(self.ends)].sum(-1)
        tail = self.tail(canvas, width)
        return (said * tail).sum(1) / tail.sum(1).clamp_min(1)

    def tick(
        self, canvas: Canvas, width: Tensor, now: _Block, busy: Tensor, tick: int, rate: Tensor
    ) -> tuple[Canvas, Tensor, _Block]:
        """One step of every busy row, and what grows after it."""
        inside = _between(canvas, now.begin, now.stop) & busy[:, None]
        part = replace(canvas, noisy=canvas.noisy & inside, fixed=canvas.fixed | ~inside)
        total, owed = now.total.clamp_min(1), (now.owed - rate).clamp_min(0)
        t = torch.where(busy, now.owed / total, 0.0)
        s = torch.where(busy, owed / total, 0.0)
        draws = now.rng.fold(tick)
        where = self.step.wanted(part, t, s, draws)
        seen = self.step.told(part, t, draws)
        room = busy & (width < self.most)
        tail = self.tail(canvas, width) & canvas.noisy & room[:, None]
        doubted = part.noisy & room[:, None]
        asked = where | tail | doubted
        logits, sure = torch.zeros((0, 1), device=width.device), torch.zeros(0, device=width.device)
        ended = torch.ones_like(rate)
        if bool(asked.any()):
            every = self.look(canvas, width, seen, asked)
            ended = self._mean_end(canvas, width, tail, every[tail[asked]])
            sure = confidences(every)
            logits = every[where[asked]]
        new = self._decided(canvas, part, where, logits, t, s, draws)
        scores = spread(sure, asked, 1.0).masked_fill(~(doubted & new.noisy), 1.0)
        least, at = scores.min(1)
        grows = room & (ended < self.growth.sure) & (least < self.growth.doubt)
        count = torch.where(grows, (self.most - width).clamp_max(self.growth.by - 1), 0)
        if bool(grows.any()):
            new, width = self.stretched(new, width, at, count)
        now = replace(now, stop=now.stop + count, total=now.total + count, owed=owed + count)
        return self._padded(new, width, now, busy), width, now

    def _decided(
        self,
        canvas: Canvas,
        part: Canvas,
        where: Tensor,
        logits: Tensor,
        t: Tensor,
        s: Tensor,
        draws: Rng,
    ) -> Canvas:
        """The page after the rule's step in the block; the rest of it is as it was."""
        plain, sharpening = divided(self.filters)
        if bool(where.any()):
            for change in plain:
                logits = change(logits, canvas, where)
        new = self.step(part, Prediction(logits, where, canvas, sharpening), t, s, draws)
        noisy = new.noisy | (canvas.noisy & ~part.noisy)
        return replace(new, noisy=noisy, fixed=canvas.fixed)

    def ended(self, canvas: Canvas, now: _Block) -> Tensor:
        """[B] whether a text has its end in this block or before it."""
        written = self.is_end(canvas) & ~canvas.noisy & ~canvas.fixed
        return (written & _between(canvas, 0, now.stop)).any(1)

    def _padded(self, canvas: Canvas, width: Tensor, now: _Block, busy: Tensor) -> Canvas:
        """Padding behind the end of texts that are over, and behind the block of an end."""
        if not self.step.revises:
            rest = behind_end(canvas, self.ends) & _between(canvas, 0, width)
            tokens = canvas.tokens.masked_fill(rest, self.filler)
            canvas = replace(canvas, tokens=tokens, noisy=canvas.noisy & ~rest)
        done = busy & ~self.busy(canvas, now)
        rest = _between(canvas, now.stop, width) & (done & self.ended(canvas, now))[:, None]
        tokens = canvas.tokens.masked_fill(rest, self.filler)
        return replace(canvas, tokens=tokens, noisy=canvas.noisy & ~rest)

    def stretched(
        self, canvas: Canvas, width: Tensor, at: Tensor, count: Tensor
    ) -> tuple[Canvas, Tensor]:
        """`count` [B] masks more behind the masked position `at` [B], which they are like; what is
        right of it moves along, and so does all that the rule remembers."""
        length, mask_id = canvas.tokens.shape[1], self.denoiser.mask_id
        wider = width + count
        place = torch.arange(int(wider.max()), device=width.device)[None]
        at, added = at[:, None], count[:, None]
        origin = torch.where(place <= at, place, torch.maximum(place - added, at))
        index = origin.clamp_max(length - 1)
        rows = torch.arange(len(index), device=width.device)[:, None]
        inside = place < wider[:, None]
        new = inside & (place > at) & (place <= at + added)
        return Canvas(
            torch.where(inside, canvas.tokens[rows, index], mask_id),
            canvas.noisy[rows, index] & inside,
            canvas.fixed[rows, index] | ~inside,
            {
                **{key: kept[rows, index] for key, kept in canvas.memory.items()},
                MOVED: torch.where(inside & ~new, index, -1),
            },
        ), wider
