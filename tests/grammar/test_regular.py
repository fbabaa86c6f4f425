"""Automata of regular expressions, against Python's `re`."""

import itertools
import random
import re
import time

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from sfumato.errors import ConfigError
from sfumato.grammar.character_classes import ECMA
from sfumato.grammar.charset import ANY, charset, inverse
from sfumato.grammar.dfa import NOWHERE, Budget
from sfumato.grammar.expressions import Alt, Cat, One, Repeat, Text
from sfumato.grammar.grammar import Grammar
from sfumato.grammar.patterns import read_pattern, search
from sfumato.grammar.products import complement, contained, intersection, texts_of
from sfumato.grammar.regular import automaton
from sfumato.grammar.utf8 import byte_table

LETTERS = "ab.x1 \n-]\u00e9"
ATOMS = [
    "a",
    "b",
    ".",
    r"\.",
    r"\d",
    r"\w",
    r"\S",
    "[ab]",
    "[^a]",
    "[a-x1-3]",
    r"[\]\-.]",
    "x1",
    "\u00e9",
]


def patterns():
    """Random regular expressions that `re` reads alike."""

    def larger(inner):
        return st.one_of(
            st.tuples(inner, inner).map("".join),
            st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
            st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{2,}", "*?"])).map(
                lambda two: f"({two[0]}){two[1]}"
            ),
        )

    return st.recursive(st.sampled_from(ATOMS), larger, max_leaves=6)


def random_texts(count: int = 60) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choices(LETTERS, k=draw.randint(0, 6))) for _ in range(count)]


def spelt(table, final, text: str) -> bool:
    state = 0
    for byte in text.encode():
        state = NOWHERE if state == NOWHERE else int(table[state, byte])
    return state != NOWHERE and bool(final[state])


@settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.generate])
@given(patterns())
def test_a_pattern_matches_what_it_matches_in_re(pattern):
    made, expected = automaton(read_pattern(pattern)), re.compile(pattern, re.ASCII)
    table, final = byte_table(made)
    for text in random_texts():
        matches = expected.fullmatch(text) is not None
        assert made.accepts(text) == matches, text
        assert spelt(table, final, text) == matches, text


@settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.generate])
@given(patterns(), patterns())
def test_products_and_complements_are_those_of_sets(one, other):
    a, b = (automaton(read_pattern(each)) for each in (one, other))
    both, no = intersection(a, b), complement(a)
    for text in random_texts(40):
        assert both.accepts(text) == (a.accepts(text) and b.accepts(text))
        assert no.accepts(text) != a.accepts(text)
    assert contained(both, a)
    assert intersection(a, no).empty
    assert contained(a, b) == intersection(a, complement(b)).empty


@settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.generate])
@given(patterns())
def test_a_pattern_of_a_schema_matches_anywhere_as_in_re(pattern):
    for whole in (pattern, f"^{pattern}", f"{pattern}$", f"^a|{pattern}$"):
        if "\u00e9" in whole:
            continue
        made, expected = automaton(search(read_pattern(whole, ECMA))), re.compile(whole, re.ASCII)
        for text in random_texts(40):
            if "\n" in text:
                continue  # `$` of `re` matches before one
            assert made.accepts(text) == (expected.search(text) is not None), (whole, text)


def test_ecma_and_the_other_dialect_differ_as_they_should():
    lines = "\n\r\u2028\u2029"
    assert not any(automaton(read_pattern(".", ECMA)).accepts(sign) for sign in lines)
    assert [automaton(read_pattern(".")).accepts(sign) for sign in lines] == [
        False,
        True,
        True,
        True,
    ]
    assert automaton(read_pattern(r"\s", ECMA)).accepts("\u00a0")
    assert not automaton(read_pattern(r"\s")).accepts("\u00a0")
    for dialect in ("rust", ECMA):
        assert not automaton(read_pattern(r"\d+", dialect)).accepts("\u0661\u0662")
        assert not automaton(read_pattern(r"\w", dialect)).accepts("\u00e9")
        assert automaton(read_pattern(r"\p{L}\u00e9\x{1F600}", dialect)).accepts(
            "\u00fc\u00e9\U0001f600"
        )
    assert automaton(read_pattern(r"^\uD83D\uDE00$", ECMA)).accepts("\U0001f600")


def test_sets_of_characters():
    some = charset((0x61, 0x7A), (0x30, 0x39), (0x35, 0x62), (0xD700, 0xE000))
    assert some == ((0x30, 0x7A), (0xD700, 0xD7FF), (0xE000, 0xE000))
    assert inverse(inverse(some)) == some
    assert inverse(ANY) == ()
    everything = automaton(Repeat(One(ANY)))
    for low, high in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xFFFF), (0x10000, 0x10FFFF)):
        made = automaton(One(charset((low, high))))
        table, final = byte_table(made)
        for code in (low - 1, low, high, high + 1):
            if 0 <= code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF:
                assert made.accepts(chr(code)) == (low <= code <= high)
                assert spelt(table, final, chr(code)) == (low <= code <= high)
    table, final = byte_table(everything)
    for wrong in (b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff"):
        state = 0
        for byte in wrong:
            state = NOWHERE if state == NOWHERE else int(table[state, byte])
        assert state == NOWHERE


def test_all_texts_of_a_small_language():
    for length, texts in ((3, ["", "a", "ab", "b"]), (2, ["a"])):
        found = texts_of(automaton(Alt(tuple(map(Text, texts)))), 10)
        assert found == sorted(texts), length
    assert texts_of(automaton(Repeat(One(charset((0x61, 0x62))), 0, 2)), 7) is not None
    assert texts_of(automaton(Repeat(One(charset((0x61, 0x62))), 0, 2)), 6) is None
    assert texts_of(automaton(Repeat(Text("a"))), 50) is None
    assert texts_of(automaton(One(ANY)), 50) is None


def test_states_are_no_more_than_needed():
    assert len(automaton(Cat((Repeat(Alt((Text("a"), Text("b")))), Text("abb"))))) == 4
    assert len(automaton(Repeat(One(ANY), 0, 500))) == 501
    assert len(automaton(Alt(tuple(Text(f"w{n}d") for n in range(10))))) == 4
    for pattern in ("(a*)*", "(a|a)*", "(a?){20}a{20}", "((a*)*)*"):
        made = automaton(read_pattern(pattern))
        for length in range(45):
            assert made.accepts("a" * length) == (
                re.fullmatch("a*" if "{" not in pattern else "a{20,40}", "a" * length) is not None
            )


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(" * 10_000 + ")" * 10_000, "nested more than 60 deep"),
        ("a" * 1_000_000, "has 1,000,000 characters, more than 100,000"),
        ("a{9999}{9999}", "a repetition is repeated"),
        ("(a{9999}){9999}", "needs more than 25,000 states; bound what repeats"),
        ("(){999999999}", "needs more than 25,000 states"),
        ("(.*a.{20})", "needs more than 25,000 states"),
        ("a{5,2}", "from 5 to 2 times"),
        ("[z-a]", "a range that is none"),
        ("[", "it ends too early"),
        ("a)", "unbalanced"),
        ("*a", "nothing to repeat before"),
        (r"\bword", "word boundaries"),
        (r"(a)\1", "back references are not regular"),
        ("a(?!b)", "look-around is not regular"),
        (r"[\x00-\x{10FFFF}&&a]", "&&, -- and ~~ of sets"),
        (r"[^\x00-\x{10FFFF}]", "no text matches"),
        (r"\p{Greek}", "anything but a general category"),
        (r"\x{D800}", "is no character"),
        (r"\q", r"an unknown escape \\q"),
        ("(?m)a", "flags other than i and s"),
    ],
    ids=lambda text: text[:20],
)
def test_a_pattern_that_cannot_be_used_is_refused_by_name(pattern, message):
    with pytest.raises(ConfigError, match=message):
        Grammar.regex(pattern).moves  # noqa: B018


def test_the_budget_is_for_whoever_makes_the_automaton():
    with pytest.raises(ConfigError, match=r"more than 100 states.*grammar_states"):
        Grammar.regex("a{0,200}", Budget(100))
    assert len(Grammar.regex("a{0,200}", Budget(300)).moves[0]) == 201


def test_time_is_in_proportion_to_the_size():
    def seconds(count: int) -> float:
        begin = time.process_time()
        automaton(read_pattern(f".{{0,{count}}}"))
        return time.process_time() - begin

    seconds(10)
    assert min(seconds(1600) for _ in range(2)) < 15 * min(seconds(160) for _ in range(3))


def test_every_product_of_small_automata_is_right():
    """All texts of up to four letters, by enumeration."""
    texts = ["".join(t) for n in range(5) for t in itertools.product("ab", repeat=n)]
    made = [automaton(read_pattern(p)) for p in ("(ab)*", "a.*", "(a|b){2,3}", "b*a?")]
    for a, b in itertools.product(made, repeat=2):
        both = intersection(a, b)
        found = [both.accepts(text) for text in texts]
        np.testing.assert_array_equal(found, [a.accepts(t) and b.accepts(t) for t in texts])
