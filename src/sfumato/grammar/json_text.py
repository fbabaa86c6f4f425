"""How JSON writes strings and numbers, as automata over the characters of the text.

A string is known by its value: `written` makes of an automaton over values that over their
spellings. A number is written without an exponent, with at most `DIGITS` digits before the point
and `PLACES` behind it, so that every one is exact as a decimal and as a double.
"""

from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sfumato.grammar.charset import LAST, SURROGATES
from sfumato.grammar.dfa import BEGIN, BUDGET, NOWHERE, Budget, Dfa, Ints, unique_rows, with_nowhere
from sfumato.grammar.minimal import smallest

DIGITS, PLACES = 15, 8


SHORT = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


HEX = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "aA", "bB", "cC", "dD", "eE", "fF"]


Kind = tuple[str, int]  # a letter of the value, or a node: by its number


DEAD: Kind = ("letter", NOWHERE)


def written(dfa: Dfa, every: bool) -> Dfa:
    """The spellings of the strings that `dfa` accepts, without the quotes around them.

    A character is itself, or its short escape; \\uXXXX, in pairs where it takes two, is for
    control characters, or with `every` for all.
    """
    tree = _Escapes(dfa.starts, dfa.labels, every)
    slash = tree.node(
        {**{sign: tree.letter(ord(SHORT[sign])) for sign in SHORT}, "u": tree.coded()}
    )
    starts = np.unique(np.concatenate((dfa.starts, np.arange(129), [BEGIN])))
    own = dfa.labels[np.searchsorted(dfa.starts, starts, side="right") - 1]
    kinds: list[Kind] = [("letter", int(label)) for label in own]
    for code in [*range(32), ord('"')]:
        kinds[code] = DEAD
    kinds[ord("\\")] = slash
    moves = with_nowhere(dfa.table)
    count, rows, places = len(dfa), [], []
    width = len(starts)
    for node in tree.nodes:
        ahead = np.full((len(dfa), 128), NOWHERE)
        for signs, kind in node:
            for sign in signs:
                ahead[:, ord(sign)] = _ahead(kind, moves, places)
        first, which = unique_rows(ahead)
        found = ahead[first]
        live = (found != NOWHERE).any(1)
        numbers = np.where(live, np.cumsum(live) - 1 + count, NOWHERE)
        places.append(numbers[which])
        rows.append(with_nowhere(found[live], width - 128))
        count += int(live.sum())
    first = np.stack([_ahead(kind, moves, places) for kind in kinds], axis=1)
    final = np.zeros(count, dtype=np.bool_)
    final[: len(dfa)] = dfa.final
    labels = np.where(starts >= BEGIN, NOWHERE, np.arange(width))
    labels[(starts >= SURROGATES[0]) & (starts <= SURROGATES[1])] = NOWHERE
    return smallest(Dfa(starts, labels, np.vstack((first, *rows)), final))


def _ahead(kind: Kind, moves: Ints, places: Sequence[Ints]) -> Ints:
    return moves[:, kind[1]] if kind[0] == "letter" else places[kind[1]]


@dataclass
class _Escapes:
    """What may follow a backslash, where characters of many intervals are one letter."""

    starts: Ints
    labels: Ints
    every: bool
    nodes: list[tuple[tuple[str, Kind], ...]] = field(default_factory=list)  # inner ones first
    known: dict[object, Kind] = field(default_factory=dict)

    def node(self, children: dict[str, Kind]) -> Kind:
        alive = tuple((signs, kind) for signs, kind in children.items() if kind != DEAD)
        if not alive:
            return DEAD
        if alive not in self.known:
            self.nodes.append(alive)
            self.known[alive] = ("node", len(self.nodes) - 1)
        return self.known[alive]

    def letter(self, code: int) -> Kind:
        at = int(np.searchsorted(self.starts, code, side="right")) - 1
        return ("letter", int(self.labels[at]))

    def coded(self) -> Kind:
        """Behind \\u: four digits."""
        return self.block(0, 4)

    def block(self, low: int, digits: int) -> Kind:
        """The code units from `low` on that have so many more digits."""
        if digits == 0:
            return self.unit(low)
        if not self.every and low >= 32:
            return DEAD
        size = 16 ** (digits - 1)
        if self.every and (kind := self.alike(low, size * 16)) is not None:
            return self.same(kind, digits)
        return self.node({HEX[n]: self.block(low + n * size, digits - 1) for n in range(16)})

    def alike(self, low: int, size: int) -> Kind | None:
        """The letter of a whole block, if it is one, and no half of a pair is in it."""
        if low <= SURROGATES[1] and low + size > SURROGATES[0]:
            return None
        at = int(np.searchsorted(self.starts, low, side="right")) - 1
        whole = at + 1 == len(self.starts) or self.starts[at + 1] >= low + size
        return ("letter", int(self.labels[at])) if whole else None

    def same(self, kind: Kind, digits: int) -> Kind:
        if digits == 0 or kind == DEAD:
            return kind
        return self.node(dict.fromkeys(HEX, self.same(kind, digits - 1)))

    def unit(self, code: int) -> Kind:
        if not self.every and code >= 32:
            return DEAD
        if code < SURROGATES[0] or code > SURROGATES[1]:
            return self.letter(code)
        if code >= 0xDC00:
            return DEAD  # the second half of a pair
        low = 0x10000 + (code - 0xD800) * 0x400
        if (kind := self.alike(low, 0x400)) is not None:
            tail = self.node(dict.fromkeys(HEX[12:], self.same(kind, 2)))
        else:
            tail = self.node({HEX[n + 12]: self.paired(low + n * 256, 2) for n in range(4)})
        return self.node({"\\": self.node({"u": self.node({"dD": tail})})})

    def paired(self, low: int, digits: int) -> Kind:
        if digits == 0:
            return self.letter(low)
        size = 16 ** (digits - 1)
        return self.node({HEX[n]: self.paired(low + n * size, digits - 1) for n in range(16)})


def explored(
    first: Hashable,
    moves: Callable[..., Mapping[str, Hashable]],
    ends: Callable[..., bool],
    what: str,
    budget: Budget,
) -> Dfa:
    """The automaton of states that are found one after another, by moves of ASCII characters."""
    known, pending = {first: 0}, deque([first])
    table: list[list[int]] = []
    while pending:
        row = [NOWHERE] * 128
        for sign, state in moves(pending.popleft()).items():
            if state not in known:
                known[state] = len(known)
                pending.append(state)
                budget.check(len(known), what)
            row[ord(sign)] = known[state]
        table.append(row)
    starts = np.array([*range(129), *SURROGATES, BEGIN])
    starts[-2] += 1
    labels = np.concatenate((np.arange(128), np.full(4, NOWHERE)))
    return smallest(Dfa(starts, labels, np.array(table), np.array([ends(one) for one in known])))


def words(texts: Sequence[str], what: str = "the texts", budget: Budget = BUDGET) -> Dfa:
    """These texts."""
    letters = {one: number for number, one in enumerate(sorted(set("".join(texts))))}
    moves: list[dict[int, int]] = [{}]
    ends = set()
    for text in texts:
        state = 0
        for one in text:
            ahead = moves[state].setdefault(letters[one], len(moves))
            if ahead == len(moves):
                moves.append({})
            state = ahead
        ends.add(state)
        budget.check(len(moves), what)
    cuts = sorted(
        {0, BEGIN, *SURROGATES, SURROGATES[1] + 1} | {ord(c) + n for c in letters for n in (0, 1)}
    )
    starts = np.array(cuts)
    labels = np.full(len(starts), NOWHERE)
    for one, number in letters.items():
        labels[np.searchsorted(starts, ord(one))] = number
    table = np.full((len(moves), max(len(letters), 1)), NOWHERE)
    for state, row in enumerate(moves):
        table[state, list(row)] = list(row.values())
    return smallest(Dfa(starts, labels, table, np.isin(np.arange(len(moves)), list(ends))))


assert LAST < BEGIN
