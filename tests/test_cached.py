"""A cache changes what is computed, never what comes out."""

import pytest
import torch
from torch.testing import assert_close

from sfumato.corruption import Masked
from sfumato.denoisers import Cached, Full, autoregressive
from sfumato.errors import ConfigError
from sfumato.generate import blank, generate
from sfumato.models import DiffusionTransformer, TransformerConfig
from sfumato.models.attend import BlockCausal, Causal
from sfumato.models.attend import Full as FullAttention
from sfumato.rng import Rng
from sfumato.schedules import Linear
from sfumato.steps import LeftToRight, TopConfidence

VOCAB, MASK, LENGTH, ROWS = 11, 3, 16, 3


def network(attention: str, block_size: int | None = None) -> DiffusionTransformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention=attention,
        block_size=block_size,
        max_position_embeddings=64,
    )
    model = DiffusionTransformer(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)  # projections start at zero, and would hide errors
    return model


def pages(denoiser, step, block: int, lead: int) -> list[torch.Tensor]:
    rng = Rng.from_seed(0, ROWS)
    text = torch.randint(4, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    fixed = torch.arange(LENGTH).expand(ROWS, -1) < lead
    canvas = blank(Masked(VOCAB, MASK), text, fixed, rng)
    stream = generate(denoiser, canvas, step, rng, block=block, lookahead=False)
    return [page.tokens for page in stream]


@pytest.mark.parametrize("lead", [0, 4, 5])
def test_cached_blocks_equal_uncached_ones_at_every_step(lead):
    model = network("block_causal", 4)
    step = TopConfidence(Linear())
    plain = pages(Full(model, MASK), step, 4, lead)
    cached = pages(Cached(model, MASK, model.attend), step, 4, lead)
    assert len(plain) == LENGTH - lead
    assert_close(cached, plain, rtol=0, atol=0)


@pytest.mark.parametrize("lead", [0, 5])
def test_cached_autoregression_equals_uncached(lead):
    model = network("causal")
    step = LeftToRight(Linear())
    plain = pages(autoregressive(model, MASK), step, 1, lead)
    cached = pages(Cached(model, MASK, Causal(), shift=True), step, 1, lead)
    assert_close(cached, plain, rtol=0, atol=0)


def test_left_padding_changes_no_logits():
    model = network("causal")
    text = torch.tensor([[5, 6, 7]])
    tokens, t = torch.tensor([[MASK, MASK]]), torch.zeros(1)
    padded = torch.tensor([[9, 9, 5, 6, 7]])
    hidden = torch.tensor([[True, True, False, False, False]])
    denoiser = Cached(model, MASK, Causal())
    plain = denoiser.given(left=text)(tokens, t)
    assert_close(denoiser.given(left=padded, left_hidden=hidden)(tokens, t), plain)


def test_given_makes_a_new_denoiser_and_leaves_the_old_one_alone():
    model = network("causal")
    tokens, t = torch.tensor([[MASK, MASK]]), torch.zeros(1)
    denoiser = Cached(model, MASK, Causal())
    before = denoiser(tokens, t)
    denoiser.given(left=torch.tensor([[5, 6]]))
    assert denoiser.past is None
    assert_close(denoiser(tokens, t), before, rtol=0, atol=0)


def test_a_cache_refuses_what_would_make_it_wrong():
    model = network("block_causal", 4)
    with pytest.raises(ConfigError, match="causal or block-causal model"):
        Cached(model, MASK, FullAttention())
    denoiser = Cached(model, MASK, BlockCausal(4))
    with pytest.raises(ConfigError, match="not all multiples of the block size 4"):
        denoiser.given(left=torch.zeros(1, 6, dtype=torch.int64))
    with pytest.raises(ConfigError, match="lookahead=False"):
        denoiser.given(right=torch.zeros(1, 4, dtype=torch.int64))
