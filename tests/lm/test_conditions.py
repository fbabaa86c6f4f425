import functools
import json

import pytest
import torch
from tiny_lm import CANVAS, MASKED, SENTENCES, SHAPE, tiny_lm, tokenizer
from torch.testing import assert_close

from sfumato import ConditionalDiffusionLM, DiffusionLM
from sfumato.errors import ConfigError, DataError
from sfumato.models import TransformerConfig, create_conditional_model
from sfumato.models.attention import Causal
from sfumato.types import ABSENT

FOX, BEAR = SENTENCES[0], SENTENCES[1]


@functools.cache
def conditional(objective: str = "masked") -> ConditionalDiffusionLM:
    """Random weights, large enough for sources to make a difference."""
    plain = tiny_lm(MASKED, objective=objective)
    shape = {"vocab_size": len(tokenizer()), "max_position_embeddings": 32, **SHAPE}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = create_conditional_model(
            TransformerConfig(**shape), plain.model.config, len(tokenizer())
        )
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.25)
    return ConditionalDiffusionLM(DiffusionLM(model.eval(), tokenizer(), plain.options))


def prefix() -> DiffusionLM:
    """A plain network reads a source as text before the canvas."""
    return tiny_lm(MASKED, max_position_embeddings=64)


def test_a_text_that_grows_depends_on_its_source_too():
    lm, own = conditional("masked"), {"seed": 1, "grow": 6, "length": 12, "layout": "padded"}
    fox, bear = (lm.generate(one, **own).texts[0] for one in (FOX, BEAR))
    assert fox != bear


@pytest.mark.parametrize("objective", ["masked", "next_token"])
def test_text_depends_on_its_source_and_on_nothing_else(objective):
    lm = conditional(objective)
    both = lm.generate([FOX, BEAR], seed=1)
    alone = [lm.generate(one, seed=1).texts[0] for one in (FOX, BEAR)]
    assert both.texts[0] == alone[0] != alone[1]
    again = lm.generate([FOX, BEAR], seed=1, guidance=0.0)
    assert again.texts == both.texts
    with pytest.raises(ConfigError, match="computes in the type of its weights"):
        lm.generate(FOX, precision="bf16")
    with pytest.raises(ConfigError, match="is not compiled; leave out torch_compile"):
        lm.generate(FOX, torch_compile=True)
    # the second row's draws are its own: compare it with the same row beside another first one
    assert lm.generate([BEAR, BEAR], seed=1).texts[1] == both.texts[1]
    assert lm.lm.generate(["", ""], seed=1).texts != both.texts


def test_one_source_goes_with_many_prompts_and_one_prompt_with_many_sources():
    lm = conditional()
    request = lm.lm.start(["The", "A"], source=FOX, num_samples=2)
    assert request.source is not None
    assert len(request.source) == 4
    assert bool((request.source == request.source[:1]).all())
    request = lm.lm.start("The", source=[FOX, BEAR])
    assert request.source is not None
    ids = [lm.lm.encode([text])[0] for text in (FOX, BEAR)]
    special = lm.lm.special
    for row, own in zip(request.source.tolist(), ids, strict=True):
        assert row == [ABSENT] * (len(row) - len(own) - 2) + [special.bos, *own, special.eos]
    assert [row[0] for row in request.rows] == ["The", "The"]


@pytest.mark.parametrize("guidance", [0.0, 1.0])
@pytest.mark.parametrize("options", [{}, {"length": 6}, {"block": 4, "lookahead": False}], ids=str)
def test_the_encoder_runs_once_a_request(options, guidance):
    lm, calls = conditional(), []
    handle = lm.lm.model.encoder.register_forward_hook(lambda *_: calls.append(1))
    steps: list[int] = []
    other = lm.lm.model.norm.register_forward_hook(lambda *_: steps.append(1))
    made = lm.generate([FOX, BEAR], "The", guidance=guidance, num_steps=6, seed=0, **options)
    handle.remove()
    other.remove()
    assert len(calls) == 1
    assert 0 < len(steps) <= made.num_steps  # both sides of guidance go through at once


def test_streamed_pages_end_in_what_generate_writes():
    lm = conditional()
    *_, last = lm.stream(FOX, "The", seed=5, guidance=0.5)
    assert lm.lm.finish(last).texts == lm.generate(FOX, "The", seed=5, guidance=0.5).texts


@pytest.mark.parametrize("kind", ["encoder", "prefix"])
def test_guidance_makes_the_source_matter_more(kind):
    lm = conditional().lm if kind == "encoder" else prefix()
    texts = [
        lm.generate(source=FOX, seed=2, num_steps=8, temperature=0, guidance=w).texts[0]
        for w in (0.0, 4.0)
    ]
    assert texts[0] != texts[1]


def test_guidance_by_a_prompt_and_by_what_is_around_a_gap():
    lm = tiny_lm()
    for options in ({}, {"length": 6}, {"block": 4, "lookahead": False}):
        texts = {
            lm.generate("The fox", seed=2, temperature=0, guidance=w, **options).text
            for w in (0.0, 4.0)
        }
        assert len(texts) == 2
        assert all(text.startswith("The fox") for text in texts)
    gaps = {lm.infill("The ____ bear.", gap_length=4, seed=2, guidance=w).text for w in (0, 6.0)}
    assert len(gaps) == 2
    assert all(text.startswith("The ") and text.endswith(" bear.") for text in gaps)


def test_a_rule_that_revises_is_guided_too():
    lm = conditional()
    made = lm.generate(FOX, step="wino", guidance=1.0, seed=0, num_steps=8)
    assert made.texts != lm.generate(FOX, step="wino", seed=0, num_steps=8).texts


@pytest.mark.parametrize("objective", ["masked", "next_token"])
def test_a_score_is_that_of_a_text_given_its_source(objective):
    lm = conditional(objective)
    texts = [BEAR, FOX]
    both = lm.score([FOX, BEAR], texts, num_samples=4)
    for source, text, estimate in zip((FOX, BEAR), texts, both, strict=True):
        assert lm.score(source, text, num_samples=4)[0].value == pytest.approx(estimate.value)
    swapped = lm.score([BEAR, FOX], texts, num_samples=4)
    assert abs(swapped[0].value - both[0].value) > 1e-3
    assert lm.lm.score(texts, num_samples=4)[0].value != both[0].value


def test_a_source_is_a_prefix_to_a_network_without_an_encoder():
    """An autoregressive score of source and text together is the sum of both."""
    lm = tiny_lm(objective="next_token", max_position_embeddings=64, layout="packed")
    found = lm.score(BEAR, source=FOX)[0]
    special = lm.special
    source, text = ([special.bos, *lm.encode([one])[0], special.eos] for one in (FOX, BEAR))
    ids = torch.tensor([[special.mask, *source, *text]])
    with torch.no_grad():
        logits = lm.model(ids[:, :-1], attend=Causal()).logits[0]
        logits[:, special.mask] = -torch.inf
    nats = -logits.log_softmax(-1).gather(-1, ids[0, 1:, None])[len(source) :, 0]
    assert_close(torch.tensor(found.value), nats.double().mean().float(), rtol=1e-4, atol=1e-4)


def test_the_folder_of_a_conditional_model_loads_as_either(tmp_path):
    lm = conditional()
    lm.save(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["encoder"]["hidden_size"] == 32
    wanted = lm.generate(FOX, seed=3, guidance=1.0).text
    assert ConditionalDiffusionLM.from_pretrained(tmp_path).generate(
        FOX, seed=3, guidance=1.0
    ).text == (wanted)
    assert DiffusionLM.from_pretrained(tmp_path).generate(source=FOX, seed=3, guidance=1).text == (
        wanted
    )


def test_requests_that_cannot_be_are_refused():
    lm = conditional()
    with pytest.raises(DataError, match="a source is empty"):
        lm.generate(["The fox", " "])
    with pytest.raises(ConfigError, match="no source: give one"):
        lm.generate([])
    with pytest.raises(ConfigError, match="2 texts and 3 sources"):
        lm.generate([FOX] * 3, ["a", "b"])
    with pytest.raises(ConfigError, match="guidance needs a prompt or a source"):
        lm.lm.generate(guidance=1.0)
    with pytest.raises(ConfigError, match="guidance must be 0 or more, got"):
        lm.generate(FOX, guidance=-1.0)
    with pytest.raises(ConfigError, match="guided by a source only"):
        conditional("next_token").lm.generate("The", guidance=1.0)
    with pytest.raises(ConfigError, match="has no encoder"):
        ConditionalDiffusionLM(tiny_lm())
    with pytest.raises(ConfigError, match="tokens of source, but the encoder was built for 32"):
        lm.generate(FOX * 4)
    with pytest.raises(ConfigError, match="use a length of at most 19, or a model with an encoder"):
        tiny_lm().generate(source=FOX * 3)
    assert lm.lm.options.canvas == CANVAS


def test_a_model_of_blocks_and_approximate_caches_are_refused():
    blocks = tiny_lm(attention="block_causal", block_size=4, layout="packed")
    for options in ({"source": FOX}, {"prompt": "The", "guidance": 1.0}):
        with pytest.raises(ConfigError, match="a model of blocks reads no source"):
            blocks.generate(**options)
    with pytest.raises(ConfigError, match="block diffusion does not read sources"):
        blocks.score(BEAR, source=FOX)
    with pytest.raises(ConfigError, match="approx_cache keeps nothing of a source"):
        conditional().generate(FOX, block=4, approx_cache="prefix")
