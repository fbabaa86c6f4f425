"""Regular expressions as values, built of sets of characters, texts and automata that are known."""

from dataclasses import dataclass

from sfumato.grammar.charset import CharSet
from sfumato.grammar.dfa import BEGIN, END, Dfa


@dataclass(frozen=True)
class One:
    """One character of a set."""

    chars: CharSet


@dataclass(frozen=True)
class Text:
    """These characters."""

    text: str


@dataclass(frozen=True)
class Cat:
    """One after the other."""

    parts: tuple["Expression", ...]


@dataclass(frozen=True)
class Alt:
    """One or the other."""

    parts: tuple["Expression", ...]


@dataclass(frozen=True)
class Repeat:
    """Again and again; `high` None: without end."""

    part: "Expression"
    low: int = 0
    high: int | None = None


Expression = One | Text | Cat | Alt | Repeat | Dfa
NOTHING = Cat(())  # the empty text
AT_BEGIN, AT_END = One(((BEGIN, BEGIN),)), One(((END, END),))


def optional(part: Expression) -> Expression:
    return Repeat(part, 0, 1)


def size(part: Expression) -> int:
    """How many places an expression has, written out."""
    if isinstance(part, Cat | Alt):
        return sum(map(size, part.parts))
    if isinstance(part, Repeat):
        times = part.low + 1 if part.high is None else part.high
        return max(size(part.part), 1) * times
    return len(part.text) if isinstance(part, Text) else len(part) if isinstance(part, Dfa) else 1
