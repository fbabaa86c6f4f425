"""Bounds measure what enumeration finds, and their intervals cover it."""

import itertools
import math

import pytest
import torch
from enumerated_bound import assert_measures
from torch import Tensor
from torch.testing import assert_close
from worlds import MASK, VOCAB, Tabular, World, batch_of

from sfumato import likelihood
from sfumato.noise.corruption import Hybrid, Masked, Uniform
from sfumato.noise.schedules import CosineAlpha, CosineMask, Linear
from sfumato.rng import Rng

LENGTH = 3
WORLD = World.random(LENGTH)
TEXTS = batch_of(WORLD.texts)
MASKED = Masked(VOCAB + 1, MASK)
PERFECT, WRONG = WORLD.denoiser(MASKED), WORLD.denoiser(MASKED, error=1.0)
RNG = Rng.from_seed(0)


def cross_entropy(denoiser: Tabular, noisy: Tensor) -> Tensor:
    """[S]: of every text, summed over the positions noisy [L], which are masked."""
    tokens = WORLD.texts.masked_fill(noisy, MASK)
    logp = denoiser(tokens, torch.zeros(len(tokens))).log_softmax(-1)
    return -(logp.gather(-1, WORLD.texts[..., None])[..., 0] * noisy).sum(1)


def patterns():
    """Every way to mask at least one position."""
    return [torch.tensor(p) for p in itertools.product([False, True], repeat=LENGTH) if any(p)]


def enumerated_bound(denoiser: Tabular) -> Tensor:
    """[S]: mean over k = 1..n, and over the patterns with k masks, of n / k cross-entropy."""
    total = torch.zeros(len(WORLD.texts), dtype=torch.float64)
    for noisy in patterns():
        k = int(noisy.sum())
        total += cross_entropy(denoiser, noisy) / math.comb(LENGTH, k) / k
    return total


def discrete_bound(denoiser: Tabular, num_steps: int) -> Tensor:
    """[S]: sum over the linear schedule's steps and all patterns, each with its probability."""
    total = torch.zeros(len(WORLD.texts), dtype=torch.float64)
    for number in range(1, num_steps + 1):
        t = number / num_steps
        for noisy in patterns():
            k = int(noisy.sum())
            chance = t**k * (1 - t) ** (LENGTH - k)
            total += chance / number * cross_entropy(denoiser, noisy)  # (t - s) / t = 1 / number
    return total


def test_bound_of_the_perfect_denoiser_is_the_entropy():
    assert_close(float(WORLD.law @ enumerated_bound(PERFECT)), WORLD.entropy)
    assert float(WORLD.law @ enumerated_bound(WRONG)) > WORLD.entropy + 0.1


@pytest.mark.parametrize("denoiser", [PERFECT, WRONG], ids=["perfect", "wrong"])
def test_exact_k_measures_the_enumerated_bound(denoiser):
    found = likelihood.exact_k(denoiser, MASKED, TEXTS, RNG, samples=600)
    assert_measures(found, enumerated_bound(denoiser), within=0.01)


@pytest.mark.parametrize("schedule", [Linear(), CosineMask(), CosineAlpha()], ids=repr)
@pytest.mark.parametrize("corruption", [Masked, Uniform, Hybrid])
def test_continuous_bound_of_the_perfect_denoiser_is_the_entropy(corruption, schedule):
    corruption = corruption(VOCAB + 1, MASK, schedule)
    denoiser = WORLD.denoiser(corruption)
    found = likelihood.continuous(denoiser, corruption, TEXTS, RNG, samples=60)
    assert_measures(found, -WORLD.law.log(), within=0.1)


@pytest.mark.parametrize("corruption", [Uniform, Hybrid])
def test_continuous_bound_of_another_denoiser_is_more_than_the_entropy(corruption):
    corruption = corruption(VOCAB + 1, MASK)
    denoiser = WORLD.denoiser(corruption, error=1.0)
    found = likelihood.continuous(denoiser, corruption, TEXTS, RNG, samples=40)
    assert WORLD.law @ found.nats > WORLD.entropy + 0.1


def test_bound_takes_the_estimator_that_fits_the_corruption():
    uniform = Uniform(VOCAB + 1, MASK)
    assert likelihood.bound(PERFECT, MASKED, TEXTS, RNG).estimator == "exact_k(samples=1)"
    found = likelihood.bound(WORLD.denoiser(uniform), uniform, TEXTS, RNG, samples=2)
    assert found.estimator == "continuous(samples=2)"


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_discrete_measures_the_enumerated_sum(num_steps):
    found = likelihood.discrete(WRONG, MASKED, TEXTS, RNG, num_steps=num_steps, samples=600)
    assert_measures(found, discrete_bound(WRONG, num_steps), within=0.03)


def test_discrete_with_one_step_is_the_sum_of_the_marginals():
    found = likelihood.discrete(WRONG, MASKED, TEXTS, RNG, num_steps=1)
    all_noisy = torch.ones(LENGTH, dtype=torch.bool)
    assert_close(found.nats, cross_entropy(WRONG, all_noisy), rtol=1e-6, atol=0)


def test_discrete_tends_to_the_continuous_bound():
    gaps = [
        WORLD.law @ (discrete_bound(PERFECT, n) - enumerated_bound(PERFECT)) for n in (1, 10, 100)
    ]
    assert gaps[0] > 5 * gaps[1] > 25 * gaps[2] > 0
    found = likelihood.discrete(PERFECT, MASKED, TEXTS, RNG, num_steps=500)
    assert_measures(found, enumerated_bound(PERFECT), within=0.03)


def test_the_interval_of_exact_k_covers_the_truth_as_often_as_it_says():
    truth = float(WORLD.law @ enumerated_bound(WRONG)) / LENGTH
    covered, runs = 0, 200
    for run in range(runs):
        batch = batch_of(WORLD.sample(60, seed=run))
        found = likelihood.exact_k(WRONG, MASKED, batch, Rng.from_seed(run), samples=2).per_token
        covered += found.low <= truth <= found.high
    assert abs(covered - 0.95 * runs) < 4 * math.sqrt(runs * 0.95 * 0.05)


def test_systematic_draws_are_as_noisy_as_they_say():
    """Not as noisy as independent ones: their times add next to nothing."""
    every = [
        likelihood.exact_k(WRONG, MASKED, TEXTS, Rng.from_seed(seed), samples=20)
        for seed in range(30)
    ]
    spread_out = torch.stack([each.nats for each in every]).std(0)
    said = torch.stack([each.noise.square() for each in every]).mean(0).sqrt()
    assert 0.9 < (spread_out / said).mean() < 1.03


def test_mean_over_all_orders_is_the_exact_k_bound_and_bounds_their_mixture():
    each = torch.stack(
        [
            likelihood.by_order(
                WRONG, MASKED, TEXTS, torch.tensor(order).expand_as(WORLD.texts)
            ).nats
            for order in itertools.permutations(range(LENGTH))
        ]
    )
    assert_close(each.mean(0), enumerated_bound(WRONG), rtol=1e-6, atol=0)
    assert (each.mean(0) > -each.neg().exp().mean(0).log()).all()
    found = likelihood.any_order(WRONG, MASKED, TEXTS, RNG, samples=100)
    assert_measures(found, each.mean(0), within=0.01)
