"""Numbers of JSON under schemas: between bounds, and multiples of others."""

from decimal import Decimal
from functools import lru_cache
from math import gcd

from sfumato.grammar.charset import charset
from sfumato.grammar.dfa import BUDGET, Budget, Dfa
from sfumato.grammar.expressions import Alt, Cat, Expression, One, Repeat, Text
from sfumato.grammar.json_keywords import OWN
from sfumato.grammar.json_layout import is_number
from sfumato.grammar.json_placed import WHAT, All
from sfumato.grammar.json_text import DIGITS, PLACES, explored
from sfumato.grammar.products import intersection
from sfumato.grammar.regular import automaton

SCALE = 10**PLACES
DIGIT = One(charset((0x30, 0x39)))
FRACTION = Cat((Text("."), Repeat(DIGIT, 1, PLACES)))


def numbers(every: All, fraction: bool, whole: bool, budget: Budget) -> Expression:
    """Within all bounds and multiples; with a fraction or not, and whole in value or any."""
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
        other = multiples(step, f"{WHAT}: multipleOf", budget)
        found = intersection(automaton(found), other, WHAT, budget)
    return found


@lru_cache(maxsize=64)
def between(low: int | None, high: int | None, fraction: bool) -> Dfa:
    """Numbers whose `SCALE`-fold is from `low` to `high`; with a `fraction`, or whole ones.

    Zero has one sign: what is not between two numbers is not so in any spelling.
    """
    most = 10**DIGITS * SCALE - 1
    low, high = max(-most, -most if low is None else low), min(most, most if high is None else high)
    parts = []
    if high >= 0 and low <= high:
        parts.append(_positive(max(low, 0), high, fraction))
    if low < 0 and low <= high:
        parts.append(Cat((Text("-"), _positive(max(-high, 1), -low, fraction))))
    return automaton(Alt(tuple(parts)))


def _positive(low: int, high: int, fraction: bool) -> Expression:
    (first, least), (last, most) = divmod(low, SCALE), divmod(high, SCALE)
    if not fraction:
        return _whole(first + (least > 0), last)
    if first == last:
        return Cat((Text(str(first)), _behind(least, most)))
    return Alt(
        (
            Cat((Text(str(first)), _behind(least, SCALE - 1))),
            Cat((_whole(first + 1, last - 1), Repeat(FRACTION, 0, 1))),
            Cat((Text(str(last)), _behind(0, most))),
        )
    )


def _behind(low: int, high: int) -> Expression:
    """A point and digits that are from `low` to `high` when filled with zeros; or nothing."""
    if (low, high) == (0, SCALE - 1):
        return Repeat(FRACTION, 0, 1)
    least, most = (str(each).zfill(PLACES) for each in (low, high))
    above = [Text(least[:k]) for k in range(1, PLACES + 1) if not int(least[k:] or 0)]
    below = [Text(most[:k]) for k in range(1, PLACES + 1)]
    digits = [Repeat(DIGIT, 0, PLACES - 1 - k) for k in range(PLACES)]
    over = [Cat((Text(least[:k]), _digit(int(least[k]) + 1, 9), digits[k])) for k in range(PLACES)]
    under = [Cat((Text(most[:k]), _digit(0, int(most[k]) - 1), digits[k])) for k in range(PLACES)]
    both = intersection(automaton(Alt((*above, *over))), automaton(Alt((*below, *under))))
    return Alt((Cat((Text("."), both)), *([Text("")] if low == 0 else [])))


def _digit(low: int, high: int) -> Expression:
    return One(charset((0x30 + low, 0x30 + high))) if low <= high else Alt(())


def _whole(low: int, high: int) -> Expression:
    """Natural numbers from low to high."""
    parts = []
    for length in range(1, DIGITS + 1):
        first, last = max(low, 10 ** (length - 1) if length > 1 else 0), min(high, 10**length - 1)
        if first <= last:
            parts.append(_alike(str(first), str(last)))
    return Alt(tuple(parts))


def _alike(low: str, high: str) -> Expression:
    """Digits of one length, from low to high."""
    if not low:
        return Text("")
    rest = len(low) - 1
    if low == "0" * len(low) and high == "9" * len(high):
        return Repeat(DIGIT, len(low), len(low))
    if low[0] == high[0]:
        return Cat((Text(low[0]), _alike(low[1:], high[1:])))
    return Alt(
        (
            Cat((Text(low[0]), _alike(low[1:], "9" * rest))),
            Cat((_digit(int(low[0]) + 1, int(high[0]) - 1), Repeat(DIGIT, rest, rest))),
            Cat((Text(high[0]), _alike("0" * rest, high[1:]))),
        )
    )


def multiples(of: int, what: str, budget: Budget = BUDGET) -> Dfa:
    """Numbers whose `SCALE`-fold is a multiple of `of`."""

    def divisor(places: int) -> int:
        return of // gcd(of, 10 ** (PLACES - places))

    def moves(state: tuple[str, int, int]) -> dict[str, tuple[str, int, int]]:
        kind, count, rest = state  # digits or places so far; the remainder
        found: dict[str, tuple[str, int, int]] = {}
        if kind == "begin":
            found["-"] = ("sign", 0, 0)
        if kind in ("zero", "digits"):
            found["."] = ("point", 0, rest)
        for digit in range(10):
            if kind in ("begin", "sign"):
                found[str(digit)] = ("digits" if digit else "zero", 1, digit % divisor(0))
            elif kind == "digits" and count < DIGITS:
                found[str(digit)] = ("digits", count + 1, (rest * 10 + digit) % divisor(0))
            elif kind in ("point", "places") and count < PLACES:
                value = (rest * 10 + digit) % divisor(count + 1)
                left = 10 ** (PLACES - count - 1)
                if -value * left % of < left:  # else nothing that follows makes it a multiple
                    found[str(digit)] = ("places", count + 1, value)
        return found

    def ends(state: tuple[str, int, int]) -> bool:
        return state[0] in ("zero", "digits", "places") and state[2] == 0

    return explored(("begin", 0, 0), moves, ends, what, budget)


def scaled(value: int | float, up: bool) -> int:
    """The `SCALE`-fold of a number, rounded up or down; exact for a decimal of few places."""
    whole = Decimal(str(value)) * SCALE
    below = int(whole // 1) if whole >= 0 else -int(-whole // 1) - (whole != int(whole))
    return below + (up and below != whole)
