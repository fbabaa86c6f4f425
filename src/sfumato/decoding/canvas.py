"""The whole canvas, for networks that see it all; and the loops: repeat a step, slice, stop.

`denoise` goes through the times of one canvas; `generate` does so block by block. Both yield the
page after every step, and the last page is the result: a terminal animation, a web page, a trace
and a test all read the same stream.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.data.tokenizer import SpecialIds
from sfumato.decoding.decoder import OPTIONAL, Decoder, Writer, ending
from sfumato.decoding.filters import divided
from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.request import Request
from sfumato.decoding.step import Prediction, Step
from sfumato.denoisers.abilities import leave_one_out
from sfumato.denoisers.approximate import ApproximateCache
from sfumato.denoisers.full import Full
from sfumato.denoisers.guided import Guided, sides, towards_prompt
from sfumato.errors import ConfigError
from sfumato.noise.corruption import Corruption
from sfumato.rng import Rng
from sfumato.types import Canvas, Denoiser, Filter

NO_COMPILE = (
    "torch_compile is for models of blocks and autoregressive ones, whose passes are alike; this "
    "one has full attention: leave it out"
)


@dataclass(frozen=True)
class WholeCanvas(Decoder):
    """For models of full attention: all at once, or block after block with what is around it."""

    refuses = {  # noqa: RUF012 (a class variable of the base)
        "grow": "grow is for a decoder of its own",
        "torch_compile": NO_COMPILE,
    }
    takes = frozenset(OPTIONAL) - set(refuses)

    denoiser: Denoiser
    block: int | None = None
    lookahead: bool = True

    @classmethod
    def suits(cls, writer: Writer, options: GenerationOptions) -> bool:
        return True

    @classmethod
    def settled(cls, writer: Writer, options: GenerationOptions) -> GenerationOptions:
        if options.approx_cache is None:
            return options
        if options.block is None:
            raise ConfigError("approx_cache keeps what is around a block; set block, such as 32")
        if options.rule(writer.corruption).verifies:
            raise ConfigError(
                f"step '{options.step}' looks at every position anew, so nothing can be kept; "
                "leave approx_cache out"
            )
        return options

    @classmethod
    def check_request(cls, writer: Writer, request: Request) -> None:
        super().check_request(writer, request)
        options = request.options
        if options.approx_cache and (request.source is not None or options.guidance):
            raise ConfigError("approx_cache keeps nothing of a source or of guidance; leave it out")

    @classmethod
    def of(cls, writer: Writer, request: Request) -> "WholeCanvas":
        options = request.options
        denoiser = Full.of(writer.compute(request), writer.special.mask)
        if options.approx_cache:
            shown: Denoiser = ApproximateCache(
                denoiser, options.approx_cache, refresh=options.approx_refresh
            ).given(request.left, left_hidden=request.hidden)
        else:
            shown = reading(request, denoiser, writer.special)
        around = {"block": options.block, "lookahead": options.lookahead}
        return cls(denoiser=shown, **around, **ending(writer))

    def pages(
        self,
        canvas: Canvas,
        step: Step,
        rng: Rng,
        *,
        num_steps: int | None = None,
        filters: Sequence[Filter] = (),
    ) -> Iterator[Canvas]:
        around = {"block": self.block, "lookahead": self.lookahead}
        around |= {"ends": self.ends, "filler": self.filler}
        own = {"num_steps": num_steps, "filters": filters}
        return generate(self.denoiser, canvas, step, rng, **own, **around)


@torch.no_grad()
def reading(request: Request, denoiser: Full, special: SpecialIds) -> Full | Guided:
    """The denoiser that has read a request's source, once, and the text before its canvas."""
    scale, left = request.options.guidance, request.left
    if scale and request.source is None:
        own = torch.tensor(special.all, device=request.canvas.tokens.device)
        hidden = request.canvas.fixed & ~torch.isin(request.canvas.tokens, own)
        left_prompt = None
        if left is not None and request.hidden is not None:
            left_prompt = ~torch.isin(left, own) & ~request.hidden
        return towards_prompt(denoiser, scale, hidden, left, request.hidden, left_prompt)
    shown: Full | Guided = denoiser
    if request.source is not None:
        seen, unseen = sides(denoiser, request.source)
        shown = Guided(seen, unseen, scale) if scale else seen
    return shown if left is None else shown.given(left=left, left_hidden=request.hidden)


def blank(corruption: Corruption, template: Tensor, fixed: Tensor, rng: Rng) -> Canvas:
    """A canvas of pure noise around given text: template [B, L], fixed [B, L] bool."""
    noise = corruption.prior((template.shape[0], template.shape[1]), rng)
    return Canvas(torch.where(fixed, template, noise), noisy=~fixed, fixed=fixed)


def even_times(num_steps: int) -> Tensor:
    """1 = t_0 > t_1 > ... > t_n = 0, float64: the schedule decides what happens between them."""
    if num_steps < 1:
        raise ConfigError(f"num_steps must be at least 1, got {num_steps}")
    return torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)


def one_each(noisy: Tensor) -> Tensor:
    """Even times for each row [B, n + 1], one step for each of its noisy positions [B, L].

    A row with fewer of them reaches 0 earlier, whatever other rows are in the batch.
    """
    counts = noisy.sum(1, keepdim=True)
    passed = torch.arange(int(counts.max()) + 1, device=noisy.device, dtype=torch.float64)
    return (1 - passed / counts.clamp_min(1)).clamp_min(0)


def shared_times(num_steps: int, noisy: Tensor, number: int) -> Tensor:
    """Even times of block `number` for each row [B, n + 1]: num_steps is shared out over the row's
    own noisy blocks, noisy [B, blocks], the first ones getting what does not come out even."""
    blocks, before = noisy.sum(1, keepdim=True).clamp_min(1), noisy[:, :number].sum(1, keepdim=True)
    share = (num_steps // blocks + (before < num_steps % blocks)).clamp_min(1)
    passed = torch.arange(int(share.max()) + 1, device=noisy.device, dtype=torch.float64)
    return (1 - passed / share).clamp_min(0)


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    canvas: Canvas,
    step: Step,
    times: Tensor,  # [n + 1] or [B, n + 1], falling
    rng: Rng,
    *,
    filters: Sequence[Filter] = (),
    ends: Sequence[int] = (),
    filler: int = 0,
) -> Iterator[Canvas]:
    """Yield the canvas after every step until nothing is noisy; with a `reopens` rule, until t = 0.

    A row that has written one of `ends`, with nothing noisy before it, is done: the rest of it is
    `filler`, and counts as given. With a rule that takes decisions back it could still change.

    The network runs only over rows, and its head only at positions, that the step wants; where it
    wants none, it does not run at all. Filters that `sharpens` come last and touch what is drawn,
    not what the rule believes: the most likely text is still decided surest first.
    """
    plain, sharpening = divided(filters)
    device = canvas.tokens.device
    times = times.to(device).expand(len(canvas.tokens), -1)
    stays = not (step.reopens or step.revises)
    look = leave_one_out(denoiser) if step.verifies else denoiser
    for number in range(times.shape[1] - 1):
        now, then, draws = times[:, number], times[:, number + 1], rng.fold(number)
        where = step.wanted(canvas, now, then, draws)
        logits = torch.zeros((0, 1), device=device)
        if bool(where.any()):
            logits = look(canvas.tokens, step.told(canvas, now, draws).float(), where)
            for change in plain:
                logits = change(logits, canvas, where)
        seen = Prediction(logits, where, canvas, sharpening)
        canvas = step(canvas, seen, now, then, draws)
        if ends and stays:
            canvas = filled(canvas, ends, filler)
        yield canvas
        if not (step.reopens or bool(canvas.noisy.any())):
            return


def generate(
    denoiser: Denoiser,
    canvas: Canvas,
    step: Step,
    rng: Rng,
    *,
    num_steps: int | None = None,
    block: int | None = None,
    lookahead: bool = True,
    filters: Sequence[Filter] = (),
    ends: Sequence[int] = (),
    filler: int = 0,
) -> Iterator[Canvas]:
    """Yield the page after every step, block after block from the left, until all rows are done.

    `num_steps` is shared out over the blocks that a row writes (None: one for every noisy
    position). With `lookahead` a block sees what lies right of it, as noise or given text (LLaDA);
    otherwise not (BD3-LM).
    Only masks say nothing: noise that may be text is refused on the right of a block that is less
    noisy, because the denoiser, told one time for all, would take it for a hint. For the same
    reason given text conditions such a canvas only approximately, unless the network was trained
    with clean text before it: docs/conventions.md, exactness.
    Where nothing is noisy, the page comes as it is, once. `ends` and `filler` as in `denoise`.
    """
    length = canvas.tokens.shape[1]
    size = length if block is None else block
    if length < 1:
        raise ConfigError("the canvas is empty; give it at least 1 position")
    if size < 1:
        raise ConfigError(f"block must be at least 1 position, got {block}")
    starts = range(0, length, size)
    noisy = [canvas.noisy[:, at : at + size].any(1) for at in starts]
    noisy = torch.stack(noisy, 1)  # [B, blocks]
    most = int(noisy.sum(1).max())
    if num_steps is not None and num_steps < most:
        raise ConfigError(
            f"num_steps {num_steps} is less than the {most} blocks of {size} to write; use "
            f"num_steps={most} or larger blocks"
        )
    _check_lookahead(step, lookahead and int(noisy.any(0).sum()) > 1)
    if not bool(canvas.noisy.any()):
        yield canvas
    decided = (~canvas.noisy).all(0).long().cumprod(0).sum()  # columns that are given in every row
    lead = int(decided) // size * size
    if lead:
        denoiser = denoiser.given(left=canvas.tokens[:, :lead])
    for number, start in enumerate(starts):
        part = _columns(canvas, start, min(start + size, length))
        if start < lead:
            continue
        if not bool(canvas.noisy[:, start:].any()):
            return
        if not bool(part.noisy.any()):
            denoiser = denoiser.given(left=part.tokens)
            continue
        after = canvas.tokens[:, start + size :]
        around = denoiser.given(right=after) if lookahead and after.shape[1] else denoiser
        if num_steps is None:
            times = one_each(part.noisy)
        else:
            times = shared_times(num_steps, noisy, number)
        rows, width = part.tokens.shape
        at = (slice(None), slice(start, start + width))
        wide = [on_page(change, canvas, at) for change in filters]
        rule = step.within(canvas, range(rows), [start] * rows, width)
        ending = {"ends": ends, "filler": filler}
        pages = denoise(around, part, rule, times, rng.fold(number), filters=wide, **ending)
        for tick, part in enumerate(pages, 1):
            canvas = _paste(canvas, start, part)
            over = tick == times.shape[-1] - 1 or not (step.reopens or bool(part.noisy.any()))
            if ends and over:  # what a block holds now it keeps, whatever the rule
                canvas = filled(canvas, ends, filler)
            yield canvas
        if not bool(canvas.noisy.any()):
            return
        denoiser = denoiser.given(left=part.tokens)


def _check_lookahead(step: Step, sees_later: bool) -> None:
    """Raise if a block would see noise on its right that may be text."""
    if sees_later and not step.absorbing:
        raise ConfigError(
            "with noise other than masks a block cannot see later blocks: their noise is stronger "
            "than its own, and could be text; use lookahead=False"
        )


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


def _columns(canvas: Canvas, start: int, stop: int) -> Canvas:
    return Canvas(
        canvas.tokens[:, start:stop],
        canvas.noisy[:, start:stop],
        canvas.fixed[:, start:stop],
        {key: kept[:, start:stop] for key, kept in canvas.memory.items()},
    )


def _paste(canvas: Canvas, start: int, part: Canvas) -> Canvas:
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
