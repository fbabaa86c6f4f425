"""What a likelihood says of its rows."""

import math

import pytest
import torch
from worlds import MASK, VOCAB, World, batch_of

from sfumato import likelihood
from sfumato.decoding.unmask import (
    Margin,
)
from sfumato.likelihood.result import Likelihood
from sfumato.noise.corruption import Masked
from sfumato.noise.schedules import Linear
from sfumato.rng import Rng

LENGTH = 3
WORLD = World.random(LENGTH)
TEXTS = batch_of(WORLD.texts)
MASKED = Masked(VOCAB + 1, MASK)
PERFECT, WRONG = WORLD.denoiser(MASKED), WORLD.denoiser(MASKED, error=1.0)
RNG = Rng.from_seed(0)


def test_likelihoods_of_batches_join():
    first = likelihood.exact_k(WRONG, MASKED, TEXTS, RNG, samples=2)
    both = Likelihood.join([first, first])
    assert both.per_token.value == pytest.approx(first.per_token.value)
    assert len(both.nats) == 2 * len(first.nats)
    assert both.accuracy == first.accuracy
    assert first.bits_per_byte(2 * first.tokens).value == pytest.approx(
        first.per_token.value / math.log(2) / 2
    )
    row = first.per_row[4]
    assert row.value == pytest.approx(float(first.nats[4]) / LENGTH)
    assert row.error == pytest.approx(float(first.noise[4]) / LENGTH)


def test_accuracy_counts_the_most_likely_tokens_that_are_true():
    found = likelihood.discrete(WRONG, MASKED, TEXTS, RNG, num_steps=1)
    start = WRONG(torch.full_like(WORLD.texts[:1], MASK), torch.ones(1))[0].argmax(-1)
    assert found.accuracy == pytest.approx(float((WORLD.texts == start).double().mean()))
    decoded = likelihood.by_decoder(WRONG, MASKED, TEXTS, Margin(Linear()), num_steps=1)
    assert decoded.accuracy == pytest.approx(found.accuracy)
