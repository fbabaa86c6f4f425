"""A compiled pass is the packed one. Compiling takes seconds, so most of this is slow."""

import shutil

import pytest
import torch
from test_packed import random_model
from tiny_lm import tiny_lm

from sfumato.errors import ConfigError
from sfumato.models.attention import BlockCausal
from sfumato.models.kv_cache import Reading, Store
from sfumato.models.packed import Packed

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)
# torch's compiler warns about its own parts
pytestmark = pytest.mark.filterwarnings("default")
BLOCKS = {"attention": "block_causal", "block_size": 4}
CPU = torch.device("cpu")


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_says_what_the_packed_network_says(dtype):
    model = random_model(**BLOCKS, time_conditioned=True)
    networks = Packed(model, dtype), Packed(model, dtype).compile()
    stores = [Store.empty(1, 16, CPU) for _ in networks]
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0.2, "rtol": 0.05}
    lengths = torch.tensor([0])
    for number in range(9):  # beyond the columns, where the oldest text is forgotten
        wide = 8 if number in (1, 3) else 4
        tokens, t = torch.randint(0, 32, (1, wide)), torch.rand(1, wide)
        where = torch.rand(1, wide) < 0.7
        found = []
        for network, store in zip(networks, stores, strict=True):
            past = Reading(store, lengths)
            found.append(network(tokens, t=t, where=where, attend=BlockCausal(4), past=past))
        torch.testing.assert_close(found[1].logits, found[0].logits, **close)
        kept = stores[0].positions >= 0
        assert torch.equal(stores[0].positions, stores[1].positions)
        for ours, theirs in zip(stores[1].layers, stores[0].layers, strict=True):
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a[kept], b[kept], **close)
        lengths = lengths + (4 if number != 3 else 8)
    assert networks[1].compiled.known == {4, 8}


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("objective", ["masked", "next_token"])
def test_the_same_text(objective):
    lm = tiny_lm(objective=objective, **(BLOCKS if objective == "masked" else {}))
    for seed in range(3):
        plain = lm.generate("Once", seed=seed)
        assert lm.generate("Once", seed=seed, torch_compile=True).texts == plain.texts
        both = lm.generate("Once", seed=seed, torch_compile=True, num_samples=2)
        assert both.texts[0] == plain.texts[0]
    compiled = lm.network.compute("fp32", torch_compile=True)
    assert compiled.compiled.known == ({4, 8} if objective == "masked" else {1})
    passes = compiled.passes
    lm.generate(["Once", ""], seed=0, torch_compile=True)  # nor where one of two texts is left
    assert compiled.passes == passes


@pytest.mark.slow
@needs_compiler
def test_other_weights_are_other_passes():
    tokens, made = torch.randint(0, 32, (1, 4)), []
    for scale in (
        1.0,
        1.3,
    ):  # of one shape: what is compiled for the first must not serve the second
        model = random_model(**BLOCKS)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(scale)
        packed = Packed(model)
        made.append((packed, packed.compile()))
    for networks in made:
        pasts = [Reading(Store.empty(1, 16, CPU), torch.tensor([0])) for _ in networks]
        calls = zip(networks, pasts, strict=True)
        logits = [
            network(tokens, attend=BlockCausal(4), past=past).logits for network, past in calls
        ]
        torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-4)


def test_without_a_compiler(monkeypatch):
    lm = tiny_lm(**BLOCKS)
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    with pytest.raises(ConfigError, match=r"cannot compile .* `sfumato doctor` says"):
        lm.generate("Once", torch_compile=True)


def test_a_model_of_full_attention_has_nothing_to_compile():
    with pytest.raises(ConfigError, match="full attention: leave it out"):
        tiny_lm().generate("Once", torch_compile=True)
