"""Likelihoods of prompts, padded and packed rows and networks; what is refused."""

import itertools

import pytest
import torch
from enumerated_bound import assert_measures
from torch.testing import assert_close
from worlds import MASK, VOCAB, World, batch_of

from sfumato import likelihood
from sfumato.decoding.unmask import (
    Ancestral,
    LowEntropy,
    Margin,
    RandomOrder,
    TopConfidence,
    TopProbability,
)
from sfumato.denoisers.full import Full, autoregressive
from sfumato.errors import ConfigError
from sfumato.models import DiffusionTransformer, TransformerConfig
from sfumato.models.attention import HIDDEN
from sfumato.noise.corruption import Masked, Uniform
from sfumato.noise.schedules import Clipped, Linear, LogLinear
from sfumato.rng import Rng
from sfumato.types import Batch

LENGTH = 3
WORLD = World.random(LENGTH)
TEXTS = batch_of(WORLD.texts)
MASKED = Masked(VOCAB + 1, MASK)
PERFECT, WRONG = WORLD.denoiser(MASKED), WORLD.denoiser(MASKED, error=1.0)
RNG = Rng.from_seed(0)


def test_all_of_them_read_the_size_of_the_vocabulary_from_a_uniform_denoiser():
    denoiser = WORLD.uniform().denoiser(MASKED)
    order = torch.arange(LENGTH).expand_as(WORLD.texts)
    for found in (
        likelihood.exact_k(denoiser, MASKED, TEXTS, RNG, samples=2),
        likelihood.any_order(denoiser, MASKED, TEXTS, RNG, samples=2),
        likelihood.by_order(denoiser, MASKED, TEXTS, order),
        likelihood.by_decoder(denoiser, MASKED, TEXTS, Margin(Linear()), num_steps=2),
    ):
        assert found.perplexity.value == pytest.approx(VOCAB, rel=1e-6), found.estimator


def test_a_prompt_is_given_and_not_scored():
    trainable = torch.tensor([False, True, True]).expand_as(WORLD.texts)
    batch = batch_of(WORLD.texts, trainable)
    first = torch.zeros(VOCAB, dtype=torch.float64).index_add(0, WORLD.texts[:, 0], WORLD.law)
    expected = -(WORLD.law / first[WORLD.texts[:, 0]]).log()
    order = torch.tensor([0, 2, 1]).expand_as(WORLD.texts)
    for found in (
        likelihood.by_order(PERFECT, MASKED, batch, order),
        likelihood.by_decoder(PERFECT, MASKED, batch, Margin(Linear())),
    ):
        assert_close(found.nats, expected, rtol=1e-6, atol=0)
        assert found.tokens.eq(2).all()
    assert_measures(
        likelihood.exact_k(PERFECT, MASKED, batch, RNG, samples=200), expected, within=0.02
    )


def test_a_row_does_not_depend_on_the_batch_it_is_in():
    row = 7
    alone = Batch(*(part[row : row + 1] for part in vars(TEXTS).values()))
    for estimate in (
        lambda batch: likelihood.exact_k(WRONG, MASKED, batch, RNG, samples=3),
        lambda batch: likelihood.discrete(WRONG, MASKED, batch, RNG, num_steps=3),
        lambda batch: likelihood.any_order(WRONG, MASKED, batch, RNG, samples=2),
        lambda batch: likelihood.by_decoder(WRONG, MASKED, batch, Margin(Linear()), num_steps=2),
    ):
        together, by_itself = estimate(TEXTS), estimate(alone)
        assert_close(together.nats[row : row + 1], by_itself.nats)
        assert_close(together.noise[row : row + 1], by_itself.noise)


def network(**changes) -> DiffusionTransformer:
    """A real network on the worlds' tokens, with weights large enough to matter."""
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=VOCAB + 1,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        mask_token_id=MASK,
        **changes,
    )
    model = DiffusionTransformer(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model


@pytest.mark.parametrize("block", [None, 2])
def test_a_network_sums_to_one_by_decoder(block):
    denoiser, step = Full(network(), MASK), LowEntropy(Linear())
    found = likelihood.by_decoder(denoiser, MASKED, TEXTS, step, num_steps=2, block=block)
    assert float(found.nats.neg().exp().sum()) == pytest.approx(1, rel=1e-5)
    assert found.nats.std() > 0.1


def test_a_network_sums_to_one_left_to_right():
    found = likelihood.left_to_right(autoregressive(network(), MASK), TEXTS)
    assert float(found.nats.neg().exp().sum()) == pytest.approx(1, rel=1e-5)
    assert found.nats.std() > 0.1


def test_bounds_of_a_network_agree():
    denoiser = Full(network(), MASK)
    every_order = torch.stack(
        [
            likelihood.by_order(
                denoiser, MASKED, TEXTS, torch.tensor(order).expand_as(WORLD.texts)
            ).nats
            for order in itertools.permutations(range(LENGTH))
        ]
    ).mean(0)
    for found in (
        likelihood.exact_k(denoiser, MASKED, TEXTS, RNG, samples=100),
        likelihood.continuous(denoiser, MASKED, TEXTS, RNG, samples=100),
        likelihood.discrete(denoiser, MASKED, TEXTS, RNG, num_steps=200, samples=100),
    ):
        assert_measures(found, every_order, within=0.2)


def test_left_to_right_is_the_order_from_the_left_of_a_causal_denoiser():
    denoiser = autoregressive(network(), MASK)
    order = torch.arange(LENGTH).expand_as(WORLD.texts)
    assert_close(
        likelihood.left_to_right(denoiser, TEXTS).nats,
        likelihood.by_order(denoiser, MASKED, TEXTS, order).nats,
        rtol=1e-5,
        atol=1e-5,
    )


def test_padding_and_packing_change_nothing():
    denoiser = Full(network(), MASK)
    pair = WORLD.sample(2)
    alone = batch_of(pair)
    nothing = torch.zeros_like(pair)
    padded = Batch(
        tokens=torch.cat((pair, nothing), 1),
        trainable=torch.cat((nothing == 0, nothing != 0), 1),
        segments=torch.cat((nothing, nothing + HIDDEN), 1),
        slots=alone.slots,
    )
    packed = Batch(
        tokens=pair.reshape(1, -1),
        trainable=torch.ones(1, 2 * LENGTH, dtype=torch.bool),
        segments=torch.arange(2).repeat_interleave(LENGTH)[None],
        slots=torch.tensor([0]),
    )

    def measured(batch, order):
        return (
            likelihood.by_order(denoiser, MASKED, batch, order).nats,
            likelihood.by_decoder(denoiser, MASKED, batch, TopProbability(Linear())).nats,
        )

    expected = measured(alone, torch.arange(LENGTH).expand_as(pair))
    found = measured(padded, torch.arange(2 * LENGTH).expand_as(padded.tokens))
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found = measured(packed, torch.arange(2 * LENGTH)[None])
    assert_close(found, tuple(x.sum()[None] for x in expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "step", [TopConfidence(Linear()), RandomOrder(Linear()), Ancestral(MASKED)], ids=repr
)
def test_a_rule_that_chooses_by_chance_or_by_drawn_tokens_is_refused(step):
    with pytest.raises(ConfigError, match=f"{type(step).__name__} chooses positions by chance"):
        likelihood.by_decoder(PERFECT, MASKED, TEXTS, step)


def test_estimators_for_masked_models_refuse_other_noise():
    uniform = Uniform(VOCAB + 1, MASK)
    with pytest.raises(ConfigError, match="exact_k is for masked diffusion"):
        likelihood.exact_k(PERFECT, uniform, TEXTS, RNG)


@pytest.mark.parametrize("schedule", [Clipped(), LogLinear()], ids=repr)
def test_a_schedule_that_leaves_noise_rates_out_gives_no_continuous_bound(schedule):
    with pytest.raises(ConfigError, match="leaves some out"):
        likelihood.continuous(PERFECT, Masked(4, 3, schedule), TEXTS, RNG)


def test_counts_below_one_are_refused():
    with pytest.raises(ConfigError, match="samples must be at least 1, got 0"):
        likelihood.exact_k(PERFECT, MASKED, TEXTS, RNG, samples=0)
    with pytest.raises(ConfigError, match="num_steps must be at least 1, got 0"):
        likelihood.discrete(PERFECT, MASKED, TEXTS, RNG, num_steps=0)


def test_blocks_of_packed_rows_are_refused():
    packed = Batch(TEXTS.tokens, TEXTS.trainable, torch.tensor([[0, 0, 1]] * 27), TEXTS.slots)
    with pytest.raises(ConfigError, match="rows of one document"):
        likelihood.by_decoder(PERFECT, MASKED, packed, Margin(Linear()), block=1)
