"""Our own networks keep the contract, and the check finds what breaks it."""

import pytest
import torch
from small_networks import VOCAB, network, reader

from sfumato.models.attention import Bidirectional
from sfumato.models.packed import Packed
from sfumato.testing import check_network

OWN = {
    "full": network,
    "causal": lambda: network(attention="causal"),
    "blocks": lambda: network(attention="block_causal", block_size=3),
    "told the time": lambda: network(time_conditioned=True),
    "with an encoder": reader,
}


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
def test_our_networks_keep_the_contract(make):
    check_network(make())


@pytest.mark.parametrize("make", [*OWN.values()][:4], ids=[*OWN][:4])
def test_packed_ones_too(make):
    check_network(Packed(make()), learns=False)


class Broken:
    """A network with one fault."""

    def __init__(self, **change):
        self.inner, self.change = network(), change
        self.config, self.attend = self.inner.config, self.inner.attend

    def parameters(self):
        return self.inner.parameters()

    def __call__(self, tokens, **given):
        out = self.inner(tokens, **{**given, **self.change})
        if self.change.get("where", 0) is None and given.get("where") is not None:
            out.logits = out.logits[given["where"]].flip(0)
        return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attend": Bidirectional()}, "which the pattern hides from it"),
        ({"where": None, "labels": None}, "logits at `where` are not those of all positions"),
        ({"segments": None}, "a document sees the one behind it"),
        ({"past": None}, "a pass after keys and values is not the whole"),
        ({"excluded": (5,)}, "nll is not the cross-entropy of its own logits"),
    ],
    ids=lambda each: str(each)[:30],
)
def test_a_fault_is_named(change, message):
    with pytest.raises(AssertionError, match=message):
        check_network(Broken(**change))


def test_one_that_is_blind_is_found():
    class Blind(Broken):
        def __call__(self, tokens, **given):
            return super().__call__(torch.zeros_like(tokens) + VOCAB - 1, **given)

    with pytest.raises(AssertionError, match="output 0 does not move with token 0"):
        check_network(Blind())
