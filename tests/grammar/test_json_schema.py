"""JSON schemas: every text is valid, and every valid text in the layout is there."""

import json
import random
import re
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
from sfumato.grammar.json_keywords import HONOURED, SAYS_NOTHING
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


# ruff: noqa: E501
CASES = [
    ({"oneOf": [{"type": "integer"}, {"type": "number", "minimum": 2}]}, ["1", "2.5"], ["2", "3.0"]),
    (
        {
            "oneOf": [
                {"type": "object", "properties": {"a": {"type": "null"}}},
                {"type": "object", "properties": {"a": {}, "b": {"const": 1}}, "required": ["a", "b"]},
            ]
        },
        ["{}", '{"a":1,"b":1}'],
        ['{"a":null,"b":1}'],
    ),
    ({"type": "array", "items": {"type": "boolean"}, "uniqueItems": True}, ["[true, false]"], ["[true,true]"]),
    ({"allOf": [{"type": "integer"}, {"minimum": 2}, {"maximum": 3}]}, ["2", "3"], ["1", "4", "2.0"]),
    ({"type": ["integer", "string"], "not": {"enum": [1, "a"]}}, ["2", '"b"'], ["1", '"a"', '"\\u0061"']),
    ({"type": "object", "required": ["x"]}, ['{"x":1}', '{"x": null}'], ["{}"]),
    ({"type": "object", "properties": {"x": False, "y": True}}, ["{}", '{"y":"a"}'], ['{"x":1}']),
    ({"$ref": "#/$defs/n", "maximum": 4, "$defs": {"n": {"type": "integer", "minimum": 3}}}, ["3", "4"], ["2", "5"]),
    ({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, ["0.00000001", "1", "1.0"], ["0", "1.01", "0.0"]),
    (True, ["1", '"a"', "null", "true"], []),
    ({"type": "string", "minLength": 1, "pattern": "^a*$"}, ['"a"'], ['""', '"b"']),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=lambda case: str(case)[:40])
def test_a_keyword_holds(schema, good, bad):
    dfa = made(schema)
    for text in (*good, *bad):
        assert dfa.accepts(text) == (text in good), text
    assert all(valid(json.loads(text), schema) for text in good)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (False, "no value fits"),
        ({"not": {}}, "no value fits"),
        ({1: 2}, "keywords are texts, got 1"),
        ({"type": "object", "properties": {2: {}}}, "named by texts"),
        ({"patternProperties": {}}, "cannot promise 'patternProperties'"),
        ({"type": "string", "pattern": "("}, "at #: cannot use the regular expression"),
        ({"type": "integer", "multipleOf": 0}, "multipleOf must be a number above 0"),
        ({"type": "number", "multipleOf": 1e-9}, "more than 8 decimal places"),
        ({"type": "number", "minimum": "1"}, "minimum must be a number"),
        ({"type": "number", "minimum": float("nan")}, "minimum must be a number"),
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "give items an enum"),
        ({"enum": [f"word {n}" for n in range(50_000)]}, "needs more than 25,000 states"),
        ({"type": "string", "maxLength": 10**9}, "needs more than 25,000 states"),
        ({"$ref": "#"}, "refers to itself without end"),
        ({"allOf": [{"$ref": "#"}]}, "refers to itself without end"),
        ({"not": {"$ref": "#"}}, "refers to itself"),
        ({"const": float("nan")}, "hold values of JSON"),
        ({"const": {1, 2}}, "hold values of JSON"),
        ({"const": "\ud800"}, "hold values of JSON"),
        ("[" * 100_000, "nested deeper than|not JSON"),
        ({"type": "object", "properties": {"a": {"oneOf": [{"$ref": "#"}, {"type": "null"}]}}}, "use anyOf"),
    ],
    ids=lambda case: str(case)[:40],
)  # fmt: skip
def test_a_schema_that_cannot_be_used_is_refused_by_name(schema, message):
    with pytest.raises(ConfigError, match=message):
        Grammar.json_schema(schema).moves  # noqa: B018


def test_schemas_that_are_nested_or_branch_without_end_are_refused():
    deep = {"type": "null"}
    for _ in range(3000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(ConfigError, match="nested more than"):
        Grammar.json_schema(deep)
    names = [f"n{n}" for n in range(12)]
    refers = {"type": "object", "properties": {n: {"$ref": f"#/$defs/{n}"} for n in names}}
    with pytest.raises(ConfigError, match=r"schemas with all unfoldings|more than 25,000|nested"):
        Grammar.json_schema({**refers, "$defs": dict.fromkeys(names, refers)})


def test_the_table_of_keywords_is_what_holds():
    page = (Path(__file__).parents[2] / "docs" / "grammar.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?`) \| (holds|says nothing|refused)", page, re.MULTILINE)
    said = {name: kind for names, kind in rows for name in re.findall("`([^`]+)`", names)}
    assert {name for name, kind in said.items() if kind == "holds"} == HONOURED
    assert {name for name, kind in said.items() if kind == "says nothing"} == SAYS_NOTHING
    refused = [name for name, kind in said.items() if kind == "refused"]
    assert len(refused) > 10
    for name in refused:
        with pytest.raises(ConfigError, match=f"cannot promise '{re.escape(name)}'"):
            schema_automaton({"type": "object", name: {}})
    for name in SAYS_NOTHING:
        assert schema_automaton({"type": "null", name: {}}).accepts("null")


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
