"""Regular expressions as values, and the automata that accept what they say.

An expression is built of sets of characters, texts, and automata that are known already. It
becomes an automaton without empty moves whose states are places in the expression (Glushkov, 1961);
where a place and a character leave no choice, which is nearly everywhere, that is deterministic
as it is, and only what is not goes through the subset construction.

Letters: A letters (classes of characters that an automaton does not tell apart).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

import numpy as np

from sfumato.grammar.charset import CharSet, letters_of
from sfumato.grammar.dfa import BEGIN, BUDGET, END, NOWHERE, Bools, Budget, Dfa, Ints, common, over
from sfumato.grammar.minimal import smallest

# --- expressions ---


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


# --- from an expression to an automaton ---


@dataclass(frozen=True)
class _Piece:
    """A part of an expression that has been laid out: leaves by their numbers."""

    nullable: bool
    first: tuple[int, ...]
    last: tuple[int, ...]


@dataclass
class _Layout:
    """The leaves of an expression one after another, and which may follow which."""

    leaves: list[Dfa] = field(default_factory=list)
    follow: list[dict[int, None]] = field(default_factory=list)
    known: dict[Any, Dfa] = field(default_factory=dict)

    def leaf(self, dfa: Dfa) -> _Piece:
        self.leaves.append(dfa)
        self.follow.append({})
        number = (len(self.leaves) - 1,)
        return _Piece(bool(dfa.final[0]), number, number)

    def joined(self, one: _Piece, other: _Piece) -> _Piece:
        for leaf in one.last:
            self.follow[leaf].update(dict.fromkeys(other.first))
        return _Piece(
            one.nullable and other.nullable,
            one.first + other.first if one.nullable else one.first,
            one.last + other.last if other.nullable else other.last,
        )

    def piece(self, part: Expression) -> _Piece:
        if isinstance(part, Dfa):
            return self.leaf(part) if not part.empty else _Piece(False, (), ())
        if isinstance(part, One | Text):
            if part not in self.known:
                self.known[part] = _one(part.chars) if isinstance(part, One) else _chain(part.text)
            return self.piece(self.known[part])
        if isinstance(part, Cat):
            return reduce(self.joined, map(self.piece, part.parts), _Piece(True, (), ()))
        if isinstance(part, Alt):
            pieces = [self.piece(one) for one in part.parts]
            return _Piece(
                any(one.nullable for one in pieces),
                tuple(leaf for one in pieces for leaf in one.first),
                tuple(leaf for one in pieces for leaf in one.last),
            )
        return self.repeated(part)

    def repeated(self, part: Repeat) -> _Piece:
        """x{2,4} is x x (x (x)?)?, so that what may follow a place is what is next to it."""
        copies: list[_Piece] = [self.piece(part.part) for _ in range(part.low)]
        tail = _Piece(True, (), ())
        if part.high is None:
            inner = self.piece(part.part)
            self.joined(inner, inner)
            tail = _Piece(True, inner.first, inner.last)
        else:
            for _ in range(part.high - part.low):
                tail = self.joined(self.piece(part.part), tail)
                tail = _Piece(True, tail.first, tail.last)
        return reduce(self.joined, [*copies, tail], _Piece(True, (), ()))


def _one(chars: CharSet) -> Dfa:
    return _of_sets([chars], [(0, 0, 1)], 2, [1])


def _chain(text: str) -> Dfa:
    letters = sorted(set(text))
    moves = [(n, letters.index(one), n + 1) for n, one in enumerate(text)]
    return _of_sets([letters_of(one) for one in letters], moves, len(text) + 1, [len(text)])


def _of_sets(
    sets: Sequence[CharSet], moves: Sequence[tuple[int, int, int]], count: int, ends: Sequence[int]
) -> Dfa:
    """From disjoint sets, and moves (state, set, next state)."""
    cuts = sorted({0, BEGIN, *(e for one in sets for low, high in one for e in (low, high + 1))})
    starts = np.array(cuts)
    labels = np.full(len(starts), NOWHERE)
    for number, one in enumerate(sets):
        for low, high in one:
            labels[np.searchsorted(starts, low) : np.searchsorted(starts, high + 1)] = number
    table = np.full((count, len(sets)), NOWHERE)
    for state, letter, ahead in moves:
        table[state, letter] = ahead
    return Dfa(starts, labels, table, np.isin(np.arange(count), ends))


def automaton(part: Expression, what: str = "the grammar", budget: Budget = BUDGET) -> Dfa:
    """The smallest automaton of an expression, or one that is nearly so."""
    budget.check_places(size(part), what)
    layout = _Layout()
    root = layout.leaf(_chain(""))  # before everything
    whole = layout.joined(root, layout.piece(part))
    starts, letters, maps = common(layout.leaves)
    sizes = np.array([len(leaf) for leaf in layout.leaves])
    offsets = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    rows = [
        np.where((moved := over(leaf, column)) == NOWHERE, NOWHERE, moved + offset)
        for leaf, column, offset in zip(layout.leaves, maps, offsets, strict=True)
    ]
    subsets = _Subsets(np.vstack(rows), np.zeros(int(sizes.sum()), dtype=np.bool_), what, budget)
    for number, leaf in enumerate(layout.leaves):
        finals = offsets[number] + leaf.final.nonzero()[0]
        if number in whole.last:
            subsets.final[finals] = True
        subsets.follow(finals, offsets[list(layout.follow[number])])
    special = [_letter(starts, letters, code) for code in (BEGIN, END)]
    table, final = subsets.determined(special)
    for letter in special:
        if letter != NOWHERE:
            table[:, letter] = NOWHERE
    labels = np.where(starts >= BEGIN, NOWHERE, letters)
    made = smallest(Dfa(starts, labels, table, final))
    budget.check(len(made), what)
    return made


def _letter(starts: Ints, letters: Ints, code: int) -> int:
    """Of the sign for ^ or $, if it has a letter of its own."""
    at = int(np.searchsorted(starts, code))
    return int(letters[at]) if at < len(starts) and starts[at] == code else NOWHERE


class _Subsets:
    """The subset construction, of which most subsets have one member: a row is known for those."""

    def __init__(self, table: Ints, final: Bools, what: str, budget: Budget):
        self.table, self.final, self.what, self.budget = table, final, what, budget
        self.members: list[tuple[int, ...]] = []  # of the subset len(table) + n
        self.numbers: dict[tuple[int, ...], int] = {}
        self.known: dict[bytes, Ints] = {}

    def number(self, members: tuple[int, ...]) -> int:
        if len(members) == 1:
            return members[0]
        found = self.numbers.get(members)
        if found is None:
            found = self.numbers[members] = len(self.table) + len(self.members)
            self.members.append(members)
            self.budget.check(len(self.members), self.what)
        return found

    def spread(self, cell: int) -> tuple[int, ...]:
        return (cell,) if cell < len(self.table) else self.members[cell - len(self.table)]

    def united(self, rows: Ints) -> Ints:
        """The row of all of some rows [n, A] together."""
        top = rows.max(0)
        if len(rows) == 1:
            return top
        mixed = ((rows != NOWHERE) & (rows != top)).any(0).nonzero()[0]
        if not len(mixed):
            return top
        known: dict[bytes, int] = {}
        for letter in mixed:
            column = rows[:, letter]
            key = column.tobytes()
            if key not in known:
                cells = {int(cell) for cell in column if cell != NOWHERE}
                members = sorted({state for cell in cells for state in self.spread(cell)})
                known[key] = self.number(tuple(members))
            top[letter] = known[key]
        return top

    def follow(self, finals: Ints, starts: Ints) -> None:
        """From the final states of a leaf, go on as from the first of those that follow it."""
        if not len(starts) or not len(finals):
            return
        key = starts.tobytes()
        # the rows of first states change only when their own leaf is final there, at the end
        ahead = self.known.get(key)
        if ahead is None:
            ahead = self.known[key] = self.united(self._first(starts))
        own = self.table[finals]
        clash = ((own != NOWHERE) & (ahead != NOWHERE) & (own != ahead)).any(1)
        self.table[finals] = np.maximum(own, ahead)
        for state, row in zip(finals[clash], own[clash], strict=True):
            self.table[state] = self.united(np.stack((row, ahead)))

    def _first(self, starts: Ints) -> Ints:
        return self.rows_before[starts]

    @cached_property
    def rows_before(self) -> Ints:
        """The rows of the leaves alone."""
        return self.table.copy()

    def determined(self, special: Sequence[int]) -> tuple[Ints, Bools]:
        """The table and the final states, the first of them first."""
        begin, end = special
        first: set[int] = {0}
        pending = [0]
        while begin != NOWHERE and pending:
            cell = int(self.table[pending.pop(), begin])
            new = {s for s in (self.spread(cell) if cell != NOWHERE else ()) if s not in first}
            first |= new
            pending += new
        final = self.final
        while end != NOWHERE:
            ahead = self.table[:, end]
            more = final.copy()
            for state in (ahead != NOWHERE).nonzero()[0]:
                more[state] |= any(final[one] for one in self.spread(int(ahead[state])))
            if (more == final).all():
                break
            final = more
        start = self.number(tuple(sorted(first)))
        rows: list[Ints] = []
        while len(rows) < len(self.members):
            rows.append(self.united(self.table[list(self.members[len(rows)])]))
        table = np.vstack((self.table, *rows)) if rows else self.table
        ends = [any(final[one] for one in members) for members in self.members]
        whole = np.concatenate((final, np.array(ends, dtype=np.bool_)))
        if start:
            order = np.arange(len(table))
            order[[0, start]] = order[[start, 0]]
            table, whole = np.where(table == NOWHERE, NOWHERE, order[table])[order], whole[order]
        return table, whole
