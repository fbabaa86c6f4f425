"""Models that write block after block, as a user meets them."""

import pytest
import torch
from tiny_lm import CANVAS, SENTENCES, tiny_lm

import sfumato.decoding.blocks
from sfumato import DiffusionLM
from sfumato.decoding.filters import Suppress
from sfumato.denoisers.blocks import Reread
from sfumato.errors import ConfigError

PROMPTS = ["Once upon", "The fox met a big", ""]


@pytest.fixture(scope="module")
def blocks():
    return tiny_lm(attention="block_causal", block_size=8)


def test_a_saved_model_still_writes_blocks(blocks, tmp_path):
    blocks.save(tmp_path)
    lm = DiffusionLM.from_pretrained(tmp_path)
    assert lm.block_size == 8
    options = {"length": 12, "seed": 3, "temperature": 0}
    assert lm.generate("The", **options).tokens == blocks.generate("The", **options).tokens


@pytest.mark.parametrize("length", [None, 9, 50])
def test_the_cache_changes_nothing(blocks, monkeypatch, length):
    options = {"length": length, "seed": 1, "step": "margin"}
    cached = list(blocks.stream(PROMPTS, **options))
    monkeypatch.setattr(sfumato.decoding.blocks, "CachedReader", Reread)
    plain = list(blocks.stream(PROMPTS, **options))
    assert len(cached) == len(plain) > 4
    for one, other in zip(cached, plain, strict=True):
        assert torch.equal(one.canvas.tokens, other.canvas.tokens)


def test_rows_of_a_batch_are_those_alone(blocks):
    options = {"length": 20, "seed": 5, "step": "threshold", "step_options": {"level": 0.05}}
    together = blocks.generate(["The bear", "The bear"], **options)
    assert blocks.generate("The bear", **options).texts[0] == together.texts[0]
    prompts = ["The bear lost his", "Once", "A caf\u00e9"]
    mixed = blocks.generate(prompts, **options)
    assert mixed.texts[0] == blocks.generate(prompts[:1], **options).texts[0]


def test_length_is_kept_to_the_token_also_beyond_the_model_s_positions(blocks):
    never_ends = (Suppress(tuple(blocks.reader.ends)),)
    for length in (1, 7, 8, 9, 3 * CANVAS):
        made = blocks.generate(PROMPTS, length=length, filters=never_ends, num_steps=None)
        assert [len(tokens) for tokens in made.tokens] == [length] * 3
    assert made.full_texts[0].startswith("Once upon")


def test_prompts_longer_than_the_model_s_positions_slide_too(blocks):
    made = blocks.generate(" ".join(SENTENCES), length=4, filters=(Suppress((0, 1, 2)),))
    assert made.full_texts[0].startswith(" ".join(SENTENCES))
    assert len(made.tokens[0]) == 4


def test_a_text_that_ends_takes_no_more_steps(blocks):
    class Ends:
        def __call__(self, logits, canvas, where):
            places = where.nonzero()[:, 1]
            only = torch.full_like(logits, -torch.inf)
            only[:, blocks.special.eos] = 0
            return torch.where((places == 5)[:, None], only, logits)

    text = Suppress(tuple({blocks.special.eos, blocks.special.pad}))
    made = blocks.generate("", length=40, filters=(text, Ends()))
    assert len(made.tokens[0]) == 4  # after the first token that every text has
    assert made.num_steps <= 8
    assert made.tokens_per_step == pytest.approx(5 / made.num_steps)  # the end is one, too


def test_the_score_of_a_text_is_that_of_its_blocks():
    """Of blocks of one token it is exact: no draw of noise changes it."""
    lm = tiny_lm(attention="block_causal", block_size=1)
    scores = [lm.score(SENTENCES[1], num_samples=2, seed=seed)[0].value for seed in range(3)]
    assert scores == pytest.approx([scores[0]] * 3, rel=1e-5)


def test_what_blocks_cannot_do_is_refused(blocks):
    with pytest.raises(ConfigError, match="trained on blocks of 8 tokens, got block=4: leave it"):
        blocks.generate("The", block=4)
    with pytest.raises(ConfigError, match="cannot see what follows one; infilling needs a model"):
        blocks.infill("The ____.")
    with pytest.raises(ConfigError, match="num_steps 3 is less than the 7 blocks"):
        blocks.generate("The", length=48, num_steps=3)
    with pytest.raises(ConfigError, match="do not fit into"):
        blocks.generate(" ".join(SENTENCES))
