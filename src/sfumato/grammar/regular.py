"""The automaton of a regular expression.

An expression becomes an automaton without empty moves whose states are places in the expression
(Glushkov, 1961); where a place and a character leave no choice, which is nearly everywhere, that is
deterministic as it is, and only what is not goes through the subset construction.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from sfumato.grammar.charset import CharSet, letters_of
from sfumato.grammar.dfa import BEGIN, BUDGET, END, NOWHERE, Budget, Dfa, Ints, common, over
from sfumato.grammar.expressions import Alt, Cat, Expression, One, Repeat, Text, size
from sfumato.grammar.minimal import smallest
from sfumato.grammar.subsets import Subsets


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
    subsets = Subsets(np.vstack(rows), np.zeros(int(sizes.sum()), dtype=np.bool_), what, budget)
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
