"""The loops: repeat a step, slice into blocks, stop.

`denoise` goes through the times of one canvas; `generate` does so block by block. Both yield the
page after every step, and the last page is the result: a terminal animation, a web page, a trace
and a test all read the same stream.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sfumato.decoding.filters import divided
from sfumato.decoding.page import columns, filled, on_page, paste
from sfumato.decoding.step import Prediction, Step
from sfumato.decoding.times import one_each, shared_times
from sfumato.denoisers.abilities import leave_one_out
from sfumato.errors import ConfigError
from sfumato.rng import Rng
from sfumato.types import Canvas, Denoiser, Filter


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
        part = columns(canvas, start, min(start + size, length))
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
            canvas = paste(canvas, start, part)
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
