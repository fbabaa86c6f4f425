"""Models of transformers, taken apart: what they say stays, and they read as they are told."""

import copy

import pytest
import torch
from hub_models import CAUSAL, LOCAL, MASKED, VOCAB, hub_model
from torch.testing import assert_close
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sfumato.errors import ConfigError
from sfumato.models.hub import HubNetwork
from sfumato.testing import check_network

KINDS = [*CAUSAL, *MASKED]
TOKENS = torch.randint(3, VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))


def taken_apart(kind: str) -> HubNetwork:
    return HubNetwork.of(copy.deepcopy(hub_model(kind))).eval()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_logits_are_the_originals_under_its_own_pattern(kind):
    wanted, network = hub_model(kind)(input_ids=TOKENS).logits, taken_apart(kind)
    assert (network.block_size, network.shift) == ((1, True) if kind in CAUSAL else (None, False))
    found = network(TOKENS)
    assert_close(found.logits, wanted, rtol=1e-4, atol=1e-5)
    assert len(found.key_values.layers) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_contract_of_a_network_is_kept(kind):
    check_network(taken_apart(kind), local=kind in LOCAL)


@torch.no_grad()
def test_a_local_layer_sees_its_window_whatever_the_pattern():
    network = taken_apart("mistral")  # every layer of three sees 4: 9 positions are out of reach
    other = TOKENS.clone()
    other[:, 0] = (other[:, 0] + 1) % VOCAB
    moved = (network(TOKENS).logits - network(other).logits).abs().amax(-1)[0] > 1e-5
    assert moved.tolist() == [True] * 10 + [False] * 2


def test_what_cannot_be_taken_apart_is_refused_by_name():
    from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

    tiny = {"num_layers": 1, "d_model": 8, "d_kv": 4, "num_heads": 2, "d_ff": 8, "vocab_size": 9}
    with pytest.raises(ConfigError, match="T5ForConditionalGeneration cannot be taken apart"):
        HubNetwork.of(T5ForConditionalGeneration(T5Config(**tiny)))
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ConfigError, match="BertModel cannot be taken apart"):
        HubNetwork.of(BertModel(BertConfig(vocab_size=9, intermediate_size=8, **shape)))


def test_text_longer_than_the_models_positions_is_refused():
    with pytest.raises(ConfigError, match="66 positions, but the model was built for"):
        taken_apart("roberta")(torch.full((1, 66), 5))


def test_a_pass_leaves_the_global_generator_alone():
    from sfumato.rng import Rng

    network = taken_apart("bert").train()
    before = torch.get_rng_state()
    one, two = (network(TOKENS, rng=Rng.from_seed(3, 2)).logits for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, two)
    assert not torch.equal(one, network(TOKENS, rng=Rng.from_seed(4, 2)).logits)


def test_attention_with_a_part_that_is_not_known_is_refused(monkeypatch):
    network = taken_apart("llama")
    attend = ALL_ATTENTION_FUNCTIONS["sfumato"]
    sinks = lambda *args, **own: attend(*args, **own, s_aux=torch.zeros(4))  # noqa: E731
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sfumato", sinks)
    with pytest.raises(ConfigError, match="LlamaAttention passes s_aux to its attention"):
        network(TOKENS)


def test_a_model_whose_layers_do_not_all_attend_is_refused():
    network = taken_apart("llama")
    network.config.num_hidden_layers = 4
    with pytest.raises(ConfigError, match="4 layers, of which 3 attend by transformers' interface"):
        network(TOKENS)
