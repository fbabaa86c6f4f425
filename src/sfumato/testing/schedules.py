"""What a schedule must keep."""

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.noise.schedules import Schedule
from sfumato.testing.claims import close, expect


def check_schedule(schedule: Schedule) -> None:
    """alpha falls from 1 - low to 1 - high, `dalpha` is its derivative, `time` its inverse."""
    grid = torch.linspace(0, 1, 101, dtype=torch.float64)
    ends = torch.tensor([1 - schedule.low, 1 - schedule.high], dtype=torch.float64)
    alpha = _asked(schedule.alpha, grid, "alpha(t)")
    close(alpha[0], ends[0], 1e-9, "alpha(0) must be 1 - low: nothing else is noise yet")
    close(alpha[-1], ends[1], 1e-9, "alpha(1) must be 1 - high: all else is noise")
    rising = (alpha.diff() > 1e-12).nonzero()[:, 0]
    expect(
        not len(rising),
        f"alpha must never rise with t; it does after t = {[f'{t:.2f}' for t in grid[rising][:1]]}",
    )
    between = 0.005 + 0.99 * (grid[:-1] + 0.00237)  # no round numbers: kinks sit there
    slope = _asked(schedule.dalpha, between, "dalpha(t)")
    expect(bool((slope <= 0).all()), "dalpha must never be positive: alpha falls")
    h = 1e-6
    difference = (schedule.alpha(between + h) - schedule.alpha(between - h)) / (2 * h)
    close(slope, difference, 1e-4, "dalpha must be the derivative of alpha", at=between)
    reached = ends[1] + (ends[0] - ends[1]) * grid
    back = _asked(schedule.time, reached, "time(alpha)")
    expect(
        bool(((back >= 0) & (back <= 1)).all()),
        f"time(alpha) must be in [0, 1]; got {float(back.min()):.4g} to {float(back.max()):.4g}",
    )
    close(schedule.alpha(back), reached, 1e-7, "time must invert alpha", at=reached)
    for name, at_ends in (
        ("alpha", schedule.alpha(torch.tensor([0.0, 1.0]))),
        ("time", schedule.time(ends.float())),
    ):
        expect(
            at_ends.dtype == torch.float32 and bool(at_ends.isfinite().all()),
            f"{name} must be finite float32 for float32 at both ends; got {at_ends}",
        )


def _asked(ask: Callable[[Tensor], Tensor], x: Tensor, name: str) -> Tensor:
    """ask(x): finite, of the shape of x for scalars, [B] and [B, L]; x is left alone."""
    before = x.clone()
    answer = ask(x)
    expect(torch.equal(x, before), f"{name} must not write into its argument")
    expect(bool(answer.isfinite().all()), f"{name} must be finite; got {answer}")
    for shaped in (x, x[1], x[:6].view(2, 3)):
        wanted, got = list(shaped.shape), list(ask(shaped).shape)
        expect(
            got == wanted, f"{name} must have the shape of its argument, {wanted}; got shape {got}"
        )
    return answer
