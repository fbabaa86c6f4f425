import copy
import math
from collections import deque
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tiny_lm import CANVAS, HYBRID, MASKED, SENTENCES, UNIFORM, taught, tiny_lm

from sfumato.data.special_tokens import MASK, SPECIAL
from sfumato.decoding.filters import Forced, Suppress
from sfumato.decoding.loops import generate
from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.rules import STEPS
from sfumato.errors import ConfigError, DataError
from sfumato.lm.model import DiffusionLM
from sfumato.lm.pages import NOISE
from sfumato.lm.prompts import GAP

PROMPTS = ("The fox", "", "A caf\u00e9 had", "Once upon a time there")
FILTERS = (
    {"temperature": 0},
    {"temperature": 0.7},
    {"top_k": 3},
    {"top_p": 0.5},
    {"min_p": 0.3},
    {"repetition_penalty": 1.5},
    {"suppress": (40, 41)},
)


@pytest.fixture(scope="module")
def lm():
    """Random weights: whatever can come out of a model does."""
    return tiny_lm()


@pytest.fixture(scope="module")
def packed():
    return tiny_lm(layout="packed")


@pytest.fixture(scope="module")
def writer():
    """An autoregressive model that knows the sentences by heart."""
    return taught("next_token")


def last(pages):
    return deque(pages, maxlen=1)[0]


def contains_special(lm, tokens) -> bool:
    return bool(set(tokens) & set(lm.special.all))


# --- generate ---


def test_a_taught_model_writes_what_it_has_learnt(taught_lm):
    written = taught_lm.generate(
        ["The fox met", "A caf\u00e9", "The bear lost"], step="margin", temperature=0
    )
    assert set(written.full_texts) <= set(SENTENCES)
    assert written.full_texts[1] == SENTENCES[3]
    assert written.text == "The fox met a big grey bear."
    assert written.texts[0] == " a big grey bear."
    assert taught_lm.reader.decode(list(written.tokens[0])) == written.texts[0]


@pytest.mark.parametrize("temperature", [0, 1], ids=["greedy", "drawn"])
@pytest.mark.parametrize("step", STEPS)
def test_every_rule_writes_text_after_the_prompt(lm, step, temperature):
    written = lm.generate(
        PROMPTS, step=step, temperature=temperature, num_steps=9, seed=1, length=10
    )
    for prompt, text, tokens in zip(PROMPTS, written.full_texts, written.tokens, strict=True):
        assert text.startswith(prompt)
        assert not contains_special(lm, tokens)
        assert not any(spelling in text for spelling in SPECIAL)
        assert NOISE not in text
    assert 1 <= written.num_steps <= 9


@pytest.mark.parametrize("filters", FILTERS, ids=repr)
@pytest.mark.parametrize("corruption", [MASKED, HYBRID], ids=lambda c: c["name"])
def test_every_filter_works_with_every_kind_of_noise(corruption, filters):
    lm = tiny_lm(corruption)
    written = lm.generate(PROMPTS[:2], num_samples=2, seed=0, num_steps=6, **filters)
    plain = lm.generate(PROMPTS[:2], num_samples=2, seed=0, num_steps=6)
    assert written.tokens != plain.tokens
    assert not any(contains_special(lm, tokens) for tokens in written.tokens)
    if "suppress" in filters:
        assert not any(set(tokens) & {40, 41} for tokens in written.tokens)


@pytest.mark.parametrize("corruption", [MASKED, UNIFORM, HYBRID], ids=lambda c: c["name"])
def test_no_special_token_in_any_text(corruption):
    lm = tiny_lm(corruption, layout="packed", vocab_size=350)  # rows of the model without a token
    written = lm.generate(num_samples=40, seed=0, num_steps=8)
    words = {i for tokens in written.tokens for i in tokens}
    assert len(words) > 50
    assert not contains_special(lm, words)
    assert max(words) < len(lm.tokenizer)
    page = last(lm.stream(num_samples=40, seed=0, num_steps=8))
    never = set(lm.special.all) - {lm.special.eos, lm.special.pad}
    assert not never & set(page.canvas.tokens[:, 1:].flatten().tolist())


def test_special_tokens_without_a_role_are_not_written():
    wide = tiny_lm(vocab_size=400)
    tokenizer = copy.deepcopy(wide.tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    lm = DiffusionLM(wide.model, tokenizer, wide.options)
    others = tuple(i for i in range(turn) if i != 40)
    assert lm.generate(length=20, num_steps=5, suppress=others).tokens == ((40,) * 20,)


@pytest.mark.parametrize(
    "prompt", ["<|mask|> and <|eos|>", "a\u00f1", "\ufffd", " ", "a\tb\r\n ", "\0"]
)
def test_a_prompt_comes_back_to_the_byte(lm, prompt):
    for length in (None, 5):
        written = lm.generate(prompt, length=length, seed=0, num_steps=3)
        assert written.text.startswith(prompt)
    stem = prompt.removesuffix(" ")
    for page in lm.stream(prompt, seed=0, num_steps=3):
        assert lm.show(page).startswith(stem)
        given = page.canvas.tokens[page.canvas.fixed]
        assert given.tolist() == [lm.special.bos, *lm.encode([stem])[0]]


def test_the_same_seed_writes_the_same_text(lm):
    again = {"prompt": "The", "num_samples": 3, "num_steps": 5}
    first = lm.generate(**again, seed=5)
    assert lm.generate(**again, seed=5) == first
    assert lm.generate(**again, seed=6).texts != first.texts
    assert len(set(first.texts)) > 1


def test_without_a_seed_every_text_is_another_and_can_be_had_again(lm):
    one, other = lm.generate("The", num_steps=5), lm.generate("The", num_steps=5)
    assert one.seed != other.seed
    assert lm.generate("The", num_steps=5, seed=one.seed).texts == one.texts


@pytest.mark.parametrize("length", [None, 7])
@pytest.mark.parametrize("step", ["ancestral", "confidence", "entropy_bound", "klass", "wino"])
def test_batched_equals_one_by_one(lm, step, length):
    """A row depends on its own number, not on what else is in the batch."""
    written = lm.generate(PROMPTS, step=step, length=length, seed=2)
    for number in range(len(PROMPTS)):
        others = [PROMPTS[number] if row == number else "The" for row in range(len(PROMPTS))]
        assert (
            lm.generate(others, step=step, length=length, seed=2).texts[number]
            == (written.texts[number])
        )
    alone = lm.generate(PROMPTS[0], step=step, length=length, seed=2)
    assert alone.texts == written.texts[:1]


def test_samples_of_a_prompt_stand_together(lm):
    written = lm.generate(["The", "A"], num_samples=2, seed=0, num_steps=3)
    assert [text[:1] for text in written.full_texts] == ["T", "T", "A", "A"]


def test_a_length_asks_for_so_many_new_tokens(packed):
    text = (Suppress(tuple(packed.reader.ends)),)  # a row that has ended writes no more
    page = last(packed.stream(["The fox", ""], length=5, seed=0, filters=text))
    assert page.canvas.tokens.shape == (2, 5)
    assert page.step == 5
    written = packed.finish(page)
    assert written.tokens_per_step == 1
    assert all(len(tokens) == 5 for tokens in written.tokens)


def test_a_text_may_be_longer_than_the_canvas_if_the_model_has_positions(packed):
    page = last(packed.stream("The", length=CANVAS + 5, seed=0, num_steps=2))
    assert page.canvas.tokens.shape == (1, CANVAS + 5)


def test_no_length_fills_the_canvas(lm):
    page = last(lm.stream(["The fox", ""], seed=0, num_steps=2))
    assert page.canvas.tokens.shape == (2, CANVAS)


@pytest.mark.parametrize("lookahead", [True, False])
def test_blocks_are_written_from_the_left(lm, lookahead):
    pages = list(lm.stream("", length=10, block=4, lookahead=lookahead, seed=0, num_steps=6))
    for page in pages:
        noisy = page.canvas.noisy[0]
        begun = [bool((~noisy[start : start + 4]).any()) for start in (0, 4, 8)]
        done = [bool((~noisy[start : start + 4]).all()) for start in (0, 4, 8)]
        assert begun[1] <= done[0]
        assert begun[2] <= done[1]
    assert len(pages) == 7


def test_own_filters_come_last(lm):
    token = lm.encode([" fox"])[0][0]
    written = lm.generate("", length=4, filters=[Forced(((1, token),))], seed=0)
    assert written.tokens[0][1:2] in ((token,), ())
    page = last(lm.stream("", length=4, filters=[Forced(((1, token),))], seed=0))
    assert page.canvas.tokens[0, 1] == token


# --- stream ---


def test_stream_equals_generate(lm):
    again = {"prompt": list(PROMPTS), "seed": 4, "num_steps": 6}
    pages = list(lm.stream(**again))
    written = lm.generate(**again)
    assert lm.finish(pages[-1]) == written
    assert tuple(lm.show(pages[-1], row) for row in range(4)) == written.full_texts
    assert [page.step for page in pages] == list(range(written.num_steps + 1))
    assert pages[0].canvas.noisy.sum() == (~pages[0].canvas.fixed).sum()


def test_pages_know_which_step_decided_what(lm):
    pages = list(lm.stream("The fox", step="remask_cap", step_options={"eta": 0.5}, seed=0))
    for before, page in pairwise(pages):
        assert torch.equal(page.decided < 0, page.canvas.noisy)
        assert torch.equal(page.decided == 0, page.canvas.fixed)
        fresh = before.canvas.noisy & ~page.canvas.noisy
        assert (page.decided[fresh] == page.step).all()
        kept = ~before.canvas.noisy & ~page.canvas.noisy
        assert torch.equal(page.decided[kept], before.decided[kept])


def test_a_model_in_training_mode_goes_back_to_it(lm):
    lm.model.train()
    try:
        pages = lm.stream("The", seed=0, num_steps=3)
        next(pages), next(pages)
        assert not lm.model.training
        assert torch.is_grad_enabled(), "what the caller does between pages is his own"
        pages.close()
        assert lm.model.training
    finally:
        lm.model.eval()


def test_a_text_says_why_it_stops(lm):
    ends = Suppress(tuple(lm.reader.ends))
    assert lm.generate(["A", ""], length=3, filters=(ends,)).finish_reasons == ("length",) * 2
    assert lm.generate("A", filters=(ends,)).finish_reasons == ("canvas",)
    at_once = Forced(((3, lm.special.eos),))
    assert lm.generate("", filters=(at_once,)).finish_reasons == ("end",)
    assert lm.generate("", length=3, grow=2, filters=(ends,)).finish_reasons == ("length",)
    assert lm.infill(f"A {GAP}.", gap_length=2).finish_reasons == ("length",)
    assert lm.generate("A", length=2).as_dict()["finish_reasons"]


# --- infill ---


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_what_is_around_a_gap_stays_to_the_byte(layout):
    lm = tiny_lm(layout=layout)
    text = f"<|bos|> caf\u00e9 {GAP} \u00f1{GAP}_\u2603 "
    written = lm.infill(text, gap_length=2, num_samples=5, seed=0)
    for full, fills in zip(written.full_texts, written.fills, strict=True):
        assert full == f"<|bos|> caf\u00e9{fills[0]} \u00f1{fills[1]}\u2603 "
    assert written.texts[0] == "".join(written.fills[0])
    assert all(len(tokens) == 4 for tokens in written.tokens)
    assert not any(contains_special(lm, tokens) for tokens in written.tokens)


def test_a_taught_model_fills_in_what_it_has_learnt(taught_lm):
    text = f"A caf\u00e9 had{GAP} on its roof."
    written = taught_lm.infill(text, gap_length=2, step="margin", temperature=0)
    assert written.text == SENTENCES[3]
    assert written.fills == ((" a \u2603",),)


def test_a_gap_alone_and_gaps_at_the_ends_are_filled(lm):
    assert len(lm.infill(GAP, gap_length=3, seed=0).tokens[0]) == 3
    written = lm.infill(f"{GAP}the{GAP}", gap_length=2, seed=0)
    assert written.text == f"{written.fills[0][0]}the{written.fills[0][1]}"


def test_texts_with_padding_are_filled_together(lm):
    texts = [f"The {GAP}.", f"Once upon a {GAP} there was."]
    both = lm.infill(texts, gap_length=2, seed=0, step="margin")
    assert lm.infill(texts[:1], gap_length=2, seed=0, step="margin").texts == both.texts[:1]


# --- a space before what is written ---


@pytest.mark.parametrize("corruption", [MASKED, HYBRID], ids=lambda c: c["name"])
def test_a_space_at_the_end_is_left_to_the_first_new_token(corruption):
    lm = tiny_lm(corruption)
    prompts = ["The fox ", "The fox", " ", "a  "]
    for length in (None, 6):
        page = last(lm.stream(prompts, num_steps=5, length=length, seed=0, temperature=3.0))
        written = lm.finish(page)
        for row, prompt in enumerate(prompts):
            if prompt.endswith(" "):
                assert page.request.rows[row][0] == prompt[:-1]
                assert written.texts[row].startswith(" ")
            assert written.full_texts[row].startswith(prompt)


def test_a_space_before_a_gap_is_left_to_its_first_token(lm):
    text = f"{GAP}a {GAP} fox{GAP}"
    written = lm.infill([text] * 9, gap_length=2, seed=0, temperature=3.0)
    for full, fills in zip(written.full_texts, written.fills, strict=True):
        assert fills[1].startswith(" ")
        assert full == f"{fills[0]}a{fills[1]} fox{fills[2]}"
    assert not all(fills[0].startswith(" ") for fills in written.fills)


def test_a_taught_model_goes_on_after_a_space(taught_lm):
    assert taught_lm.generate("The fox met ", step="margin", temperature=0).text == SENTENCES[1]
    filled = taught_lm.infill(f"The fox {GAP} bear.", gap_length=4, step="margin", temperature=0)
    assert filled.text == SENTENCES[1]


# --- an autoregressive model ---


def test_an_autoregressive_model_writes_from_left_to_right(writer):
    written = writer.generate(["The fox", "A"], temperature=0)
    assert written.text == "The fox met a big grey bear."
    assert written.full_texts[1] == SENTENCES[3]
    assert writer.generate("The fox", temperature=0, length=9).texts[0] == written.texts[0]
    for page in writer.stream("The", seed=0):
        noisy = page.canvas.noisy[0].long()
        assert (noisy.diff() >= 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "margin"}, "from left to right; got step=margin: leave it out"),
        ({"num_steps": 3}, "from left to right; got num_steps=3: leave it out"),
        ({"block": 8}, "from left to right; got block=8: leave it out"),
    ],
)
def test_an_autoregressive_model_writes_no_other_way(writer, changes, message):
    with pytest.raises(ConfigError, match=message):
        writer.generate("The", **changes)


@pytest.mark.parametrize("length", [None, 9])
def test_cached_autoregression_writes_what_the_uncached_one_does(length):
    lm = tiny_lm(objective="next_token")
    request = lm.start(PROMPTS, temperature=0, length=length)
    denoiser = lm.denoiser
    if request.left is not None:
        denoiser = denoiser.given(left=request.left, left_hidden=request.hidden)
    pages = generate(
        denoiser,
        request.canvas,
        request.step,
        request.rng,
        block=request.options.block,
        lookahead=False,
        filters=request.filters,
    )
    assert torch.equal(last(lm.run(request)).canvas.tokens, last(pages).tokens)


def test_an_autoregressive_model_can_be_asked_as_it_answered(writer):
    written = writer.generate("The", seed=0)
    own = DiffusionLM(writer.model, writer.tokenizer, written.options)
    assert own.generate("The").texts == written.texts


def test_an_autoregressive_model_fills_no_gaps(writer):
    with pytest.raises(ConfigError, match="infilling needs a diffusion model"):
        writer.infill(f"The {GAP}")


# --- score ---


@pytest.mark.parametrize("objective", ["masked", "next_token"])
def test_known_texts_score_better_than_others(taught_lm, writer, objective):
    lm = taught_lm if objective == "masked" else writer
    known, unknown = lm.score([SENTENCES[0], "Zebra quartz!"], num_samples=8)
    assert known.value < 1.5 < 5 < unknown.value
    assert known.low <= known.value <= known.high
    assert (known.error == 0) == (objective == "next_token")


def test_the_score_of_a_text_does_not_depend_on_the_others(lm):
    long = "the fox " * 20  # several rows
    together = lm.score(["The fox", long, "A caf\u00e9"], num_samples=3)
    for text, score in zip(["The fox", long, "A caf\u00e9"], together, strict=True):
        assert lm.score(text, num_samples=3)[0].value == pytest.approx(score.value, rel=1e-5)
    assert lm.score(long, num_samples=3) == lm.score(long, num_samples=3)
    assert lm.score(long, num_samples=3, seed=1) != lm.score(long, num_samples=3)


def test_a_score_of_an_even_model_is_the_logarithm_of_its_words(packed):
    even = tiny_lm(layout="packed")
    torch.nn.init.zeros_(even.model.norm.weight)  # all logits are 0
    tokens = len(even.tokenizer) - 1  # the mask token has probability 0
    assert even.score("The fox")[0].value == pytest.approx(math.log(tokens), rel=1e-5)


@pytest.mark.parametrize("texts", [[], "", ["a", ""]])
def test_nothing_cannot_be_scored(lm, texts):
    with pytest.raises(DataError, match="nothing to score"):
        lm.score(texts)


# --- requests that cannot be met ---


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompt": "a fox " * 40}, r"\d+ tokens of prompt and 1 new ones do not fit .*24 pos"),
        ({"prompt": "a fox", "length": 60}, r"tokens of prompt and 60 new ones .*48 positions"),
        ({"length": 0}, "length must be at least 1"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"temperature": -1}, "temperature must be 0 or more"),
        ({"top_p": 0}, "top_p must be in"),
        ({"canvas": 100}, "canvas 100 is larger than the model's 48 positions"),
        ({"suppress": (4000,)}, "suppress must hold token ids from 0 to"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"prompt": []}, "no text: give one"),
        ({"step": "margn"}, "unknown step 'margn'; did you mean margin"),
        ({"stepz": "margin"}, "unknown option 'stepz'; did you mean step"),
        ({"step": "threshold", "step_options": {"level": 9}}, "threshold level must be in"),
        ({"length": 10, "block": 2, "num_steps": 3}, "num_steps 3 is less than the 5 blocks"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_request_that_cannot_be_met_is_refused(lm, request_, message):
    with pytest.raises(ConfigError, match=message):
        lm.generate(**request_)


@pytest.mark.parametrize("corruption", [UNIFORM, HYBRID], ids=lambda c: c["name"])
def test_a_rule_for_masks_needs_a_masked_model(corruption):
    with pytest.raises(ConfigError, match="step 'margin' needs a masked model"):
        tiny_lm(corruption).generate(step="margin")


def test_text_that_was_not_utf_8_is_refused(lm):
    broken = b"ab\xffc".decode(errors="surrogateescape")
    for ask in (lm.generate, lm.score, lambda text: lm.infill(text + GAP)):
        with pytest.raises(DataError, match="character 3 of the text is half of one"):
            ask(broken)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, f"no gap in the text: mark it with {GAP}"),
        ("a ___ gap", {}, "no gap in the text"),
        (GAP, {"gap_length": 0}, "gap_length must be at least 1, got 0"),
        (GAP, {"gap_length": 50}, "the text has 52 tokens with its gaps, more than the canvas"),
        (GAP, {"length": 5}, "infilling has no length: use gap_length"),
        (GAP, {"max_new_tokens": 5}, "infilling has no length: use gap_length"),
        (GAP, {"num_samples": 0}, "num_samples must be at least 1"),
        ([], {}, "no text: give one"),
    ],
)
def test_a_text_that_cannot_be_filled_is_refused(lm, text, options, message):
    with pytest.raises(ConfigError, match=message):
        lm.infill(text, **options)


def test_texts_without_padding_are_filled_together_if_they_are_equally_long(packed):
    texts = [f"The {GAP}.", f"Once upon a {GAP} there was."]
    with pytest.raises(ConfigError, match="fill them one by one"):
        packed.infill(texts, gap_length=2)
    assert len(packed.infill(texts[:1] * 2, seed=0, gap_length=2).texts) == 2


def test_own_options_are_the_defaults(lm):
    options = replace(lm.options, step="margin", temperature=0, num_steps=3)
    own = DiffusionLM(lm.model, lm.tokenizer, options)
    assert (
        own.generate("The", seed=0).texts
        == lm.generate("The", seed=0, step="margin", temperature=0, num_steps=3).texts
    )
    whole = DiffusionLM(lm.model, lm.tokenizer)
    assert whole.options == GenerationOptions()
    assert last(whole.stream(num_steps=1)).canvas.tokens.shape == (1, 2 * CANVAS)


def test_the_spelling_of_the_mask_is_text(lm):
    """Somebody's story may say it: then it comes out again, but never as a token."""
    assert lm.generate(MASK, seed=0, num_steps=2).text.startswith(MASK)
    assert not contains_special(lm, lm.encode([MASK])[0])
