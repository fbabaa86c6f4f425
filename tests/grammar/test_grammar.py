"""Grammars: automata, exact arithmetic over them, and texts that always match."""

import itertools
import json
import re
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from fixed_laws import END, MASK, WORDS, Fixed, empty, laws, over, whole
from tiny_lm import CANVAS, HYBRID, MASKED, UNIFORM, tiny_lm
from tiny_lm import tokenizer as tiny_tokenizer

from sfumato.data.tokenizer import token_bytes
from sfumato.decoding.constrained import Span, constrain
from sfumato.decoding.filters import Temperature, TopK
from sfumato.decoding.loops import denoise, generate
from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.remask import Cap, Remasking, Wino
from sfumato.decoding.rules import STEPS
from sfumato.decoding.step import Around
from sfumato.decoding.times import even_times
from sfumato.decoding.unmask import LeftToRight, RandomOrder
from sfumato.errors import ConfigError
from sfumato.grammar.grammar import NOWHERE, Grammar
from sfumato.lm.pages import NOISE
from sfumato.noise.schedules import Linear
from sfumato.rng import Rng

PATTERNS = ("(ab)*a?", "(a|b)+é?b", "[^é]é|a{3,}", "a|ab|ba|é", "a*")


def accepts(pattern: str, tokens, ends: bool) -> bool:
    """By definition: spell the tokens before the first end, and let `re` say."""
    tokens = list(tokens)
    if END in tokens and not ends:
        return False
    cut = tokens.index(END) if END in tokens else len(tokens)
    text = b"".join(WORDS[i] for i in tokens[:cut])
    try:
        matches = re.fullmatch(pattern, text.decode()) is not None
    except UnicodeDecodeError:
        return False
    return matches and set(tokens[cut:]) <= {END}


def valid(pattern: str, length: int, ends: bool) -> np.ndarray:
    """All sequences that are texts, [number, length]."""
    every = itertools.product(range(6), repeat=length)
    return np.array([one for one in every if accepts(pattern, one, ends)]).reshape(-1, length)


def at_once(automaton, logits, rows, filters=(), seed=0):
    """Every position decided in one step."""
    rule = constrain(LeftToRight(Linear()), automaton, whole(rows, len(logits)))
    pages = denoise(
        Fixed(logits),
        empty(rows, len(logits)),
        rule,
        even_times(1),
        Rng.from_seed(seed, rows),
        filters=filters,
    )
    return next(iter(pages)).tokens


# --- automata ---


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_automaton_accepts_the_texts_that_match(pattern, ends):
    automaton = over(pattern, ends)
    for length in range(5):
        for tokens in itertools.product(range(7), repeat=length):
            state = automaton.after(0, tokens)
            accepted = state != NOWHERE and bool(automaton.final[state])
            expected = MASK not in tokens and accepts(pattern, tokens, ends)
            assert accepted == expected, tokens


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_numbers_of_tokens_that_complete_a_text(pattern, ends):
    automaton = over(pattern, ends)
    found = automaton.completable(5)[1:, 0].tolist()
    assert found == [len(valid(pattern, length, ends)) > 0 for length in range(1, 6)]


def test_a_request_needs_no_table_of_states_by_states():
    """Of the numbers of tokens that complete a text, only those that there is room for."""
    words = [bytes([byte]) for byte in range(256)]
    automaton = Grammar.regex(".{0,2000}").over([*words, None], end=256)
    assert automaton.num_states > 15_000
    automaton.edges  # noqa: B018
    tracemalloc.start()
    try:
        rule = constrain(LeftToRight(Linear()), automaton, [Span(0, 0, 64)])
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rule.ahead.shape == (65, automaton.num_states)
    assert most < 10 * rule.ahead.nbytes


def test_numbers_of_tokens_are_the_same_forwards_and_backwards():
    for pattern, ends in itertools.product(PATTERNS, (True, False)):
        automaton = over(pattern, ends)
        found = automaton.completable(12)
        for state in range(automaton.num_states):
            forth = list(itertools.islice(automaton.lengths(state), 13))
            assert forth + [False] * (13 - len(forth)) == found[:, state].tolist()


def test_what_was_compiled_is_kept(lm):
    for grammar in ({"regex": "a+b"}, {"choices": ["a", "b"]}, {"json_schema": {"type": "null"}}):
        one, other = (lm.start("", length=8, seed=seed, **grammar).step for seed in (1, 2))
        assert one.automaton is other.automaton
        assert lm.start("", length=8, **grammar, suppress=(70,)).step.automaton is not one.automaton


def test_tokens_that_lead_alike_are_one_class():
    words = [bytes([byte]) for byte in range(256)]
    automaton = Grammar.regex("[a-z]+[0-9]").over(words)
    assert automaton.num_classes == 3  # letters, digits, and a space before them
    assert automaton.num_states == 4
    assert (automaton.classes == NOWHERE).sum() == 256 - 37


def test_what_follows_an_end_may_be_free():
    automaton = Grammar.regex("ab").over(WORDS, never={MASK}, end=END)
    for tail in itertools.product(range(6), repeat=2):
        assert automaton.final[automaton.after(0, [2, END, *tail])]
    assert automaton.after(0, [2, 0]) == NOWHERE


def test_bytes_of_tokens_spell_what_they_decode_to():
    tokenizer = tiny_tokenizer()
    words = token_bytes(tokenizer, len(tokenizer) + 2)
    assert words[len(tokenizer) :] == [None, None]
    text = "A caf\u00e9 had a \u2603 on \t its roof.\n\u00ad\u00a0\x00\x7f"
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(words[i] for i in ids) == text.encode()
    assert [i for i, word in enumerate(words[:-2]) if word is None] == sorted(
        tokenizer.all_special_ids
    )


# --- the law ---


def scores(logits, texts):
    """log p of every text's tokens [number, length] up to its first end: padding costs nothing."""
    logp = logits.double().log_softmax(-1).numpy()
    each = logp[np.arange(texts.shape[1]), texts]
    return np.where((np.cumsum(texts == END, 1) - (texts == END)) > 0, 0.0, each)


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_samples_follow_the_law_given_the_grammar(pattern, ends):
    length, rows = 4, 4000
    texts = valid(pattern, length, ends)
    if not len(texts):
        pytest.skip("no text of this length")
    logits = laws(length, seed=len(pattern))
    score = scores(logits, texts).sum(1)
    expected = np.exp(score - score.max())
    expected /= expected.sum()
    tokens = at_once(over(pattern, ends), logits, rows).numpy()
    counts = (tokens[:, None] == texts[None]).all(2).sum(0)
    assert counts.sum() == rows  # nothing else
    large = expected * rows > 5
    chi = ((counts - expected * rows) ** 2 / (expected * rows))[large].sum()
    assert chi < large.sum() + 5 * np.sqrt(2 * large.sum()) + 1


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_greedy_text_is_the_most_likely_one(pattern, ends):
    for length, seed in itertools.product((3, 5), range(4)):
        texts = valid(pattern, length, ends)
        if not len(texts):
            continue
        logits = laws(length, seed)
        best = texts[scores(logits, texts).sum(1).argmax()]
        found = at_once(over(pattern, ends), logits, 1, [Temperature(0)])
        assert found[0].tolist() == best.tolist()


@dataclass(frozen=True)
class Noting(Around):
    """A rule that keeps the logits it is given, and decides nothing."""

    kept: list

    def __call__(self, canvas, seen, t, s, rng):
        self.kept.append((seen.where, seen.logits))
        return canvas


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS[:3])
@pytest.mark.parametrize("decided", [{}, {1: 1}, {0: 0, 3: 1}], ids=str)
def test_a_rule_judges_by_the_marginals_given_the_grammar(pattern, ends, decided):
    """Also, for a rule that verifies, of decided positions: given all the others."""
    length = 5
    texts = valid(pattern, length, ends)
    possible = [text for text in texts if all(text[p] == v for p, v in decided.items())]
    if not possible:
        pytest.skip("no such text")
    logits, canvas = laws(length), empty(1, length)
    for place, token in decided.items():
        canvas.tokens[0, place], canvas.noisy[0, place] = token, False
    rule = Noting(Wino(Linear(), MASK), [])
    bound = constrain(rule, over(pattern, ends), whole(1, length))
    rng = Rng.from_seed(0)
    next(denoise(Fixed(logits), canvas, bound, even_times(1), rng))
    where, seen = rule.kept[0]
    assert bool(where.all())
    for place in range(length):
        fixed = {p: v for p, v in decided.items() if p != place}
        marginal = np.zeros(7)
        for text in texts:
            if all(text[p] == v for p, v in fixed.items()):
                free = [p for p in range(length) if p not in fixed]
                marginal[text[place]] += np.exp(scores(logits, text[None])[0, free].sum())
        found = seen[place].softmax(-1).numpy()
        np.testing.assert_allclose(found, marginal / marginal.sum(), rtol=1e-4, atol=1e-6)


def test_a_block_leaves_room_for_the_rest():
    """Its law is that of its own tokens and of all that can follow, were that like the block."""
    pattern, size, rows = "(ab)*a{2}b|b", 2, 3000
    texts = valid(pattern, 4, True)
    starts = np.unique(texts[:, :size], axis=0)
    logits = laws(4, seed=3)
    mean = logits[:size].double().softmax(-1).mean(0).log().expand(2, -1)
    alike = torch.cat((logits[:size].double(), mean))
    chance = np.exp(scores(alike, texts).sum(1))
    expected = ((texts[None, :, :size] == starts[:, None]).all(2) * chance).sum(1)
    expected /= expected.sum()
    rule = constrain(LeftToRight(Linear()), over(pattern, True), whole(rows, 4))
    draws = generate(
        Fixed(logits), empty(rows, 4), rule, Rng.from_seed(0, rows), num_steps=2, block=size
    )
    *_, last = draws
    tokens = last.tokens.numpy()
    assert {*map(tuple, tokens.tolist())} <= {*map(tuple, texts.tolist())}
    share = (tokens[:, None, :size] == starts[None]).all(2).mean(0)
    np.testing.assert_allclose(share, expected, atol=0.03)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_decided_first_what_is_left_can_be_completed(seed):
    """Steep laws, that change at every look, against a grammar with few texts."""

    @dataclass(frozen=True)
    class Changing(Fixed):
        def __call__(self, tokens, t, where, *, segments=None):
            draws = int(tokens.sum()) + seed
            return 60 * laws(int(where.sum()), draws)

        leave_one_out = __call__

    rows, length = 8, 6
    texts = {tuple(text) for text in valid("(a|b)(ab){1,2}|ébé?|b", length, True).tolist()}
    automaton = over("(a|b)(ab){1,2}|ébé?|b", True)
    for step in (RandomOrder(Linear()), Remasking(Linear(), MASK, Cap(0.4)), Wino(Linear(), MASK)):
        rule = constrain(step, automaton, whole(rows, length))
        rng = Rng.from_seed(seed, rows)
        for block in (None, 4):
            pages = generate(
                Changing(laws(1)), empty(rows, length), rule, rng, num_steps=4, block=block
            )
            *_, last = pages
            assert {*map(tuple, last.tokens.tolist())} <= texts


def test_a_cut_law_is_left_only_where_no_text_is_within_it():
    logits = torch.zeros(3, 7)
    logits[:, [1, 4]] = torch.tensor([3.0, 2.0])  # the two likeliest, never valid together
    logits[:, MASK] = -torch.inf
    tokens = at_once(over("a*b|aaa", False), logits, 50, [TopK(1)])
    assert {*map(tuple, tokens.tolist())} == {(0, 0, 1)}
    assert {*map(tuple, at_once(over("aaa", False), logits, 9, [TopK(1)]).tolist())} == {(0, 0, 0)}


def test_extreme_laws_are_no_end_of_the_sums():
    """Hundreds of positions, each with a next to impossible token that the grammar needs."""
    length = 300
    logits = torch.full((length, 7), 0.0)
    logits[:, 0], logits[:, END], logits[:, MASK] = -1e4, 50.0, -torch.inf
    tokens = at_once(over("a{299}", True), logits, 2)
    assert tokens[0, :299].tolist() == [0] * 299
    logits[:, 0] = -torch.inf
    tokens = at_once(over("a{299}", True), logits, 2, [Temperature(0)])
    assert tokens[0, :299].tolist() == [0] * 299


def test_ways_that_are_closed_do_not_drown_those_that_are_open():
    """After a b only next to impossible tokens follow; the likely ones only after an a."""
    logits, canvas = torch.zeros(20, 7), empty(1, 20)
    logits[:, 0] = -1e4
    canvas.tokens[0, 0], canvas.noisy[0, 0] = 1, False
    rule = constrain(LeftToRight(Linear()), over("ba{19}|ab{19}", False), whole(1, 20))
    pages = denoise(Fixed(logits), canvas, rule, even_times(1), Rng.from_seed(0))
    assert next(iter(pages)).tokens[0].tolist() == [1] + [0] * 19


def test_logits_that_are_not_numbers_are_refused():
    with pytest.raises(ConfigError, match="not numbers; check the model"):
        at_once(over("a*", True), torch.full((3, 7), torch.nan), 1)


# --- texts of random models ---

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


# --- requests that cannot be met ---


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"choices": []}, "no choices; give at least one text"),
        ({"choices": "yes"}, "choices must be a tuple or a list, got 'yes'"),
        ({"choices": ["a"], "regex": "a"}, "exclude each other; give one of them"),
        ({"regex": "("}, r"cannot use the regular expression '\('"),
        ({"regex": r"(a)\1"}, "back references.*are not regular"),
        ({"regex": "a(?=b)"}, "look-around"),
        ({"regex": r"a[^\x00-\x{10FFFF}]"}, "no text matches the regular expression"),
        ({"regex": "x" * 30, "length": 10}, "has 30 tokens, and there is room for 10: use a len"),
        ({"regex": "a" * 30}, "has 30 tokens, and there is room for 23"),
        ({"regex": "q+", "suppress": (81, 84)}, "suppress fewer tokens"),
        ({"json_schema": "{"}, "the JSON schema.*not JSON"),
        ({"json_schema": {"type": "strin"}}, r"at #: unknown type \['strin'\]; known: string"),
        ({"regex": "a{9000}", "grammar_states": 500}, "needs more than 500 states; bound what"),
        ({"json_schema": []}, "json_schema must be a JSON schema"),
        ({"json_schema": {"not": {}}}, "no value fits it"),
        ({"json_schema": {"type": "object"}}, "no properties; say what the object holds"),
        ({"json_schema": {"type": "string", "format": "x"}}, "unknown format 'x'; known: date"),
        ({"json_schema": {"$ref": "#/a"}}, "leads nowhere; there is no 'a'"),
        ({"json_schema": {"$ref": "#"}}, "refers to itself without end"),
        ({"json_schema": {"type": "string", "minLength": -1}}, "minLength must be a whole number"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_before_it_starts(lm, request_, message):
    if "suppress" in request_:
        letters = [i for i, word in enumerate(words(lm)) if word and b"q" in word]
        request_ = {**request_, "suppress": tuple(letters)}
    with pytest.raises(ConfigError, match=message):
        lm.start("", **request_)


def test_a_gap_that_cannot_be_filled_exactly_is_refused(lm):
    with pytest.raises(ConfigError, match=r"exactly 4 tokens.* gap; use gap_length=3"):
        lm.infill("a____ b", regex="(...)*[Q]{3}|Q{9}", gap_length=4, suppress=not_letters(lm))
    with pytest.raises(ConfigError, match=r"has 3 tokens.*room for 2: use a length, or"):
        lm.infill("a____ b", choices=["QQQ"], gap_length=2)


def words(lm):
    return token_bytes(lm.tokenizer, lm.model.config.vocab_size)


def not_letters(lm) -> tuple[int, ...]:
    """All tokens but those of one letter."""
    return tuple(i for i, word in enumerate(words(lm)) if word is None or len(word) > 1)


def test_other_tokenizers_are_refused_by_what_they_lack(lm):
    from tokenizers import decoders

    tokenizer = tiny_tokenizer().__class__(
        tokenizer_object=type(tiny_tokenizer().backend_tokenizer).from_str(
            tiny_tokenizer().backend_tokenizer.to_str()
        )
    )
    tokenizer.backend_tokenizer.decoder = decoders.Metaspace()
    with pytest.raises(ValueError, match="needs a byte-level tokenizer"):
        token_bytes(tokenizer, 400)


# --- schemas ---


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, ["0", "-12"], ["01", "1.0", "+1"]),
        ({"type": "integer", "minimum": -2, "maximum": 10}, ["-2", "10"], ["11", "-3", "-0"]),
        ({"type": "integer", "minimum": 1}, ["1", "10"], ["0", "-1"]),
        ({"type": "number"}, ["0.5", "-1"], [".5", "1."]),
        ({"type": "string"}, ['""', '"\\"a\\n\u2603"'], ['"', '"""', '"\n"', '"\\x"']),
        ({"type": "string", "pattern": "^[a-c]+$"}, ['"abc"'], ['"d"', '""']),
        ({"type": "string", "maxLength": 0}, ['""'], ['"a"']),
        ({"type": "string", "format": "date"}, ['"2024-12-31"'], ['"2024-02-30"', '"2024-1-1"']),
        ({"type": "array", "items": {"type": "null"}}, ["[]", "[null,null]"], ["[null,]", "[,]"]),
        ({"type": "array", "items": {"type": "null"}, "minItems": 2}, ["[null, null]"], ["[null]"]),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        ({"anyOf": [{"type": "null"}, {"const": "a|b"}]}, ["null", '"a|b"'], ['"a"', "nul"]),
        ({"enum": [1, "a"], "type": "string"}, ['"a"'], ["1"]),
        (
            {"type": "object", "properties": {'q"': {"type": "null"}, "r": {"const": 1}}},
            ["{}", '{"q\\"": null}', '{"r":1}', '{"q\\"":null, "r": 1}'],
            ['{"r":1,"q\\"":null}', '{"q\\"":null,}', '{,"r":1}', '{"q"": null}'],
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}},
                "required": ["b"],
                "additionalProperties": False,
            },
            ['{"b":2}', '{"a":1,"b":2}', '{"b":2,"c":3}', '{"a":1,"b":2,"c":3}'],
            ["{}", '{"a":1}', '{"a":1,"c":3}', '{"b":2,}'],
        ),
        (
            {
                "$defs": {
                    "n": {
                        "type": "object",
                        "properties": {"to": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
                        "required": ["to"],
                    }
                },
                "$ref": "#/$defs/n",
            },
            ['{"to":null}', '{"to":{"to":{"to":null}}}'],
            ["{}", '{"to":{"to":{"to":{"to":null}}}}'],
        ),
    ],
    ids=str,
)
def test_a_schema_accepts_what_is_valid_and_only_that(schema, good, bad):
    automaton = Grammar.json_schema(schema).over([bytes([byte]) for byte in range(256)])
    for text in (*good, *bad):
        state = automaton.after(0, list(text.encode()))
        assert (state != NOWHERE and bool(automaton.final[state])) == (text in good), text
    assert all(json.loads(text) is not Ellipsis for text in good)


def test_options_know_whether_there_is_a_grammar():
    assert GenerationOptions().free
    assert GenerationOptions().grammar() is None
    assert not GenerationOptions(choices=("a",)).free
    assert MASKED["name"] == "masked"
