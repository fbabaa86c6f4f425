"""What is exact for one way of writing is the law, and texts are written as often as it says."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from worlds import MASK, VOCAB, World, batch_of

from sfumato import likelihood
from sfumato.decoding.filters import Temperature, TopK, TopP
from sfumato.decoding.loops import generate
from sfumato.decoding.page import blank
from sfumato.decoding.unmask import (
    EntropyBound,
    Factor,
    LeftToRight,
    LowEntropy,
    Margin,
    Threshold,
    TopProbability,
    highest,
    quota,
    spread,
)
from sfumato.noise.corruption import Masked
from sfumato.noise.schedules import CosineAlpha, CosineMask, Linear
from sfumato.rng import Rng

LENGTH = 3
WORLD = World.random(LENGTH)
TEXTS = batch_of(WORLD.texts)
MASKED = Masked(VOCAB + 1, MASK)
PERFECT, WRONG = WORLD.denoiser(MASKED), WORLD.denoiser(MASKED, error=1.0)
RULES = [
    TopProbability(Linear()),
    Margin(Linear()),
    LowEntropy(CosineMask()),
    LeftToRight(CosineAlpha()),
    Threshold(Linear(), level=0.6),
    Factor(Linear()),
    EntropyBound(Linear(), gamma=0.4),
]


def test_by_order_of_the_perfect_denoiser_is_the_law_in_every_order():
    for order in itertools.permutations(range(LENGTH)):
        order = torch.tensor(order).expand_as(WORLD.texts)
        found = likelihood.by_order(PERFECT, MASKED, TEXTS, order)
        assert_close(found.nats, -WORLD.law.log(), rtol=1e-6, atol=0)
        assert found.noise.eq(0).all()


@pytest.mark.parametrize("step", RULES, ids=repr)
@pytest.mark.parametrize("num_steps", [1, 2, 3])  # 3, 2 and 1 tokens a step
def test_likelihoods_by_decoder_sum_to_one(step, num_steps):
    found = likelihood.by_decoder(WRONG, MASKED, TEXTS, step, num_steps=num_steps)
    assert_close(float(found.nats.neg().exp().sum()), 1.0)


@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize("filters", [(), (Temperature(0.7), TopK(2)), (TopP(0.8),)], ids=str)
def test_likelihoods_by_decoder_sum_to_one_with_blocks_and_filters(lookahead, filters):
    found = likelihood.by_decoder(
        *(WRONG, MASKED, TEXTS, Margin(Linear())),
        num_steps=2,
        block=2,
        lookahead=lookahead,
        filters=filters,
    )
    assert_close(float(found.nats.neg().exp().sum()), 1.0)
    assert found.nats.isinf().any() == bool(filters)


@dataclass(frozen=True)
class Peeking(TopProbability):
    """Chooses by the probability of the true token, which a decoder does not know."""

    truth: Tensor | None = None

    def choose(self, canvas, seen, t, s):
        where = seen.where
        true = seen.logits.softmax(-1).gather(-1, self.truth[where][:, None])[:, 0]
        return highest(spread(true, where, 0.0), canvas.noisy, quota(canvas, self.schedule, t, s))


def test_a_rule_that_peeks_at_the_truth_does_not_sum_to_one():
    found = likelihood.by_decoder(WRONG, MASKED, TEXTS, Peeking(Linear(), TEXTS.tokens))
    assert found.nats.neg().exp().sum() > 1.2


@pytest.mark.parametrize("block", [None, 2])
@pytest.mark.parametrize("step", [Margin(Linear()), EntropyBound(Linear(), gamma=0.4)], ids=repr)
def test_generate_writes_texts_as_often_as_their_likelihood_by_decoder_says(step, block):
    expected = likelihood.by_decoder(WRONG, MASKED, TEXTS, step, num_steps=2, block=block)
    count = 20_000
    rng = Rng.from_seed(1, count)
    template = torch.zeros(count, LENGTH, dtype=torch.int64)
    canvas = blank(MASKED, template, torch.zeros_like(template, dtype=torch.bool), rng)
    *_, page = generate(WRONG, canvas, step, rng, num_steps=2, block=block)
    law = World(WORLD.texts, expected.nats.neg().exp())
    assert law.distance(page.tokens) < 1.5 * law.noise_floor(count)
    assert WORLD.distance(page.tokens) > 5 * law.noise_floor(count)


@pytest.mark.parametrize("step", [rule for rule in RULES if rule.exact], ids=repr)
def test_by_decoder_one_token_a_step_with_the_perfect_denoiser_is_the_law(step):
    schedule_free = type(step)(Linear())
    found = likelihood.by_decoder(PERFECT, MASKED, TEXTS, schedule_free)
    assert_close(found.nats, -WORLD.law.log(), rtol=1e-6, atol=0)
