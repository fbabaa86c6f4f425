"""Contracts: what every schedule, corruption, step rule, network, denoiser, filter and
objective must keep.

Write your own, then let the check tell you what is wrong with it:

    from sfumato.testing import check_step
    check_step(MyRule(schedule), Masked(vocab_size=5, mask_id=4, schedule=schedule))

A check returns None, or raises an AssertionError that says what was expected and what came. Our own
classes are held to the same checks. Each takes a fraction of a second on one core.
"""

from sfumato.testing.corruptions import check_corruption
from sfumato.testing.denoisers import check_denoiser
from sfumato.testing.filters import check_filter
from sfumato.testing.networks import check_network
from sfumato.testing.objectives import check_objective
from sfumato.testing.schedules import check_schedule
from sfumato.testing.steps import check_step

__all__ = [
    "check_corruption",
    "check_denoiser",
    "check_filter",
    "check_network",
    "check_objective",
    "check_schedule",
    "check_step",
]
