"""The continuous bound: what it measures, by enumeration, and how often its interval covers it."""

import math
from dataclasses import replace

import pytest
import torch
from enumerated_bound import LENGTH, NOISES, WORLD, enumerated, reverse_law
from torch import Tensor
from torch.testing import assert_close
from worlds import MASK, VOCAB, Tabular, batch_of

from sfumato import likelihood
from sfumato.noise.corruption import Corruption, Hybrid, Masked, Uniform
from sfumato.noise.schedules import CosineAlpha, CosineMask, Linear, Power
from sfumato.objectives.bound import LAST, MIX, Continuous, place, time_of
from sfumato.rng import Rng
from sfumato.types import Batch

SCHEDULES = [Linear(), CosineMask(), CosineAlpha(), Power(0.5), Power(3)]


@pytest.mark.parametrize("name", ["uniform", "hybrid"])
@pytest.mark.parametrize("model", ["perfect", "wrong", "equal"])
def test_the_bound_is_one_for_jumps_and_a_last_draw(name, model):
    corruption = NOISES[name]
    world = WORLD.uniform() if model == "equal" else WORLD
    denoiser = world.denoiser(corruption, error=1.0 if model == "wrong" else 0.0)
    law = reverse_law(corruption, denoiser, 600)
    assert float(law.sum()) == pytest.approx(1, abs=1e-6)
    # the steps are small, and not without size: 300 are off by 0.012, 1,000 by 0.004
    assert (enumerated(corruption, denoiser) > -law.log() - 0.01).all()


@pytest.mark.parametrize("name", NOISES)
def test_of_the_perfect_denoiser_it_is_the_entropy(name):
    corruption = NOISES[name]
    excess = float(WORLD.law @ enumerated(corruption, WORLD.denoiser(corruption))) - WORLD.entropy
    assert 0 < excess < 5e-5  # what two tokens, noisy at LAST, say of each other


class Even(Tabular):
    """Finds every token equally likely at any time, also where it sees the text."""

    def __call__(self, tokens, t, where=None, *, segments=None):
        logits = super().__call__(tokens, t, where, segments=segments)
        return torch.where(logits.isinf(), logits, 0.0)


@pytest.mark.parametrize("name", NOISES)
def test_equal_logits_cost_the_vocabulary_or_more(name):
    """In continuous time they cost without end: right tokens are replaced again and again."""
    corruption = NOISES[name]
    denoiser = Even(WORLD.uniform(), corruption, torch.zeros((VOCAB + 1) ** LENGTH, LENGTH, 4))
    texts = batch_of(WORLD.texts.repeat(4, 1))
    found = likelihood.continuous(denoiser, corruption, texts, Rng.from_seed(0), samples=40)
    mean, error = float(found.nats.mean()), float(found.noise.norm() / len(found.noise))
    assert mean + 4 * error >= LENGTH * math.log(VOCAB)
    assert math.isfinite(mean)
    if name == "masked":
        assert mean == pytest.approx(LENGTH * math.log(VOCAB), abs=4 * error)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("noise", [Masked, Uniform, Hybrid])
def test_draws_have_the_enumerated_mean_under_every_schedule(noise, schedule):
    """It does not depend on the schedule where the network is not told the time wrongly."""
    corruption = noise(VOCAB + 1, MASK, schedule)
    denoiser = WORLD.denoiser(corruption, error=1.0)
    rows = batch_of(WORLD.texts.repeat(8, 1))
    found = likelihood.continuous(denoiser, corruption, rows, Rng.from_seed(3), samples=16)
    truth = enumerated(noise(VOCAB + 1, MASK), WORLD.denoiser(noise(VOCAB + 1, MASK), error=1.0))
    law = WORLD.law.repeat(8) / 8
    error = float((law * found.noise).norm())
    assert float(law @ found.nats) == pytest.approx(float(WORLD.law @ truth), abs=4 * error)
    assert error < 0.06 * WORLD.entropy


# --- how it is drawn ---


def test_the_places_have_the_density_that_they_are_weighed_with():
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    for share in (0.0, 0.25):
        at = place(u, share)
        for unhit in (False, True)[: 2 if share else 1]:
            of = at.unhit == unhit
            for power in (0, 1, 4):  # the integral of p ** power over (LAST, 1) of even weight
                p = 1 - at.alpha
                drawn = torch.where(of & ~at.last, at.weight * p**power, 0.0).mean()
                exact = (1 - LAST ** (power + 1)) / (power + 1)
                assert float(drawn) == pytest.approx(exact, rel=1e-2)
            last = torch.where(of & at.last, at.weight, 0.0).mean()
            assert float(last) == pytest.approx(LAST, rel=1e-2)
    assert sum(MIX) == pytest.approx(1)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("noise", [Masked, Uniform, Hybrid])
def test_the_time_of_an_alpha_is_found(noise, schedule):
    corruption = noise(VOCAB + 1, MASK, schedule)
    alpha = torch.tensor([1e-9, 1e-4, 0.3, 0.9, 1 - 1e-3], dtype=torch.float64)
    assert_close(corruption.kernel(time_of(corruption, alpha)).alpha, alpha, rtol=1e-6, atol=0)


@pytest.mark.parametrize("noise", [Masked, Uniform, Hybrid])
@pytest.mark.parametrize("u", [0.0, 1e-12, 0.02, 0.25, 0.999999, 1.0])
def test_nothing_is_nan_wherever_a_draw_falls(noise, u):
    corruption = noise(VOCAB + 1, MASK)
    times = lambda slots, rng: torch.full((len(slots),), u, dtype=torch.float64)  # noqa: E731
    rows = batch_of(WORLD.texts)
    loss = Continuous(corruption, times)(WORLD.denoiser(corruption), rows, Rng.from_seed(0))
    assert loss.nll.isfinite().all()
    assert (loss.nll >= 0).all()


@pytest.mark.parametrize("noise", [Masked, Uniform, Hybrid])
@pytest.mark.parametrize("schedule", [Linear(), CosineMask(), CosineAlpha(), Power()], ids=repr)
def test_the_integrand_is_a_number_at_both_ends_of_time(noise, schedule):
    corruption = noise(VOCAB + 1, MASK, schedule)
    tokens = torch.tensor([0, 1, MASK if noise is not Uniform else 2])
    logp = torch.tensor([0.2, 0.5, 0.3, 0.0]).log().expand(3, 4)
    for t in (0.0, 1.0):
        found = corruption.bound(logp, torch.zeros(3).long(), tokens, torch.full((3,), t))
        assert found.isfinite().all()


def test_what_is_given_is_not_hit_and_a_row_of_nothing_costs_nothing():
    trainable = torch.tensor([False, True, True]).expand_as(WORLD.texts).clone()
    trainable[5] = False
    rows = batch_of(WORLD.texts, trainable)
    corruption = NOISES["uniform"]
    found = likelihood.continuous(
        WORLD.denoiser(corruption), corruption, rows, Rng.from_seed(0), samples=4
    )
    assert found.nats[5] == 0
    assert found.each[:, 0].eq(0).all()


def test_a_row_does_not_depend_on_the_batch_it_is_in():
    corruption = NOISES["hybrid"]
    denoiser, rows = WORLD.denoiser(corruption), batch_of(WORLD.texts)
    alone = Batch(*(part[7:8] for part in vars(rows).values()))
    both = [
        likelihood.continuous(denoiser, corruption, part, Rng.from_seed(0), samples=3)
        for part in (rows, alone)
    ]
    assert_close(both[0].nats[7:8], both[1].nats)


# --- how sure it says to be ---


def cover(corruption: Corruption, denoiser: Tabular, texts: Tensor, samples: int) -> float:
    """The share of intervals, each of one text by itself, that hold the enumerated bound."""
    truth = enumerated(corruption, denoiser)
    found = likelihood.continuous(
        denoiser, corruption, batch_of(WORLD.texts[texts]), Rng.from_seed(7), samples=samples
    )
    intervals = replace(found, tokens=torch.ones_like(found.tokens)).per_row
    inside = [e.low <= x <= e.high for e, x in zip(intervals, truth[texts].tolist(), strict=True)]
    return sum(inside) / len(inside)


@pytest.mark.parametrize("model", ["perfect", "wrong"])
@pytest.mark.parametrize("name", NOISES)
def test_the_interval_of_one_text_covers_its_bound_as_often_as_it_says(name, model):
    """32 samples, as `DiffusionLM.score` takes; texts as the law writes them.

    400 texts: 0.93 to 0.97, and 2 standard deviations of a share, 0.01 each. Even t and plain noise
    covered 0.72 (uniform) and 0.71 (hybrid).
    """
    corruption = NOISES[name]
    denoiser = WORLD.denoiser(corruption, error=1.0 if model == "wrong" else 0.0)
    draw = torch.Generator().manual_seed(1)
    texts = torch.multinomial(WORLD.law, 400, replacement=True, generator=draw)
    assert 0.91 <= cover(corruption, denoiser, texts, 32) <= 0.99
