"""Every way of writing says which options it takes, and why it refuses the others."""

from dataclasses import replace

import pytest
import torch
from tiny_lm import HYBRID, tiny_lm

from sfumato.decoding import writing
from sfumato.decoding.blocks import Blocks, OneByOne
from sfumato.decoding.canvas import WholeCanvas
from sfumato.decoding.decoder import GAPS, OPTIONAL, SOURCE
from sfumato.decoding.growing import Growing
from sfumato.decoding.writing import DECODERS, decoder_for, settle
from sfumato.errors import ConfigError

ASKED = {
    "grow": {"grow": 4, "layout": "padded"},
    "approx_cache": {"approx_cache": "dual", "block": 4},
    "torch_compile": {"torch_compile": True},
    "grammar": {"regex": "a+"},
    "guidance": {"guidance": 1.0},
    "lookahead": {"lookahead": False},
}


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda each: each.__name__)
def test_every_option_is_taken_or_refused_with_a_reason(decoder):
    assert decoder.takes | set(decoder.refuses) <= set(OPTIONAL)
    assert not decoder.takes & set(decoder.refuses)
    for reason in decoder.refuses.values():
        assert any(word in reason for word in ("leave", "needs", "use", "decoder")), reason


def test_an_option_asks_where_it_is_not_its_default():
    lm = tiny_lm()
    assert not any(asked(lm.options) for asked in OPTIONAL.values())
    assert set(ASKED) | {SOURCE, GAPS} == set(OPTIONAL)
    for name, changes in ASKED.items():
        assert OPTIONAL[name](lm.options.with_changes(**changes))


MODELS = {
    "whole": (tiny_lm(), WholeCanvas),
    "text-like noise": (tiny_lm(corruption=HYBRID), WholeCanvas),
    "blocks": (tiny_lm(attention="block_causal", block_size=8), Blocks),
    "blocks that read the token before": (
        tiny_lm(attention="block_causal", block_size=8, shift=True),
        Blocks,
    ),
    "blocks of one": (tiny_lm(attention="block_causal", block_size=1), Blocks),
    "next token": (tiny_lm(objective="next_token"), OneByOne),
}


@pytest.mark.parametrize(("lm", "decoder"), MODELS.values(), ids=MODELS)
def test_the_table_has_one_way_for_each_model_and_its_options(lm, decoder):
    assert decoder_for(lm.writer, lm.options) is decoder
    grown = decoder_for(lm.writer, lm.options.with_changes(grow=4))
    assert grown is (Growing if decoder is WholeCanvas else decoder)
    for name, changes in ASKED.items():
        options = lm.options.with_changes(**changes)
        own = decoder_for(lm.writer, options)
        if name in own.takes and name != "grow":
            block = 4 if own is WholeCanvas else None
            options = settle(lm.writer, replace(options, block=block))
            assert decoder_for(lm.writer, options) is own
        elif name not in own.takes:
            with pytest.raises(ConfigError, match="leave"):
                lm.generate("a", **{k: v for k, v in changes.items() if k != "block"})


def test_what_is_not_of_options_is_refused_in_the_same_place():
    blocks = MODELS["blocks"][0]
    with pytest.raises(ConfigError, match="a model of blocks reads no source"):
        blocks.generate("a", source="b")
    with pytest.raises(ConfigError, match="writes blocks of 8 tokens and cannot see what follows"):
        blocks.infill("a ____ b")


class Backwards(WholeCanvas):
    """All at once, and then the rows turned round: a way of writing that nobody needs."""

    @classmethod
    def suits(cls, writer, options):
        return options.num_steps == 7

    def pages(self, canvas, step, rng, *, num_steps=None, filters=()):
        for page in super().pages(canvas, step, rng, num_steps=num_steps, filters=filters):
            yield page
        yield replace(page, tokens=page.tokens.flip(1))


def test_a_new_way_of_writing_is_a_class_and_a_line(monkeypatch):
    lm = tiny_lm()
    usual = lm.generate(length=9, num_steps=7, seed=0)
    monkeypatch.setattr(writing, "DECODERS", (Backwards, *DECODERS))
    turned = lm.generate(length=9, num_steps=7, seed=0)
    pages = list(lm.stream(length=9, num_steps=7, seed=0))
    assert turned.num_steps == usual.num_steps + 1
    assert torch.equal(pages[-1].canvas.tokens, pages[-2].canvas.tokens.flip(1))
    assert lm.generate(length=9, num_steps=8, seed=0).num_steps <= 8
