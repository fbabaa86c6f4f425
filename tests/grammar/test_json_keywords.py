"""Every keyword of a JSON schema holds, or is refused by name."""

import json
import re
from pathlib import Path

import pytest
from reference_json import valid

from sfumato.errors import ConfigError
from sfumato.grammar.dfa import NOWHERE
from sfumato.grammar.grammar import Grammar
from sfumato.grammar.json_keywords import HONOURED, SAYS_NOTHING
from sfumato.grammar.json_schema import schema_automaton


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
    dfa = schema_automaton(schema)
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
