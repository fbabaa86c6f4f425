"""Texts of random models within a grammar always match it."""

import json
import re

import pytest
from tiny_lm import CANVAS, HYBRID, MASKED, UNIFORM, tiny_lm

from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.rules import STEPS
from sfumato.lm.pages import NOISE


def test_what_was_compiled_is_kept(lm):
    for grammar in ({"regex": "a+b"}, {"choices": ["a", "b"]}, {"json_schema": {"type": "null"}}):
        one, other = (lm.start("", length=8, seed=seed, **grammar).step for seed in (1, 2))
        assert one.automaton is other.automaton
        assert lm.start("", length=8, **grammar, suppress=(70,)).step.automaton is not one.automaton


REGEXES = (
    r"[A-Z][a-z]{2,6}(, [A-Z][a-z]+)*",
    r"(caf\u00e9|\u2603|\u00fc)+!",
    r"-?[0-9]+\.[0-9]{2}",
    r"^(yes|no)( \(sure\))?$",
    r".{3,8}",
    r"\w+@\w+\.(com|org)",
)
SCHEMAS = (
    {"type": "boolean"},
    {"enum": ["a", 1, None, {"b": ['\u2603"\\']}]},
    {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "o": {"type": ["string", "null"]}},
        "required": ["n"],
    },
    {"type": "array", "items": {"type": "number"}, "minItems": 1, "maxItems": 2},
    {"type": "string", "minLength": 2, "maxLength": 5},
)


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.fixture(scope="module")
def packed():
    return tiny_lm(layout="packed")


def check(schema, value) -> bool:
    """A small validator, for the keywords that the tests use."""
    if "$ref" in schema:
        raise AssertionError("resolve first")
    if "enum" in schema:
        return value in schema["enum"]
    if "anyOf" in schema:
        return any(check(one, value) for one in schema["anyOf"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    python = {
        "boolean": bool,
        "null": type(None),
        "string": str,
        "array": list,
        "object": dict,
        "number": (int, float),
        "integer": int,
    }
    if not any(isinstance(value, python[kind]) for kind in kinds):
        return False
    if isinstance(value, str):
        high = schema.get("maxLength", 10**9)
        fit = re.search(schema.get("pattern", ""), value) is not None
        return schema.get("minLength", 0) <= len(value) <= high and fit
    if isinstance(value, list):
        fit = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**9)
        return fit and all(check(schema["items"], one) for one in value)
    if isinstance(value, dict):
        known = schema["properties"]
        named = set(schema.get("required", ())) <= set(value) <= set(known)
        return named and all(check(known[key], one) for key, one in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    return True


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("pattern", REGEXES)
def test_texts_match_a_regex(lm, packed, layout, pattern):
    model = lm if layout == "padded" else packed
    for more in ({"length": 24}, {"length": 24, "block": 7}, {"temperature": 0}):
        written = model.generate(["The fox", ""], regex=pattern, seed=0, num_steps=5, **more)
        for text in written.texts:
            assert re.fullmatch(pattern, text), text


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_texts_are_json_under_a_schema(lm, schema):
    for given, more in ((schema, {}), (json.dumps(schema), {"block": 16, "temperature": 2.0})):
        written = lm.generate(
            "Tell:", num_samples=3, json_schema=given, length=40, seed=0, num_steps=6, **more
        )
        for text in written.texts:
            assert check(schema, json.loads(text)), text


@pytest.mark.parametrize("step", STEPS)
def test_every_rule_keeps_to_a_grammar(lm, step):
    for more in (
        {"length": 12},
        {"length": 12, "num_steps": 3, "temperature": 0},
        {"length": 12, "block": 5, "lookahead": False, "num_steps": 7},
        {"num_steps": 6, "top_k": 2, "temperature": 1.5},
    ):
        written = lm.generate(["The", ""], step=step, regex="(ab|\u00e9)+[0-9]{2}", seed=3, **more)
        for text in written.texts:
            assert re.fullmatch("(ab|\u00e9)+[0-9]{2}", text), (more, text)
    filled = lm.infill("a ____ fox ____.", step=step, gap_length=5, regex="[a-z ]+\u00e9", seed=1)
    assert all(re.fullmatch("[a-z ]+\u00e9", fill) for fill in filled.fills[0])
    assert all(len(tokens) == 10 for tokens in filled.tokens)


@pytest.mark.parametrize("corruption", [UNIFORM, HYBRID], ids=lambda c: c["name"])
def test_noise_that_may_be_text_keeps_to_a_grammar(corruption):
    lm = tiny_lm(corruption)
    for more in ({}, {"temperature": 0}, {"length": 9, "block": 4, "lookahead": False}):
        written = lm.generate(
            ["The", ""], choices=["a fox", "caf\u00e9"], num_steps=6, seed=0, **more
        )
        assert set(written.texts) <= {"a fox", "caf\u00e9"}


@pytest.mark.parametrize("more", [{}, {"length": 12}, {"length": 12, "temperature": 0}], ids=str)
def test_an_autoregressive_model_keeps_to_a_grammar(more):
    lm = tiny_lm(objective="next_token")
    written = lm.generate(["The", "A fox"], regex="([a-z]{3} )*\u00e9", seed=0, **more)
    assert all(re.fullmatch("([a-z]{3} )*\u00e9", text) for text in written.texts)


@pytest.mark.parametrize("step", STEPS)
def test_blocks_keep_to_a_grammar_each_row_at_its_own_place(step):
    lm = tiny_lm(attention="block_causal", block_size=8)
    prompts = ["The fox", "", "Once upon a time there was a"]
    options = {"step": step, "seed": 2, "length": 30}
    made = lm.generate(prompts, regex="(ab|cd){3,9}e", **options)
    assert all(re.fullmatch("(ab|cd){3,9}e", text) for text in made.texts), made.texts
    assert len(set(made.texts)) > 1
    if step in ("threshold", "wino", "remask_cap"):
        alone = lm.generate(prompts[:1], regex="(ab|cd){3,9}e", **options)
        assert alone.texts == made.texts[:1]
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    for text in lm.generate(["A", ""], json_schema=schema, **{**options, "length": 40}).texts:
        assert isinstance(json.loads(text)["n"], int)


def test_texts_are_not_all_the_same_and_may_fill_their_room(lm, packed):
    texts = lm.generate(num_samples=20, regex="[a-z]{4,}", length=10, seed=0, num_steps=2).texts
    assert len(set(texts)) > 10
    page = list(lm.stream(regex="[a-z]{10}|.*", length=3, suppress=(lm.special.eos,), seed=0))[-1]
    assert lm.finish(page).tokens[0] == tuple(page.canvas.tokens[0].tolist())
    assert len(set(packed.generate(num_samples=20, choices=["abcdefgh"], seed=0).texts)) == 1
    choices = packed.generate(num_samples=40, choices=list("abcdefgh"), seed=0).texts
    assert len(set(choices)) > 4


def test_padding_follows_a_text_of_a_padded_model(lm):
    page = list(lm.stream(["The", ""], choices=["fox"], seed=0, num_steps=4))[-1]
    for row, tokens in enumerate(page.canvas.tokens):
        text = tokens[page.request.rows[row][1]].tolist()
        end = text.index(lm.special.eos)
        assert set(text[end:]) <= {lm.special.eos, lm.special.pad}
        assert len(tokens) == CANVAS


@pytest.mark.parametrize("step", ["ancestral", "confidence", "wino", "remask_cap"])
def test_a_row_does_not_depend_on_the_others(lm, step):
    prompts = ["The fox", "", "A caf\u00e9 had"]
    for more in ({"length": 11, "block": 4}, {"temperature": 0.7, "top_p": 0.9}):
        options = {"step": step, "regex": "([A-Z][a-z]* ?)+", "seed": 4, "num_steps": 3, **more}
        together = lm.generate(prompts, **options)
        for row, prompt in enumerate(prompts):
            others = ["The"] * row + [prompt] + ["A longer one"] * (2 - row)
            assert lm.generate(others, **options).texts[row] == together.texts[row]
        assert lm.generate(prompts[:1], **options).texts == together.texts[:1]


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_space_that_is_given_is_no_part_of_the_new_text(lm, packed, layout):
    """It goes to the model with the first new token all the same, and is shown where it was."""
    model = lm if layout == "padded" else packed
    fox = tuple(model.encode([" fox"])[0])
    prompts = ["The ", "The", " ", "a  "]
    for more in ({}, {"length": 6}, {"length": 6, "block": 3}):
        written = model.generate(prompts, choices=["fox"], seed=0, num_steps=4, **more)
        assert written.texts == ("fox",) * 4
        assert written.full_texts == ("The fox", "Thefox", " fox", "a  fox")
    again = model.generate("The ", choices=["fox"], seed=0, num_samples=30, length=4, num_steps=1)
    assert fox in again.tokens
    for page in model.stream("The ", choices=["fox"], seed=0, step="left_to_right"):
        assert model.show(page).startswith("The ")
        pieces = model.reader.pieces(page, 0, by_step=True)
        assert "".join(piece.text for piece in pieces) in ("The ", "The f", "The fo", "The fox")
    filled = model.infill(["a ____ or____ ____."], choices=["fox"], gap_length=2, seed=1)
    assert filled.fills == (("fox", "fox", "fox"),)
    assert filled.text == "a fox orfox fox."


def test_pages_on_the_way_show_text_and_noise(lm):
    pages = list(lm.stream("The ", choices=["caf\u00e9 noir"], seed=0))
    assert lm.show(pages[0]).startswith("The " + NOISE)
    assert lm.show(pages[-1]) == "The caf\u00e9 noir"


def test_options_make_the_same_texts_again(lm, tmp_path):
    written = lm.generate("A", choices=["fox", "bear"], seed=1)
    again = type(lm)(lm.model, lm.tokenizer, written.options)
    again.save(tmp_path)
    assert type(lm).from_pretrained(tmp_path).generate("A").texts == written.texts


def test_options_know_whether_there_is_a_grammar():
    assert GenerationOptions().free
    assert GenerationOptions().grammar() is None
    assert not GenerationOptions(choices=("a",)).free
    assert MASKED["name"] == "masked"
