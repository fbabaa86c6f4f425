"""A run may begin with next tokens: the objective depends on the slot alone."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from sfumato.denoisers.full import Full, autoregressive
from sfumato.errors import ConfigError
from sfumato.models import DiffusionTransformer, TransformerConfig
from sfumato.objectives.masked import MaskedDiffusion
from sfumato.objectives.next_token import CausalFirst, NextToken
from sfumato.objectives.times import Systematic
from sfumato.rng import Rng
from sfumato.types import Batch

VOCAB, MASK, ROWS, LENGTH = 9, 3, 4, 6


@pytest.fixture(scope="module")
def model() -> DiffusionTransformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    model = DiffusionTransformer(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model


def batch(first_slot: int) -> Batch:
    tokens = torch.arange(ROWS * LENGTH).view(ROWS, LENGTH) % 5 + 4
    trainable = torch.ones_like(tokens, dtype=torch.bool)
    slots = torch.arange(first_slot, first_slot + ROWS)
    return Batch(tokens, trainable, torch.zeros_like(tokens), slots)


def test_early_slots_learn_next_tokens_and_later_ones_the_rest(model):
    masked, rng = MaskedDiffusion(MASK, Systematic(ROWS)), Rng.from_seed(0)
    objective = CausalFirst(masked, until=2 * ROWS)
    denoiser = Full(model, MASK)
    early, late = batch(ROWS), batch(2 * ROWS)
    causal = NextToken()(autoregressive(model, MASK), early, rng)
    assert_close(objective(denoiser, early, rng).value, causal.value, rtol=0, atol=0)
    assert_close(
        objective(denoiser, late, rng).value, masked(denoiser, late, rng).value, rtol=0, atol=0
    )
    assert not torch.equal(causal.value, masked(denoiser, early, rng).value)


def test_a_causal_start_sees_nothing_that_follows(model):
    denoiser, rng = Full(model, MASK), Rng.from_seed(0)
    objective = CausalFirst(MaskedDiffusion(MASK, Systematic(ROWS)), until=100)
    one = batch(0)
    changed = one.tokens.clone()
    changed[:, -1] = 8
    before = objective(denoiser, one, rng).nll
    after = objective(denoiser, replace(one, tokens=changed), rng).nll
    assert_close(after[:, :-1], before[:, :-1])


def test_only_a_network_can_be_read_causally():
    objective = CausalFirst(MaskedDiffusion(MASK, Systematic(ROWS)), until=100)
    with pytest.raises(ConfigError, match="a network to read causally"):
        objective(object(), batch(0), Rng.from_seed(0))
