"""What a value of JSON is, and how arrays and objects are written: in one line, with a space after
a comma or a colon at most."""

from collections.abc import Callable, Sequence
from typing import Any

from sfumato.grammar.dfa import Budget, Dfa
from sfumato.grammar.expressions import Alt, Cat, Expression, Repeat, Text, optional
from sfumato.grammar.products import after
from sfumato.grammar.regular import automaton

SPACE = optional(Text(" "))  # where there may be some


def is_number(value: Any) -> bool:
    finite = isinstance(value, int) or (isinstance(value, float) and value - value == 0)
    return finite and not isinstance(value, bool)


PYTHON: dict[str, Callable[[Any], bool]] = {
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: is_number(v) and v == int(v),
    "number": is_number,
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
}


def same(one: Any, other: Any) -> bool:
    """Whether two values are one in JSON, where 1 is 1.0 and not true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return one == other


def sequence_of(item: Expression, low: int, high: int | None) -> Expression:
    if high == 0:
        return Text("[]")
    more = Repeat(
        Cat((Text(","), SPACE, item)), max(low - 1, 0), None if high is None else high - 1
    )
    inside = Cat((item, more))
    return Cat((Text("["), inside if low else optional(inside), Text("]")))


def at_most_once(one: Dfa, others: Dfa) -> Expression:
    """Arrays in which one item is once or not at all."""
    comma = Cat((Text(","), SPACE))
    with_it = Cat((Repeat(Cat((others, comma))), one, Repeat(Cat((comma, others)))))
    without = Cat((others, Repeat(Cat((comma, others)))))
    return Cat((Text("["), optional(Alt((with_it, without))), Text("]")))


def sequence(parts: Sequence[tuple[Expression, bool]], what: str, budget: Budget) -> Expression:
    """Parts in their order with commas between; those that are not required may be absent."""
    comma = Cat((Text(","), SPACE))

    def after_all(later: Sequence[tuple[Expression, bool]]) -> list[Expression]:
        found = [(Cat((comma, part)), needed) for part, needed in later]
        return [part if needed else optional(part) for part, needed in found]

    first = next((n for n, (_, needed) in enumerate(parts) if needed), None)
    if first is not None:
        before = [optional(Cat((part, comma))) for part, _ in parts[:first]]
        return Cat((*before, parts[first][0], *after_all(parts[first + 1 :])))
    if not parts:
        return Text("")
    whole = automaton(Cat(tuple(after_all(parts))), what, budget)
    return optional(after(whole, ", "))
