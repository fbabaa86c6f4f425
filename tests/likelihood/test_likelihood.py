import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from worlds import MASK, VOCAB, Tabular, World, batch_of

from sfumato import likelihood
from sfumato.decoding.filters import Temperature, TopK, TopP
from sfumato.decoding.loops import generate
from sfumato.decoding.page import blank
from sfumato.decoding.unmask import (
    Ancestral,
    EntropyBound,
    Factor,
    LeftToRight,
    LowEntropy,
    Margin,
    RandomOrder,
    Threshold,
    TopConfidence,
    TopProbability,
    highest,
    quota,
    spread,
)
from sfumato.denoisers.full import Full, autoregressive
from sfumato.errors import ConfigError
from sfumato.likelihood.result import Likelihood
from sfumato.models import DiffusionTransformer, TransformerConfig
from sfumato.models.attention import HIDDEN
from sfumato.noise.corruption import Hybrid, Masked, Uniform
from sfumato.noise.schedules import Clipped, CosineAlpha, CosineMask, Linear, LogLinear
from sfumato.rng import Rng
from sfumato.types import Batch

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


def assert_measures(found: Likelihood, truth: Tensor, *, within: float):
    """The law's mean of `found` is that of `truth`, which it tells to `within` of it."""
    value, expected = WORLD.law @ found.nats, WORLD.law @ truth
    error = (WORLD.law * found.noise).norm()
    assert abs(value - expected) < 4 * error + 1e-6
    assert error < within * expected


# --- bounds ---


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


# --- exact values ---


def test_by_order_of_the_perfect_denoiser_is_the_law_in_every_order():
    for order in itertools.permutations(range(LENGTH)):
        order = torch.tensor(order).expand_as(WORLD.texts)
        found = likelihood.by_order(PERFECT, MASKED, TEXTS, order)
        assert_close(found.nats, -WORLD.law.log(), rtol=1e-6, atol=0)
        assert found.noise.eq(0).all()


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


# --- prompts, padding, packing, batches ---


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


# --- what is refused ---


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


# --- numbers and their errors ---


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
