"""Every estimator over every schedule and noise: a bound on -log p, or refused.

What generation writes is enumerated: the law of the texts that T steps of the reverse process
make, for a perfect denoiser, for a wrong one and for one that finds all tokens equally likely.
"""

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from worlds import MASK, VOCAB, Tabular, World, batch_of

from sfumato import likelihood
from sfumato.decoding.unmask import Ancestral, Margin, RandomOrder
from sfumato.errors import ConfigError
from sfumato.likelihood.result import Likelihood
from sfumato.likelihood.teacher_forcing import teacher_forced
from sfumato.noise.corruption import Hybrid, Masked, Uniform
from sfumato.noise.schedules import (
    Clipped,
    CosineAlpha,
    CosineMask,
    Linear,
    LogLinear,
    Power,
    Schedule,
    reveal_rate,
)
from sfumato.rng import Rng

LENGTH = 3
WORLD = World.random(LENGTH)
TEXTS = batch_of(WORLD.texts)
RNG = Rng.from_seed(0)
EQUAL = LENGTH * math.log(VOCAB)  # nats of a text whose tokens are all equally likely
SCHEDULES = [
    Linear(),
    CosineMask(),
    CosineAlpha(),
    LogLinear(0),
    LogLinear(1e-3),
    LogLinear(0.1),
    LogLinear(0.5),
    Power(0.5),
    Power(3),
    Clipped(),
    Clipped(Linear(), 0.0, 1.0),
    Clipped(CosineMask(), 0.0, 0.5),
    Clipped(CosineAlpha(), 0.2, 1.0),
    Clipped(LogLinear(0.1), 0.0, 1.0),
    Clipped(Power(3), 0.45, 0.55),
]
WHOLE = [each for each in SCHEDULES if each.low == 0 and each.high == 1]
MODELS = {
    "perfect": WORLD.denoiser,
    "wrong": lambda c: WORLD.denoiser(c, error=1.0),
    "equal": WORLD.uniform().denoiser,
}


def at_least(found: Likelihood, truth: Tensor, deviations: float = 4.5):
    """Every row is the truth or more, as far as the noise lets one see."""
    short = truth - found.nats
    assert (short < deviations * found.noise + 1e-6).all(), (short / found.noise).max()


def ancestral_law(denoiser: Tabular, schedule: Schedule, num_steps: int) -> Tensor:
    """[S]: how probable T steps of masked generation make each text, by its subsets of masks."""
    subsets = [torch.tensor(s) for s in itertools.product([False, True], repeat=LENGTH)]
    logp = {}
    for masked in subsets:
        seen = WORLD.texts.masked_fill(masked, MASK)
        each = denoiser(seen, torch.zeros(len(seen))).log_softmax(-1)
        logp[tuple(masked.tolist())] = each.gather(-1, WORLD.texts[..., None])[..., 0]
    chance = {tuple(s.tolist()): torch.zeros(len(WORLD.texts)).double() for s in subsets}
    chance[(True,) * LENGTH] += 1
    for number in range(num_steps, 0, -1):
        t, s = torch.tensor([number / num_steps]), torch.tensor([(number - 1) / num_steps])
        rate = float(reveal_rate(schedule, t, s))
        later = {key: torch.zeros_like(value) for key, value in chance.items()}
        for before, after in itertools.product(subsets, subsets):
            if (after & ~before).any():
                continue
            shown = before & ~after
            ways = rate ** int(shown.sum()) * (1 - rate) ** int(after.sum())
            key = tuple(before.tolist())
            wrote = (logp[key] * shown).nan_to_num(0).sum(1).exp()
            later[tuple(after.tolist())] += chance[key] * ways * wrote
        chance = later
    return chance[(False,) * LENGTH]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("model", MODELS)
def test_discrete_bounds_what_ancestral_generation_writes(model, schedule):
    corruption = Masked(VOCAB + 1, MASK, schedule)
    denoiser = MODELS[model](corruption)
    for num_steps in (1, 3) if model == "equal" else (3,):
        law = ancestral_law(denoiser, schedule, num_steps)
        assert float(law.sum()) == pytest.approx(1, rel=1e-9)
        found = likelihood.discrete(
            denoiser, corruption, TEXTS, RNG, num_steps=num_steps, samples=20 * num_steps
        )
        at_least(found, -law.log())
        if model == "equal":
            error = float((WORLD.law * found.noise).norm())
            assert float(WORLD.law @ found.nats) == pytest.approx(EQUAL, abs=4 * error + 1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_discrete_is_what_following_ancestral_generation_finds(schedule):
    """Two ways to the same number: noise put on, and generation led along the text."""
    corruption = Masked(VOCAB + 1, MASK, schedule)
    denoiser, draws = MODELS["wrong"](corruption), 60
    found = likelihood.discrete(denoiser, corruption, TEXTS, RNG, num_steps=3, samples=3 * draws)
    many = batch_of(WORLD.texts.repeat(draws, 1))
    rng = Rng.for_rows(1, many.slots)
    nats = teacher_forced(denoiser, corruption, many, Ancestral(corruption), rng, num_steps=3)
    each = nats.view(draws, -1)
    error = (found.noise.square() + each.var(0) / draws).sqrt()
    assert ((found.nats - each.mean(0)).abs() < 4.5 * error + 1e-6).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["exact_k", "any_order", "teacher_forced"])
def test_bounds_free_of_the_schedule_are_bounds_under_every_one(name, model, schedule):
    corruption = Masked(VOCAB + 1, MASK, schedule)
    denoiser = MODELS[model](corruption)
    orders = [torch.tensor(o) for o in itertools.permutations(range(LENGTH))]
    each = [
        likelihood.by_order(denoiser, corruption, TEXTS, order.expand_as(WORLD.texts)).nats
        for order in orders
    ]
    law = torch.stack(each).neg().exp().mean(0)
    assert float(law.sum()) == pytest.approx(1, rel=1e-6)
    if name == "teacher_forced":
        many = batch_of(WORLD.texts.repeat(30, 1))
        rule = RandomOrder(Linear())  # one a step
        nats = teacher_forced(denoiser, corruption, many, rule, Rng.for_rows(1, many.slots))
        nats = nats.view(30, -1)
        noise, tokens = nats.std(0) / math.sqrt(30), TEXTS.trainable.sum(1)
        found = Likelihood(
            "teacher_forced", nats.mean(0)[:, None], noise, 0 * noise + 29, tokens, 0, 0
        )
    else:
        found = getattr(likelihood, name)(denoiser, corruption, TEXTS, RNG, samples=30)
    at_least(found, -law.log())
    if model == "equal":
        assert_close(found.nats, torch.full_like(found.nats, EQUAL), rtol=1e-6, atol=0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_a_decoder_has_an_exact_likelihood_under_every_schedule(num_steps, schedule):
    corruption = Masked(VOCAB + 1, MASK, schedule)
    for model in ("wrong", "equal"):
        denoiser = MODELS[model](corruption)
        found = likelihood.by_decoder(
            denoiser, corruption, TEXTS, Margin(schedule), num_steps=num_steps
        )
        assert float(found.nats.neg().exp().sum()) == pytest.approx(1, rel=1e-6)
        rows = Rng.for_rows(0, TEXTS.slots)
        again = teacher_forced(
            denoiser, corruption, TEXTS, Margin(schedule), rows, num_steps=num_steps
        )
        assert_close(again, found.nats, rtol=1e-6, atol=1e-6)


SHORT = [each for each in SCHEDULES if each not in WHOLE]


@pytest.mark.parametrize("schedule", SHORT, ids=repr)
@pytest.mark.parametrize("noise", [Masked, Uniform, Hybrid])
def test_the_continuous_bound_refuses_schedules_that_leave_noise_rates_out(noise, schedule):
    corruption = noise(VOCAB + 1, MASK, schedule)
    with pytest.raises(ConfigError, match="leaves some out"):
        likelihood.continuous(WORLD.denoiser(corruption), corruption, TEXTS, RNG)


@pytest.mark.parametrize("noise", [Uniform, Hybrid])
@pytest.mark.parametrize(
    "estimate",
    [
        lambda d, c: likelihood.exact_k(d, c, TEXTS, RNG),
        lambda d, c: likelihood.any_order(d, c, TEXTS, RNG),
        lambda d, c: likelihood.by_order(d, c, TEXTS, TEXTS.tokens),
        lambda d, c: likelihood.discrete(d, c, TEXTS, RNG, num_steps=2),
        lambda d, c: likelihood.by_decoder(d, c, TEXTS, Margin(Linear())),
        lambda d, c: teacher_forced(d, c, TEXTS, Margin(Linear()), Rng.for_rows(0, TEXTS.slots)),
    ],
    ids=["exact_k", "any_order", "by_order", "discrete", "by_decoder", "teacher_forced"],
)
def test_what_is_about_masks_refuses_other_noise(estimate, noise):
    corruption = noise(VOCAB + 1, MASK)
    with pytest.raises(ConfigError, match="masked diffusion"):
        estimate(WORLD.denoiser(corruption), corruption)
