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
from typing import Any

from sfumato.errors import ConfigError
from sfumato.grammar.dfa import BUDGET, Budget, Dfa
from sfumato.grammar.expressions import Alt, Expression, Text
from sfumato.grammar.json_containers import arrays, objects
from sfumato.grammar.json_keywords import OWN, SCALARS, types_of
from sfumato.grammar.json_layout import PYTHON, same
from sfumato.grammar.json_numbers import numbers
from sfumato.grammar.json_placed import WHAT, All, Placed, either
from sfumato.grammar.json_references import DEPTH, MOST_SCHEMAS, written_out
from sfumato.grammar.json_strings import strings
from sfumato.grammar.json_text import words
from sfumato.grammar.products import complement, intersection
from sfumato.grammar.regular import automaton
from sfumato.storage.files import Remedy
from sfumato.storage.structured import parse_json

DEEPEST = 32  # schemas within schemas


def schema_automaton(schema: Mapping[str, Any] | bool | str, budget: Budget = BUDGET) -> Dfa:
    """The texts that are written for a schema; raises where there are none."""
    if isinstance(schema, str):
        schema = parse_json(schema, WHAT, Remedy(ConfigError, "mend it"))
    compiler = _Compiler(schema, budget)
    found = compiler.value((Placed(schema, "#"),))
    made = None if found is None else automaton(found, WHAT, budget)
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
        flat = written_out(every, self.root, self.judged)
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
        whole = automaton(own, WHAT, self.budget)
        away = complement(automaton(Alt(tuple(taken)), WHAT, self.budget))
        return intersection(whole, away, WHAT, self.budget)

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
        kinds = types_of(rest)
        if kinds is not None:
            values = [value for value in values if any(PYTHON[kind](value) for kind in kinds)]
        texts = [json.dumps(value, ensure_ascii=False) for value in values]
        if not texts:
            return None
        own = words(texts, WHAT, self.budget)
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
        return intersection(own, automaton(found, WHAT, self.budget), WHAT, self.budget)

    def typed(self, every: All) -> Expression | None:
        """Values of each type that all schemas allow."""
        kinds = types_of(every)
        if kinds is None:
            names = {name for one in every for name in one.schema}
            implied = [kind for kind in OWN if kind != "integer" and names & OWN[kind]]
            if self.judged:
                implied = [*SCALARS, *(kind for kind in implied if kind not in SCALARS)]
            kinds = implied or list(SCALARS)
        elif "number" in kinds:
            kinds = [kind for kind in kinds if kind != "integer"]
        return either([self.of_type(kind, every) for kind in kinds])

    def of_type(self, kind: str, every: All) -> Expression | None:
        match kind:
            case "string":
                return strings(every, self.judged, self.budget)
            case "integer":
                return numbers(every, self.judged, True, self.budget)
            case "number":
                return numbers(every, True, False, self.budget)
            case "boolean":
                return Alt((Text("true"), Text("false")))
            case "null":
                return Text("null")
            case "array":
                return arrays(every, self.inner, self.budget)
            case _:
                return objects(every, self.inner, self.budget)
