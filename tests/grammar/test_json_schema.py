"""JSON schemas: every text is valid, and every valid text in the layout is there."""

import json
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from reference_json import valid

from sfumato.errors import ConfigError
from sfumato.grammar.dfa import BEGIN, NOWHERE, Dfa
from sfumato.grammar.grammar import Grammar
from sfumato.grammar.json_schema import schema_automaton

PATTERNS = ("^a", "b$", "^[a-c]+$", r"^\d{2}", "a.b", r"\w\n", '"', "\u00e9", "^(x|yz)*$", r"^\W$")
STRINGS = ("", "a", "b", "abc", "12a", "a\nb", "a\tb", 'say "a"', "x\n", "\u00e9", "\U0001f600",
           "\u0661\u0662", "xyz", "a\\b", "\x01", "a/b", "a b", "\u2028")  # fmt: skip


def numbers(kind: str):
    edges = (
        st.integers(-20, 20)
        if kind == "integer"
        else st.sampled_from([-2.5, -1, 0, 0.25, 3, 7.125])
    )
    return st.fixed_dictionaries(
        {"type": st.just(kind)},
        optional={
            "minimum": edges,
            "maximum": edges,
            "exclusiveMinimum": edges,
            "exclusiveMaximum": edges,
            "multipleOf": st.sampled_from([1, 3, 0.5, 0.01, 7]),
        },
    )


LEAVES = st.one_of(
    numbers("integer"),
    numbers("number"),
    st.fixed_dictionaries(
        {"type": st.just("string")},
        optional={
            "minLength": st.integers(0, 3),
            "maxLength": st.integers(0, 4),
            "pattern": st.sampled_from(PATTERNS),
        },
    ),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["null", "integer"]}]),
    st.lists(st.sampled_from([*STRINGS, 1, 2.5, None, True]), min_size=1, max_size=4).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from(STRINGS).map(lambda value: {"const": value}),
)


def larger(inner):
    lists = st.lists(inner, min_size=1, max_size=3)
    arrays = st.fixed_dictionaries(
        {"type": st.just("array"), "items": inner},
        optional={"minItems": st.integers(0, 2), "maxItems": st.integers(0, 3)},
    )
    unique = st.lists(st.sampled_from(STRINGS[:4]), min_size=1, max_size=3).map(
        lambda values: {"type": "array", "items": {"enum": values}, "uniqueItems": True}
    )
    objects = st.tuples(
        st.dictionaries(st.sampled_from(["a", "b", 'c"', "\u00e9"]), inner, max_size=3),
        st.lists(st.sampled_from(["a", "b", "z"]), max_size=2, unique=True),
    ).map(lambda two: {"type": "object", "properties": two[0], "required": two[1]})
    negated = st.tuples(inner, LEAVES).map(lambda two: {"allOf": [two[0]], "not": two[1]})
    return st.one_of(
        arrays,
        unique,
        objects,
        negated,
        *(lists.map(lambda some, name=name: {name: some}) for name in ("anyOf", "oneOf", "allOf")),
    )


QUICK = settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.generate])
SCHEMAS = st.recursive(LEAVES, larger, max_leaves=5)


def made(schema) -> Dfa | None:
    """None where no value fits."""
    try:
        return schema_automaton(schema)
    except ConfigError as error:
        if "no value fits" in str(error):
            return None
        raise


def sampled(dfa: Dfa, draw: random.Random, longest: int = 60) -> str:
    """A random way through an automaton; after some characters the shortest way out."""
    stops = np.append(dfa.starts[1:], BEGIN)
    shortest = np.where(dfa.final, 0, 10**6)
    for _ in range(len(dfa)):
        ahead = np.where(dfa.table == NOWHERE, 10**6, shortest[dfa.table]).min(1) + 1
        if (ahead >= shortest).all():
            break
        shortest = np.minimum(shortest, ahead)
    state, text = 0, ""
    while True:
        moves = (dfa.table[state] != NOWHERE).nonzero()[0]
        if dfa.final[state] and (not len(moves) or draw.random() < 0.2 or len(text) > longest):
            return text
        if len(text) > longest:
            moves = moves[[shortest[dfa.table[state, moves]].argmin()]]
        letter = draw.choice(list(moves))
        at = draw.choice(list((dfa.labels == letter).nonzero()[0]))
        text += chr(draw.choice([int(dfa.starts[at]), int(stops[at]) - 1]))
        state = int(dfa.table[state, letter])


def instance(schema, draw: random.Random):
    """A value that may be valid: properties in their order, and no others."""
    for name in ("anyOf", "oneOf", "allOf"):
        if name in schema:
            return instance(draw.choice(schema[name]), draw)
    if "enum" in schema:
        return draw.choice(schema["enum"])
    if "const" in schema:
        return schema["const"]
    kinds = schema["type"]
    kind = draw.choice(kinds) if isinstance(kinds, list) else kinds
    if kind == "array":
        return [instance(schema["items"], draw) for _ in range(draw.randint(0, 3))]
    if kind == "object":
        names = [
            *schema["properties"],
            *(n for n in schema["required"] if n not in schema["properties"]),
        ]
        kept = [name for name in names if draw.random() < 0.7]
        return {
            name: instance(schema["properties"][name], draw) if name in schema["properties"] else 1
            for name in kept
        }
    if kind == "integer":
        return draw.randint(-25, 25)
    if kind == "number":
        return draw.choice([draw.randint(-9, 9), draw.randint(-900, 900) / 100, 0.125, 7.125])
    return {"boolean": True, "null": None}.get(kind, draw.choice(STRINGS))


@QUICK
@given(SCHEMAS, st.integers(0, 2**32))
def test_every_text_is_valid(schema, seed):
    dfa, draw = made(schema), random.Random(seed)
    if dfa is None:
        return
    for _ in range(12):
        text = sampled(dfa, draw)
        assert valid(json.loads(text), schema), text


@QUICK
@given(SCHEMAS, st.integers(0, 2**32))
def test_every_valid_value_in_the_layout_is_a_text(schema, seed):
    dfa, draw = made(schema), random.Random(seed)
    for _ in range(12):
        value = instance(schema, draw)
        if isinstance(value, float) and value == int(value):
            value = int(value)  # an integer has no point in the layout
        if not valid(value, schema) or ("allOf" in str(schema) and "{" in json.dumps(value)):
            continue  # merged schemas have an order of their own
        for ascii_ in (False, True):
            text = json.dumps(value, ensure_ascii=ascii_)
            if ascii_ and text != json.dumps(value, ensure_ascii=False):
                continue  # a name of a property, and strings without a pattern, are spelt one way
            assert dfa is not None, text
            assert dfa.accepts(text), text


@pytest.mark.parametrize("pattern", PATTERNS)
def test_strings_of_a_pattern_may_be_escaped(pattern):
    schema = {"type": "string", "pattern": pattern}
    dfa = made(schema)
    for value in STRINGS:
        every = "".join(f"\\u{ord(c):04x}" for c in value if ord(c) < 2**16)
        for text in (json.dumps(value), json.dumps(value, ensure_ascii=False), f'"{every}"'):
            assert dfa.accepts(text) == valid(json.loads(text), schema), text
    assert not dfa.accepts('"\\ud83d"')


def test_patterns_are_those_of_ecma():
    digits, line = ({"type": "string", "pattern": p} for p in (r"^\d{3}$", "^.*$"))
    assert made(digits).accepts('"123"')
    assert not made(digits).accepts('"\u0661\u0662\u0663"')
    assert made(line).accepts('"ab"')
    assert not made(line).accepts('"a\\nb"')
    assert not made(line).accepts('"a\\u2028b"')


def seconds(schema) -> float:
    """What a schema takes from its text to the automaton over bytes."""
    begin = time.process_time()
    assert len(Grammar(schema_automaton(schema)).moves[0])
    return time.process_time() - begin


COMMON = json.loads((Path(__file__).parents[1] / "common_schemas.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", COMMON)
def test_common_schemas_are_small_and_their_texts_valid(name):
    dfa = schema_automaton(COMMON[name])
    assert len(dfa) < 5000
    assert any(seconds(COMMON[name]) < 1 for _ in range(4))  # the quickest: others use the cores
    for seed in range(5):
        text = sampled(dfa, random.Random(seed), 300)
        assert valid(json.loads(text), COMMON[name]), text
