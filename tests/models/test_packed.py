"""The packed network is the model itself, in fewer operations."""

import pytest
import torch
from tiny_lm import tiny_lm

from sfumato.errors import ConfigError
from sfumato.models import DiffusionTransformer, TransformerConfig
from sfumato.models.attention import BlockCausal
from sfumato.models.kv_cache import Reading, Store
from sfumato.models.packed import Packed

SEEN = {"full": {}, "causal": {}, "block_causal": {"block_size": 4}}


def random_model(**options) -> DiffusionTransformer:
    """Every weight is random: scales of norms and output projections, too."""
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=16,
        **options,
    )
    model = DiffusionTransformer(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * weight.shape[-1] ** -0.5 + (weight.dim() == 1))
    return model


@pytest.mark.parametrize("attention", SEEN)
@pytest.mark.parametrize("timed", [False, True])
def test_it_says_what_the_model_says(attention, timed):
    model = random_model(attention=attention, time_conditioned=timed, **SEEN[attention])
    tokens, t = torch.randint(0, 32, (3, 12)), torch.rand(3)
    segments = torch.tensor([[0] * 12, [0] * 5 + [1] * 7, [-1] * 4 + [0] * 8])
    where = torch.rand(3, 12) < 0.5
    for chosen in (None, where, torch.zeros_like(where)):
        given = {"t": t, "segments": segments, "where": chosen}
        with torch.no_grad():
            wanted, found = model(tokens, **given), Packed(model)(tokens, **given)
        assert found.logits.shape == wanted.logits.shape
        torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=1e-5)
        for ours, theirs in zip(found.key_values.layers, wanted.key_values.layers, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("timed", [False, True])
def test_in_every_type(dtype, timed):
    model = random_model(time_conditioned=timed).to(dtype)
    tokens, t = torch.randint(0, 32, (2, 12)), torch.rand(2)
    with torch.no_grad():
        wanted, found = model(tokens, t=t).logits, Packed(model)(tokens, t=t).logits
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    far = (found - wanted).abs().max()
    assert far <= (1e-12 if dtype == torch.float64 else 0.1)


def test_it_reads_and_writes_the_same_store():
    model = random_model(attention="block_causal", block_size=4)
    text, block = torch.randint(0, 32, (2, 8)), torch.randint(0, 32, (2, 4))
    lengths, logits = torch.tensor([4, 8]), []
    for network in (model, Packed(model)):
        store = Store.empty(2, 16, torch.device("cpu"))
        with torch.no_grad():
            for tokens, at in ((text, torch.zeros_like(lengths)), (block, lengths)):
                past = Reading(store, at)
                out = network(tokens, attend=BlockCausal(4), past=past)
        logits.append(out.logits)
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5, rtol=1e-5)


def test_a_pipeline_sees_new_weights():
    lm = tiny_lm()
    before = lm.network.compute("fp32")
    assert lm.network.compute("fp32") is before
    with torch.no_grad():
        lm.model.head.weight.mul_(2)
    assert lm.network.compute("fp32") is not before
    lm.model.to(torch.float64)
    tokens = torch.zeros((1, 4), dtype=torch.int64)
    assert lm.network.compute("bf16")(tokens, t=torch.zeros(1)).logits.dtype == torch.float64


def test_precision_is_a_request_of_its_own():
    lm = tiny_lm()
    lm.generate("Once", seed=0, precision="bf16", num_steps=4)
    assert lm.network.compute("bf16").model.dtype == torch.bfloat16
    assert lm.model.dtype == torch.float32
    with pytest.raises(ConfigError, match=r"'auto', 'fp32' or 'bf16', got 'int4'"):
        lm.generate("Once", precision="int4")


def test_documents_are_told_apart_in_a_store_too():
    model, zero = random_model(attention="causal"), torch.tensor([0])
    text, other = torch.randint(0, 32, (1, 4)), torch.randint(0, 32, (1, 2))

    def after(segments: torch.Tensor | None) -> torch.Tensor:
        store = Store.empty(1, 16, torch.device("cpu"))
        with torch.no_grad():
            model(text, past=Reading(store, zero))
            return model(other, past=Reading(store, zero + 4), segments=segments).logits

    same, new = torch.zeros_like(other), torch.ones_like(other)
    torch.testing.assert_close(after(same), after(None))
    assert not torch.allclose(after(new), after(None), atol=1e-3)
