"""Strings of JSON under schemas: their lengths, patterns and formats."""

from sfumato.errors import ConfigError
from sfumato.grammar.character_classes import ECMA
from sfumato.grammar.charset import ANY
from sfumato.grammar.dfa import Budget
from sfumato.grammar.expressions import Cat, Expression, One, Repeat, Text
from sfumato.grammar.json_placed import WHAT, All, bounds
from sfumato.grammar.json_text import written
from sfumato.grammar.patterns import read_pattern, search
from sfumato.grammar.products import intersection
from sfumato.grammar.regular import automaton

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


def strings(every: All, judged: bool, budget: Budget) -> Expression | None:
    """Of the lengths, patterns and formats that all ask for."""
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
    made = [automaton(part, f"{WHAT} at {every[0].place}", budget) for part in parts]
    whole = made[0]
    for other in made[1:]:
        whole = intersection(whole, other, WHAT, budget)
    named = any({"pattern", "format"} & set(one.schema) for one in every)
    if whole.empty:
        return None
    return Cat((Text('"'), written(whole, named or judged), Text('"')))
