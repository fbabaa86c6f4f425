"""Arrays and objects of JSON under schemas, made of the values that they hold.

How those are made is given: `inner` is what all that schemas say of a value becomes.
"""

import json
from collections.abc import Callable, Mapping

from sfumato.grammar.dfa import Budget
from sfumato.grammar.expressions import Cat, Expression, Text
from sfumato.grammar.json_layout import SPACE, at_most_once, same, sequence, sequence_of
from sfumato.grammar.json_placed import WHAT, All, Placed, bounds, fields_of, flag
from sfumato.grammar.json_text import words
from sfumato.grammar.products import intersection, texts_of
from sfumato.grammar.regular import automaton

MOST_UNIQUE = 10  # different items of an array whose items are unique

Inner = Callable[[All], Expression | None]


def arrays(every: All, inner: Inner, budget: Budget) -> Expression | None:
    low, high = bounds(every, "minItems", "maxItems")
    if high is not None and low > high:
        return None
    items = tuple(one.at("items") for one in every if "items" in one.schema)
    item = None
    if high != 0:
        item = inner(items or (Placed({}, f"{every[0].place}/items"),))
    if any(flag(one, "uniqueItems") for one in every) and item is not None:
        return unique(every[0], item, low, high, budget)
    if item is None:
        return Text("[]") if low == 0 else None
    return sequence_of(item, low, high)


def unique(
    one: Placed, item: Expression, low: int, high: int | None, budget: Budget
) -> Expression | None:
    """Arrays of different items, of a few."""
    found = texts_of(automaton(item, WHAT, budget), MOST_UNIQUE)
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
    whole = automaton(sequence_of(words(found), low, high), WHAT, budget)
    for group in groups:
        others = words([text for text in found if text not in group])
        once = automaton(at_most_once(words(group), others), WHAT, budget)
        whole = intersection(whole, once, WHAT, budget)
    return whole


def objects(every: All, inner: Inner, budget: Budget) -> Expression | None:
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
        value = inner(fields_of(every, name))
        if value is not None:
            key = Text(json.dumps(name, ensure_ascii=False) + ":")
            made.append((Cat((key, SPACE, value)), name in required))
        elif name in required:
            return None
    return Cat((Text("{"), sequence(made, WHAT, budget), Text("}")))
