"""The loops: repeat a step, slice into blocks, stop.

`denoise` goes through the times of one canvas; `generate` does so block by block. Both yield the
page after every step, and the last page is the result: a terminal animation, a web page, a trace
and a test all read the same stream.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from sfumato.corruption import Corruption
from sfumato.errors import ConfigError
from sfumato.rng import Rng
from sfumato.types import Canvas, Denoiser, Filter, Step


def blank(corruption: Corruption, template: Tensor, fixed: Tensor, rng: Rng) -> Canvas:
    """A canvas of pure noise around given text: template [B, L], fixed [B, L] bool."""
    noise = corruption.prior((template.shape[0], template.shape[1]), rng)
    return Canvas(torch.where(fixed, template, noise), noisy=~fixed, fixed=fixed)


def even_times(num_steps: int) -> Tensor:
    """1 = t_0 > t_1 > ... > t_n = 0, float64: the schedule decides what happens between them."""
    if num_steps < 1:
        raise ConfigError(f"num_steps must be at least 1, got {num_steps}")
    return torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)


@torch.no_grad()
def denoise(
    denoiser: Denoiser,
    canvas: Canvas,
    step: Step,
    times: Tensor,  # [n + 1], falling
    rng: Rng,
    *,
    filters: Sequence[Filter] = (),
) -> Iterator[Canvas]:
    """Yield the canvas after every step, until nothing is noisy.

    The network runs only over rows, and its head only at positions, that the step wants; where it
    wants none, it does not run at all.
    """
    batch, device = len(canvas.tokens), canvas.tokens.device
    look = denoiser.leave_one_out if getattr(step, "verifies", False) else denoiser  # type: ignore[attr-defined]
    for number, (t, s) in enumerate(pairwise(times.tolist())):
        now = torch.full((batch,), t, dtype=torch.float64, device=device)
        then = torch.full((batch,), s, dtype=torch.float64, device=device)
        draws = rng.fold(number)
        where = step.wanted(canvas, now, then, draws)
        seen = canvas.memory["time"][:, 0] if "time" in canvas.memory else now
        if bool(where.any()):
            logits = look(canvas.tokens, seen.float(), where)
            for change in filters:
                logits = change(logits, canvas, where)
        else:
            logits = torch.zeros((0, 1), device=device)
        canvas = step(canvas, where, logits, now, then, draws)
        yield canvas
        if not bool(canvas.noisy.any()):
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
) -> Iterator[Canvas]:
    """Yield the page after every step, block after block from the left.

    `num_steps` is shared out over the blocks (None: one for every position). With `lookahead` a
    block sees what lies right of it, as noise or given text (LLaDA); otherwise not (BD3-LM).
    """
    length = canvas.tokens.shape[1]
    size = block or length
    if size < 1 or length < 1:
        raise ConfigError(f"block must be at least 1 and the canvas not empty, got {block}")
    starts = range(0, length, size)
    steps = num_steps or length
    if steps < len(starts):
        raise ConfigError(
            f"num_steps {steps} is less than the {len(starts)} blocks of {size} in {length} "
            f"positions; use num_steps={len(starts)} or larger blocks"
        )
    for number, start in enumerate(starts):
        part = _columns(canvas, start, min(start + size, length))
        if not bool(part.noisy.any()):
            denoiser = denoiser.given(left=part.tokens)
            continue
        after = canvas.tokens[:, start + size :]
        around = denoiser.given(right=after) if lookahead and after.shape[1] else denoiser
        share = steps // len(starts) + (number < steps % len(starts))
        pages = denoise(around, part, step, even_times(share), rng.fold(number), filters=filters)
        for part in pages:
            canvas = _paste(canvas, start, part)
            yield canvas
        if start + size < length:
            denoiser = denoiser.given(left=part.tokens)


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
        memory={key: pasted(kept, part.memory[key]) for key, kept in canvas.memory.items()},
    )
