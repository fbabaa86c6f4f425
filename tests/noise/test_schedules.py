import math

import pytest
import torch

from sfumato.decoding.remask import Plateau
from sfumato.errors import ConfigError
from sfumato.noise.schedules import (
    SCHEDULES,
    Clipped,
    CosineAlpha,
    CosineMask,
    Linear,
    LogLinear,
    Power,
    reveal_rate,
    schedule,
    schedule_from,
)
from sfumato.testing import check_schedule

ALL = [
    Linear(),
    CosineMask(),
    CosineAlpha(),
    LogLinear(),
    LogLinear(eps=0.1),
    Power(),
    Power(0.5),
    Power(3),
    Clipped(),
    Clipped(CosineMask(), 0.1, 1.0),
    Clipped(CosineAlpha(), 0.0, 0.6),
    Clipped(LogLinear(0.1), 0.0, 1.0),
    Clipped(Clipped(Power(3)), 0.1, 0.9),
    Plateau(Linear(), 0.55, 0.05, 0.9),
    Plateau(CosineMask(), 0.55, 0.05, 0.9),
    Plateau(CosineAlpha(), 0.7, 0.2, 0.5),
]


@pytest.mark.parametrize("each", ALL, ids=repr)
def test_every_schedule_keeps_the_contract(each):
    check_schedule(each)


@pytest.mark.parametrize("each", ALL, ids=repr)
def test_dalpha_is_what_autograd_finds(each):
    t = (torch.linspace(0.003, 0.997, 57, dtype=torch.float64) ** 1.01).requires_grad_()
    (slope,) = torch.autograd.grad(each.alpha(t).sum(), t)
    torch.testing.assert_close(each.dalpha(t.detach()), slope, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("each", ALL, ids=repr)
def test_a_schedule_prints_as_it_is_made(each):
    assert eval(repr(each)) == each


@pytest.mark.parametrize(
    ("each", "alpha"),
    [
        (Linear(), lambda t: 1 - t),
        (CosineMask(), lambda t: math.cos(math.pi / 2 * t)),
        (CosineAlpha(), lambda t: 1 - math.cos(math.pi / 2 * (1 - t))),
        (LogLinear(0.01), lambda t: 1 - 0.99 * t),
        (Power(3), lambda t: 1 - t**3),
        (Clipped(Linear(), 0.2, 0.7), lambda t: 1 - (0.2 + 0.5 * t)),
    ],
    ids=lambda value: repr(value) if not callable(value) else "formula",
)
def test_alpha_is_the_formula_of_the_paper(each, alpha):
    for t in (0.0, 0.1, 0.5, 0.9, 1.0):
        got = float(each.alpha(torch.tensor(t, dtype=torch.float64)))
        assert got == pytest.approx(alpha(t), abs=1e-15)


@pytest.mark.parametrize("each", ALL, ids=repr)
def test_time_of_an_alpha_out_of_reach_is_the_nearer_end(each):
    for dtype in (torch.float32, torch.float64):
        ends = each.time(torch.tensor([1.0 + 1e-6, -1e-6], dtype=dtype))
        torch.testing.assert_close(ends, ends.new_tensor([0, 1]), rtol=0, atol=1e-7)


def test_the_two_cosines_are_two():
    half = torch.tensor(0.5)
    assert float(CosineMask().alpha(half)) == pytest.approx(0.7071, abs=1e-4)
    assert float(CosineAlpha().alpha(half)) == pytest.approx(0.2929, abs=1e-4)


def test_names_give_schedules():
    named = {name: schedule(name) for name in SCHEDULES}
    assert named["linear"] == Linear()
    assert named["cosine"] == named["cosine_mask"] == CosineMask()
    assert named["cosine_alpha"] == CosineAlpha()
    assert named["loglinear"] == named["log_linear"] == LogLinear()
    assert named["polynomial"] == named["power"] == Power()
    assert schedule("power", exponent=3) == Power(3)
    assert schedule("clipped", low=0.1, high=0.9) == Clipped(low=0.1, high=0.9)


def test_a_schedule_may_be_made_from_another():
    spec = {"name": "clipped", "low": 0.1, "schedule": {"name": "power", "exponent": 3}}
    assert schedule_from(spec) == schedule(**spec) == Clipped(Power(3), low=0.1)
    assert spec["schedule"] == {"name": "power", "exponent": 3}  # left as it was
    assert schedule_from({"name": "clipped", "schedule": "cosine_alpha"}) == Clipped(CosineAlpha())
    assert schedule_from({"name": "clipped", "schedule": spec}) == Clipped(Clipped(Power(3), 0.1))
    assert schedule_from("cosine") == CosineMask()
    assert schedule_from({}) == Linear()


@pytest.mark.parametrize("each", ALL, ids=repr)
def test_the_reveal_rate_is_the_share_that_becomes_clean(each):
    t, s = torch.tensor([0.9, 0.5, 0.31, 0.3]), torch.tensor([0.6, 0.1, 0.3, 0.0])
    alpha_t, alpha_s = each.alpha(t.double()), each.alpha(s.double())
    rate = reveal_rate(each, t, s)
    assert rate.dtype == torch.float64
    # the share noisy at t that is still noisy at s
    torch.testing.assert_close(((1 - rate) * (1 - alpha_t))[:3], (1 - alpha_s)[:3])
    assert float(rate[3]) == 1  # at s = 0 everything is clean


def test_the_reveal_rate_is_defined_where_nothing_is_noisy():
    zero = torch.zeros(2)
    assert bool(reveal_rate(Linear(), zero, zero).isfinite().all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogLinear(-0.1), r"LogLinear eps must be in \[0, 1\), got -0.1"),
        (lambda: LogLinear(1), r"LogLinear eps must be in \[0, 1\), got 1"),
        (lambda: Power(0), "Power exponent must be positive, got 0"),
        (lambda: Power(float("nan")), "Power exponent must be positive, got nan"),
        (lambda: Clipped(low=0.5, high=0.5), "Clipped needs 0 <= low < high <= 1, got low 0.5"),
        (lambda: Clipped(low=-0.1), "Clipped low must be in \\[0, 1\\], got -0.1"),
        (lambda: schedule("linaer"), "unknown schedule 'linaer'; did you mean linear"),
        (lambda: schedule("clipped", schedule="linaer"), "unknown schedule 'linaer'"),
        (lambda: schedule("linear", schedule="power"), "schedule 'linear': .*unexpected keyword"),
        (lambda: schedule("clipped", schedule=3), "a schedule is a name, or .*; got 3"),
        (lambda: schedule_from({"name": 3}), "a schedule is a name, or .*; got {'name': 3}"),
        (lambda: schedule("power", base=2), "schedule 'power': .*unexpected keyword.*'base'"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
