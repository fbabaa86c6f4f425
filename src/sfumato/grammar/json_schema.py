"""From a JSON schema to the texts of JSON that are valid under it.

Every text is valid; not every valid text is among them. Properties come in the schema's order and
no others are written, whitespace is one space after a comma or a colon at most, numbers have
bounded lengths, and a reference unfolds `DEPTH` times. docs/grammar.md has a table of keywords; a
keyword that is not in it is refused by name, because one that is passed over would make texts that
only look valid.

Schemas that hold together (`allOf`, `$ref` and what stands beside them) are compiled as one list.
What must not hold (`not`, and all but one of `oneOf`) is compiled together with them too, and taken
away: there, `judged`, everything counts that can be written.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from sfumato.errors import ConfigError
from sfumato.grammar.charset import ANY
from sfumato.grammar.dfa import BUDGET, Budget, Dfa
from sfumato.grammar.json_layout import (
    PYTHON,
    SPACE,
    at_most_once,
    is_number,
    same,
    sequence,
    sequence_of,
)
from sfumato.grammar.json_numbers import SCALE, between, multiples, scaled
from sfumato.grammar.json_placed import All, Placed, both, bounds, either, fields_of, flag
from sfumato.grammar.json_text import words, written
from sfumato.grammar.patterns import ECMA, read_pattern, search
from sfumato.grammar.products import complement, intersection, texts_of
from sfumato.grammar.regular import Alt, Cat, Expression, One, Repeat, Text, automaton
from sfumato.storage.files import Remedy
from sfumato.storage.structured import parse_json

DEPTH = 3  # unfoldings of one reference within itself


DEEPEST = 32  # schemas within schemas


MOST_SCHEMAS = 20_000  # that are looked at, with every unfolding


MOST_UNIQUE = 10  # different items of an array whose items are unique


CLOCK = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(Z|[+-](0\d|1[0-4]):[0-5]\d)"


DATE = (
    r"[1-9]\d{3}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])"
    r"|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
)


FORMATS = {
    "date": DATE,
    "time": CLOCK,
    "date-time": f"{DATE}T{CLOCK}",
    "uuid": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}


SAYS_NOTHING = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
    | {"$schema", "$id", "$comment", "$defs", "definitions", "discriminator"}
)


OWN = {  # the keywords of each type that are honoured
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "boolean": set(),
    "null": set(),
    "array": {"items", "minItems", "maxItems", "uniqueItems"},
    "object": {"properties", "required", "additionalProperties"},
}


JOINED = {"$ref", "allOf", "anyOf", "oneOf", "not", "enum", "const", "type"}


HONOURED = frozenset(JOINED.union(*OWN.values()))


SCALARS = ("string", "number", "boolean", "null")


def schema_automaton(schema: Mapping[str, Any] | bool | str, budget: Budget = BUDGET) -> Dfa:
    """The texts that are written for a schema; raises where there are none."""
    if isinstance(schema, str):
        schema = parse_json(schema, "the JSON schema", Remedy(ConfigError, "mend it"))
    compiler = _Compiler(schema, budget)
    found = compiler.value((Placed(schema, "#"),))
    made = None if found is None else automaton(found, compiler.what, budget)
    if made is None or made.empty:
        raise ConfigError(
            f"the JSON schema refers to itself without end, or no value fits it; make a property "
            f"optional: references unfold {DEPTH} times"
        )
    return made


@dataclass
class _Compiler:
    """Schemas to expressions; None where no text of bounded depth fits."""

    root: Any
    budget: Budget
    what: str = "the JSON schema"
    judged: bool = False
    depth: int = 0
    count: list[int] = field(default_factory=lambda: [0])

    def value(self, every: All) -> Expression | None:
        """The texts that are valid under all of some schemas."""
        self.count[0] += 1
        if self.count[0] > MOST_SCHEMAS:
            raise every[0].refuse(
                f"more than {MOST_SCHEMAS:,} schemas with all unfoldings of references; refer to "
                "itself in fewer places"
            )
        if self.depth > DEEPEST:
            raise every[0].refuse(f"nested more than {DEEPEST} deep")
        flat = self.flat(every)
        if flat is None:
            return None
        for number, one in enumerate(flat):
            others = (*flat[:number], *flat[number + 1 :])
            for name, make in (("anyOf", self.any_of), ("oneOf", self.one_of), ("not", self.no)):
                if name in one.schema:
                    return make((*others, one.without(name)), one)
        for number, one in enumerate(flat):
            if "enum" in one.schema or "const" in one.schema:
                others = (*flat[:number], one.without("enum", "const"), *flat[number + 1 :])
                return self.listed(others, one)
        return self.typed(flat)

    def inner(self, every: All) -> Expression | None:
        return replace(self, depth=self.depth + 1).value(every)

    def flat(self, every: All) -> All | None:
        """Without references and allOf; None where one of them is false."""
        found: list[Placed] = []
        pending = list(every)
        while pending:
            one = pending.pop(0)
            if one.schema is False:
                return None
            if one.schema is True:
                one = replace(one, schema={})
            if not isinstance(one.schema, Mapping):
                raise one.refuse(f"expected an object of keywords, got {str(one.schema)[:60]!r}")
            names = set(one.schema) - SAYS_NOTHING
            odd = [name for name in names if not isinstance(name, str)]
            if odd:
                raise one.refuse(f"keywords are texts, got {odd[0]!r}")
            unknown = sorted(names - HONOURED)
            if unknown:
                raise one.refuse(f"cannot promise '{unknown[0]}'; leave it out, or use --regex")
            one = replace(
                one, schema={name: one.schema[name] for name in one.schema if name in names}
            )
            if "$ref" in names:
                target = self.target(one)
                if target is None:
                    return None
                pending.insert(0, target)
                one = one.without("$ref")
            if "allOf" in names:
                pending = one.listed("allOf") + pending
                one = one.without("allOf")
            found.append(one)
            if len(found) > MOST_SCHEMAS:
                raise one.refuse("it refers to itself without end")
        return tuple(found)

    def target(self, one: Placed) -> Placed | None:
        """What a reference refers to; None where it has been unfolded often enough."""
        name = one.schema["$ref"]
        if not isinstance(name, str) or not name.startswith("#"):
            raise one.refuse(f"$ref must start with '#', within the schema, got {name!r}")
        if one.unfolded.count(name) >= DEPTH:
            if self.judged:
                raise one.refuse(
                    f"{name} refers to itself, and stands in a oneOf or not, where every text "
                    "counts; use anyOf"
                )
            return None
        target = self.root
        for part in name.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and part.isdecimal() and int(part) < len(target):
                target = target[int(part)]
            elif isinstance(target, Mapping) and part in target:
                target = target[part]
            else:
                raise one.refuse(f"$ref {name!r} leads nowhere; there is no {part!r}")
        return Placed(target, name, (*one.unfolded, name))

    # --- schemas of schemas ---

    def any_of(self, rest: All, one: Placed) -> Expression | None:
        return either([self.inner((*rest, branch)) for branch in one.listed("anyOf")])

    def one_of(self, rest: All, one: Placed) -> Expression | None:
        branches, parts = one.listed("oneOf"), []
        for number, branch in enumerate(branches):
            own = self.inner((*rest, branch))
            others = branches[:number] + branches[number + 1 :]
            parts.append(self.but(own, [(*rest, branch, other) for other in others]))
        return either(parts)

    def no(self, rest: All, one: Placed) -> Expression | None:
        return self.but(self.inner(rest), [(*rest, one.at("not"))])

    def but(self, own: Expression | None, excluded: Sequence[All]) -> Expression | None:
        """Without what is valid under some lists too, which have all that `own` is made of."""
        if own is None:
            return None
        judge = replace(self, judged=True)
        taken = [found for every in excluded if (found := judge.inner(every)) is not None]
        if not taken:
            return own
        whole = automaton(own, self.what, self.budget)
        away = complement(automaton(Alt(tuple(taken)), self.what, self.budget))
        return intersection(whole, away, self.what, self.budget)

    def listed(self, rest: All, one: Placed) -> Expression | None:
        """Those values of `enum` and `const` that are valid under the rest."""
        values = one.schema.get("enum", [one.schema.get("const")])
        if not isinstance(values, list) or not values:
            raise one.refuse("enum must be a list of values")
        try:
            "".join(
                json.dumps(value, ensure_ascii=False, allow_nan=False) for value in values
            ).encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise one.refuse(f"enum and const hold values of JSON: {error}") from None
        if "const" in one.schema:
            values = [value for value in values if same(value, one.schema["const"])]
        for name in ("enum", "const"):
            for other in rest:
                if name in other.schema:
                    given = other.schema[name]
                    allowed = given if name == "enum" and isinstance(given, list) else [given]
                    values = [v for v in values if any(same(v, each) for each in allowed)]
        rest = tuple(other.without("enum", "const") for other in rest)
        kinds = self.kinds(rest)
        if kinds is not None:
            values = [value for value in values if any(PYTHON[kind](value) for kind in kinds)]
        texts = [json.dumps(value, ensure_ascii=False) for value in values]
        if not texts:
            return None
        own = words(texts, self.what, self.budget)
        asking = [name for other in rest for name in other.schema if name != "type"]
        if not asking:
            return own
        if any(isinstance(value, dict | list) for value in values):
            raise one.refuse(
                f"cannot promise '{asking[0]}' beside enum or const of arrays and objects"
            )
        found = replace(self, judged=True).inner(rest)
        if found is None:
            return None
        return intersection(own, automaton(found, self.what, self.budget), self.what, self.budget)

    # --- values by their type ---

    def kinds(self, every: All) -> list[str] | None:
        """The types that all allow; None: they say nothing of it."""
        found: list[str] | None = None
        for one in every:
            if "type" not in one.schema:
                continue
            own = one.schema["type"]
            own = [own] if isinstance(own, str) else own
            if not isinstance(own, list) or not all(isinstance(kind, str) for kind in own):
                raise one.refuse(f"unknown type {own!r}; known: {', '.join(OWN)}")
            if not own or not set(own) <= set(OWN):
                raise one.refuse(f"unknown type {own!r}; known: {', '.join(OWN)}")
            found = own if found is None else both(found, own)
        return found

    def typed(self, every: All) -> Expression | None:
        kinds = self.kinds(every)
        if kinds is None:
            names = {name for one in every for name in one.schema}
            implied = [kind for kind in OWN if kind != "integer" and names & OWN[kind]]
            if self.judged:
                implied = [*SCALARS, *(kind for kind in implied if kind not in SCALARS)]
            kinds = implied or list(SCALARS)
        elif "number" in kinds:
            kinds = [kind for kind in kinds if kind != "integer"]
        makers = {
            "string": self.string,
            "integer": lambda given: self.number(given, self.judged, True),
            "number": lambda given: self.number(given, True, False),
            "boolean": lambda _: Alt((Text("true"), Text("false"))),
            "null": lambda _: Text("null"),
            "array": self.array,
            "object": self.object,
        }
        return either([makers[kind](every) for kind in kinds])

    def string(self, every: All) -> Expression | None:
        low, high = bounds(every, "minLength", "maxLength")
        parts: list[Expression] = []
        for one in every:
            if "pattern" in one.schema:
                if not isinstance(one.schema["pattern"], str):
                    raise one.refuse(f"pattern must be a text, got {one.schema['pattern']!r}")
                try:
                    parts.append(search(read_pattern(one.schema["pattern"], ECMA)))
                except ConfigError as error:
                    raise one.refuse(str(error)) from None
            if "format" in one.schema:
                if one.schema["format"] not in list(FORMATS):
                    raise one.refuse(
                        f"unknown format {one.schema['format']!r}; known: {', '.join(FORMATS)}"
                    )
                parts.append(read_pattern(FORMATS[one.schema["format"]], ECMA))
        if high is not None and high < low:
            return None
        if not parts or low or high is not None:
            parts.append(Repeat(One(ANY), low, high))
        made = [automaton(part, f"{self.what} at {every[0].place}", self.budget) for part in parts]
        whole = made[0]
        for other in made[1:]:
            whole = intersection(whole, other, self.what, self.budget)
        named = any({"pattern", "format"} & set(one.schema) for one in every)
        if whole.empty:
            return None
        return Cat((Text('"'), written(whole, named or self.judged), Text('"')))

    def number(self, every: All, fraction: bool, whole: bool) -> Expression | None:
        low: int | None = None
        high: int | None = None
        steps = [SCALE] if whole and fraction else []
        for one in every:
            for name in sorted(OWN["number"] - {"multipleOf"}):
                up = name.endswith("inimum")
                if name not in one.schema:
                    continue
                given = one.schema[name]
                if not is_number(given):
                    raise one.refuse(f"{name} must be a number, got {given!r}")
                edge = scaled(given, up)
                if name.startswith("exclusive") and edge == Decimal(str(given)) * SCALE:
                    edge += 1 if up else -1
                if up:
                    low = edge if low is None else max(low, edge)
                else:
                    high = edge if high is None else min(high, edge)
            if "multipleOf" in one.schema:
                given = one.schema["multipleOf"]
                if not is_number(given) or given <= 0:
                    raise one.refuse(f"multipleOf must be a number above 0, got {given!r}")
                if scaled(given, True) != scaled(given, False):
                    raise one.refuse(f"multipleOf {given!r} has more than 8 decimal places")
                steps.append(scaled(given, True))
        found: Expression = between(low, high, fraction)
        for step in steps:
            other = multiples(step, f"{self.what}: multipleOf", self.budget)
            found = intersection(automaton(found), other, self.what, self.budget)
        return found

    def array(self, every: All) -> Expression | None:
        low, high = bounds(every, "minItems", "maxItems")
        if high is not None and low > high:
            return None
        items = tuple(one.at("items") for one in every if "items" in one.schema)
        item = None
        if high != 0:
            item = self.inner(items or (Placed({}, f"{every[0].place}/items"),))
        if any(flag(one, "uniqueItems") for one in every) and item is not None:
            return self.unique(every[0], item, low, high)
        if item is None:
            return Text("[]") if low == 0 else None
        return sequence_of(item, low, high)

    def unique(
        self, one: Placed, item: Expression, low: int, high: int | None
    ) -> Expression | None:
        """Arrays of different items, of a few."""
        found = texts_of(automaton(item, self.what, self.budget), MOST_UNIQUE)
        if found is None:
            raise one.refuse(
                f"cannot promise 'uniqueItems' of more than {MOST_UNIQUE} different items; give "
                "items an enum"
            )
        groups: list[list[str]] = []
        for text in found:
            alike = [g for g in groups if same(json.loads(g[0]), json.loads(text))]
            if alike:
                alike[0].append(text)
            else:
                groups.append([text])
        high = len(groups) if high is None else min(high, len(groups))
        if low > high:
            return None
        whole = automaton(sequence_of(words(found), low, high), self.what, self.budget)
        for group in groups:
            others = words([text for text in found if text not in group])
            once = automaton(at_most_once(words(group), others), self.what, self.budget)
            whole = intersection(whole, once, self.what, self.budget)
        return whole

    def object(self, every: All) -> Expression | None:
        required: list[str] = []
        names: dict[str, None] = {}
        for one in every:
            fields, own = one.schema.get("properties", {}), one.schema.get("required", [])
            if not isinstance(fields, Mapping) or not all(isinstance(n, str) for n in fields):
                raise one.refuse("properties must be an object of schemas, named by texts")
            if not isinstance(own, list) or not all(isinstance(name, str) for name in own):
                raise one.refuse(f"required must be a list of names, got {str(own)[:60]}")
            names |= dict.fromkeys(fields)
            required += own
        if not any({"properties", "required"} & set(one.schema) for one in every):
            raise every[0].refuse("no properties; say what the object holds")
        names |= dict.fromkeys(required)
        made: list[tuple[Expression, bool]] = []
        for name in names:
            value = self.inner(fields_of(every, name))
            if value is not None:
                key = Text(json.dumps(name, ensure_ascii=False) + ":")
                made.append((Cat((key, SPACE, value)), name in required))
            elif name in required:
                return None
        return Cat((Text("{"), sequence(made, self.what, self.budget), Text("}")))
