"""Deterministic automata over characters: made smaller, multiplied, and turned round.

Letters: Q states, A letters (classes of characters that the automaton does not tell apart), K
intervals of code points.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import ConfigError

Ints = NDArray[np.int64]
Number = TypeVar("Number", bound=np.integer)
Bools = NDArray[np.bool_]

NOWHERE = -1  # no state, and no letter
LAST = 0x10FFFF
SURROGATES = (0xD800, 0xDFFF)  # no characters
BEGIN, END = LAST + 1, LAST + 2  # letters that stand for ^ and $ until an automaton is made
ROUNDS = 64  # of refinement, before states that are not told apart yet are left apart

CharSet = tuple[
    tuple[int, int], ...
]  # disjoint ranges of code points in their order, ends included


@dataclass(frozen=True)
class Budget:
    """What making an automaton may take: states, to which time and memory are in proportion."""

    states: int = 25_000

    def check_places(self, places: int, what: str) -> None:
        """Of an expression written out: many of them become one state."""
        self.check(places // 4, what)

    def check(self, states: int, what: str) -> None:
        if states > self.states:
            raise ConfigError(
                f"{what} needs more than {self.states:,} states; bound what repeats by smaller "
                f"numbers, say it in a simpler way, or use a larger grammar_states"
            )


BUDGET = Budget()


def with_nowhere(table: NDArray[Number], count: int = 1) -> NDArray[Number]:
    """A table [Q, A] with so many more letters, which lead nowhere."""
    return np.hstack((table, np.full((len(table), count), NOWHERE, table.dtype)))


def unique_rows(rows: NDArray[Any]) -> tuple[Ints, Ints]:
    """The places of the first of equal rows [n, m], and which of these each row is: by hashes,
    for sorting whole rows takes most of the time that an automaton is made in."""
    if not rows.size:
        return np.arange(min(len(rows), 1)), np.zeros(len(rows), dtype=np.int64)
    dice = np.random.default_rng(len(rows)).integers(1, 2**63, rows.shape[1], dtype=np.uint64)
    hashes = np.zeros(len(rows), dtype=np.uint64)
    for begin in range(0, rows.shape[1], 4096):  # so that no second table of this size is made
        part = rows[:, begin : begin + 4096].astype(np.uint64)
        hashes += part @ dice[begin : begin + 4096]
    first, which = np.unique(hashes, return_index=True, return_inverse=True)[1:]
    which = which.ravel()
    again = (first[which] != np.arange(len(rows))).nonzero()[0]
    if any(
        (rows[part] != rows[first[which[part]]]).any()
        for part in np.split(again, range(64, len(again), 64))
    ):
        first, which = np.unique(rows, axis=0, return_index=True, return_inverse=True)[1:]
        which = which.ravel()
    return first, which


# --- sets of characters ---


def charset(*ranges: tuple[int, int]) -> CharSet:
    """The union of some ranges, without surrogates."""
    cut: list[tuple[int, int]] = []
    for low, high in ranges:
        cut += [(low, min(high, SURROGATES[0] - 1)), (max(low, SURROGATES[1] + 1), high)]
    joined: list[tuple[int, int]] = []
    for low, high in sorted(one for one in cut if one[0] <= one[1]):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return tuple(joined)


def letters_of(text: str) -> CharSet:
    """Each of these characters."""
    return charset(*((ord(one), ord(one)) for one in text))


def inverse(chars: CharSet) -> CharSet:
    """All other characters."""
    ends = [-1, *(end for low, high in chars for end in (low - 1, high)), LAST]
    pairs = zip(ends[::2], ends[1::2], strict=True)
    return charset(*((low + 1, high) for low, high in pairs if low + 1 <= high))


ANY: CharSet = charset((0, LAST))


@dataclass(frozen=True, eq=False)
class Dfa:
    """A deterministic automaton over characters; its first state is 0, and all are useful."""

    starts: Ints  # [K] the first code point of each interval; the first is 0
    labels: Ints  # [K] its letter, or NOWHERE: in no text
    table: Ints  # [Q, A] the next state, or NOWHERE
    final: Bools  # [Q]

    def __len__(self) -> int:
        return len(self.table)

    @property
    def empty(self) -> bool:
        """Whether it accepts nothing at all."""
        return not self.final.any()

    def accepts(self, text: str) -> bool:
        state = 0
        for one in text:
            letter = self.labels[np.searchsorted(self.starts, ord(one), side="right") - 1]
            state = NOWHERE if letter == NOWHERE else int(self.table[state, letter])
            if state == NOWHERE:
                return False
        return bool(self.final[state])

    @cached_property
    def alphabet(self) -> tuple[bytes, bytes]:
        return self.starts.tobytes(), self.labels.tobytes()


def over(dfa: Dfa, column: Ints) -> Ints:
    """Its table over other letters: `column` says which of its own each is."""
    return with_nowhere(dfa.table)[:, column]


def common(leaves: Sequence[Dfa]) -> tuple[Ints, Ints, list[Ints]]:
    """Letters that all automata can be written in: their intervals, the letter of each, and for
    every automaton which of its own letters each is."""
    kinds = {leaf.alphabet: leaf for leaf in leaves}
    starts = np.unique(
        np.concatenate(
            [[0, *SURROGATES[:1], SURROGATES[1] + 1, BEGIN]]
            + [leaf.starts for leaf in kinds.values()]
        )
    )
    own = np.stack(
        [
            leaf.labels[np.searchsorted(leaf.starts, starts, side="right") - 1]
            for leaf in kinds.values()
        ]
    )
    real = ~((starts >= SURROGATES[0]) & (starts <= SURROGATES[1]))
    found, first, letters = np.unique(own[:, real], axis=1, return_index=True, return_inverse=True)
    labels = np.full(len(starts), NOWHERE)
    labels[real] = letters.ravel()
    del first
    maps = dict(zip(kinds, found, strict=True))
    return starts, labels, [maps[leaf.alphabet] for leaf in leaves]


# --- fewer states ---


@dataclass(frozen=True)
class Moves:
    """Moves of an automaton by where they come from."""

    target: Ints
    start: Ints  # [Q + 1]

    @classmethod
    def of(cls, source: Ints, target: Ints, count: int) -> "Moves":
        order = np.argsort(source, kind="stable")
        return cls(target[order], np.searchsorted(source[order], np.arange(count + 1)))

    def reached(self, first: Ints) -> Bools:
        """The states that can be reached from some, these included."""
        seen = np.zeros(len(self.start) - 1, dtype=np.bool_)
        seen[first] = True
        while len(first):
            found = np.unique(self.ahead(first))
            first = found[~seen[found]]
            seen[first] = True
        return seen

    def ahead(self, states: Ints) -> Ints:
        begin, count = self.start[states], self.start[states + 1] - self.start[states]
        place = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        return self.target[np.repeat(begin, count) + place]


def trimmed(dfa: Dfa) -> Dfa:
    """Only states on a way from the first to a final one; the first stays."""
    source, letter = (dfa.table != NOWHERE).nonzero()
    target = dfa.table[source, letter]
    useful = Moves.of(source, target, len(dfa)).reached(np.array([0]))
    useful &= Moves.of(target, source, len(dfa)).reached(dfa.final.nonzero()[0])
    useful[0] = True
    renamed = np.append(np.where(useful, np.cumsum(useful) - 1, NOWHERE), NOWHERE)
    return Dfa(dfa.starts, dfa.labels, renamed[dfa.table[useful]], dfa.final[useful])


def smallest(dfa: Dfa) -> Dfa:
    """States that accept the same become one, and letters that do the same."""
    dfa = _fewer_letters(trimmed(dfa))
    group = _told_apart(dfa)
    first = np.unique(group, return_index=True)[1]
    order = np.argsort(first)  # by first appearance, so that state 0 is in group 0
    rank = np.argsort(order)
    ahead = np.where(dfa.table == NOWHERE, NOWHERE, rank[group[dfa.table]])
    return _fewer_letters(Dfa(dfa.starts, dfa.labels, ahead[first[order]], dfa.final[first[order]]))


def _fewer_letters(dfa: Dfa) -> Dfa:
    first, letters = unique_rows(dfa.table.T)
    labels, columns = np.append(letters, NOWHERE)[dfa.labels], dfa.table[:, first]
    kept = np.concatenate(([True], labels[1:] != labels[:-1]))
    return Dfa(dfa.starts[kept], labels[kept], columns, dfa.final)


def _told_apart(dfa: Dfa) -> Ints:
    """The number of each state's group: those of one group accept the same (Moore, 1956).

    Texts of many different lengths take many rounds to tell apart; after `ROUNDS` of them only
    states whose moves are the same become one, which leaves more of them, and nothing wrong.
    """
    dice = np.random.default_rng(0).integers(
        1, 2**63, size=(2, dfa.table.shape[1] + 1), dtype=np.uint64
    )

    def refined(group: Ints) -> Ints:
        ahead = np.where(dfa.table == NOWHERE, 0, group[dfa.table] + 1).astype(np.uint64)
        mixed = ahead * dice[0, :-1]
        mixed ^= mixed >> np.uint64(29)
        mixed *= dice[1, :-1]
        own = group.astype(np.uint64) * dice[0, -1]
        return np.unique(mixed.sum(1) + own * dice[1, -1], return_inverse=True)[1].ravel()

    group = unique_rows(_lengths(dfa))[1]
    for _ in range(ROUNDS):
        finer = refined(group)
        if finer.max() == group.max():
            return group if _sound(dfa, group) else np.arange(len(dfa))
        group = finer
    group = np.arange(len(dfa))
    for _ in range(ROUNDS):
        ahead = np.where(dfa.table == NOWHERE, NOWHERE, group[dfa.table])
        fewer = unique_rows(np.column_stack((dfa.final, ahead)))[1]
        if fewer.max() == group.max():
            break
        group = fewer
    return group


def _sound(dfa: Dfa, group: Ints) -> bool:
    """Whether groups move as one: the sums by which they were told apart might have met."""
    first = np.unique(group, return_index=True)[1][group]
    ahead = np.where(dfa.table == NOWHERE, NOWHERE, group[dfa.table])
    return bool((ahead == ahead[first]).all() and (dfa.final == dfa.final[first]).all())


def _lengths(dfa: Dfa) -> Ints:
    """[Q, 3] whether a state is final, its shortest text, and its longest (-1: no such)."""
    source, letter = (dfa.table != NOWHERE).nonzero()
    target = dfa.table[source, letter]
    back = Moves.of(target, source, len(dfa))
    shortest = np.full(len(dfa), NOWHERE)
    states, number = dfa.final.nonzero()[0], 0
    while len(states):
        shortest[states] = number
        found = np.unique(back.ahead(states))
        states, number = found[shortest[found] == NOWHERE], number + 1
    longest = np.full(len(dfa), NOWHERE)
    open_ = np.bincount(source, minlength=len(dfa))
    states, number = (open_ == 0).nonzero()[0], 0
    while len(states):
        longest[states] = number
        found, count = np.unique(back.ahead(states), return_counts=True)
        open_[found] -= count
        states, number = found[open_[found] == 0], number + 1
    return np.column_stack((dfa.final, shortest, longest))


# --- products ---


def intersection(one: Dfa, other: Dfa, what: str = "the grammar", budget: Budget = BUDGET) -> Dfa:
    """What both accept."""
    starts, labels, (mine, theirs) = common([one, other])
    a, b = over(one, mine), over(other, theirs)
    width = len(b)
    codes, rows = [np.array([0])], []
    seen = np.array([0])
    fresh = codes[0]
    while len(fresh):
        left, right = a[fresh // width], b[fresh % width]
        row = np.where((left == NOWHERE) | (right == NOWHERE), NOWHERE, left * width + right)
        rows.append(row)
        found = np.unique(row)
        fresh = np.setdiff1d(found[found != NOWHERE], seen, assume_unique=True)
        seen = np.union1d(seen, fresh)
        codes.append(fresh)
        budget.check(len(seen), what)
    order = np.concatenate(codes)
    rank = np.argsort(order)
    table = np.vstack(rows)
    place = rank[np.searchsorted(order[rank], np.maximum(table, 0))]
    table = np.where(table == NOWHERE, NOWHERE, place)
    final = one.final[order // width] & other.final[order % width]
    return smallest(Dfa(starts, labels, table, final))


def complement(dfa: Dfa) -> Dfa:
    """All other texts."""
    starts, labels, (own,) = common([dfa])
    table = over(dfa, own)
    dead = len(table)
    table = np.where(table == NOWHERE, dead, table)
    table = np.vstack((table, np.full((1, table.shape[1]), dead)))
    labels = np.where(starts >= BEGIN, NOWHERE, labels)
    return smallest(Dfa(starts, labels, table, np.append(~dfa.final, True)))


def contained(inner: Dfa, outer: Dfa) -> bool:
    """Whether all that one accepts the other accepts too."""
    return intersection(inner, complement(outer)).empty


def after(dfa: Dfa, text: str) -> Dfa:
    """What may follow a text that all that is accepted begins with."""
    state = 0
    for one in text:
        letter = dfa.labels[np.searchsorted(dfa.starts, ord(one), side="right") - 1]
        state = int(dfa.table[state, letter])
    table = np.vstack((dfa.table[state], dfa.table + 1 * (dfa.table != NOWHERE)))
    table[0] = np.where(table[0] == NOWHERE, NOWHERE, table[0] + 1)
    return smallest(Dfa(dfa.starts, dfa.labels, table, np.append(dfa.final[state], dfa.final)))


def texts_of(dfa: Dfa, most: int) -> list[str] | None:
    """All texts that are accepted; None where there are more than `most`."""
    stops = np.append(dfa.starts[1:], BEGIN)
    own: list[str] = []
    for letter in range(dfa.table.shape[1]):
        chars = ""
        for at in (dfa.labels == letter).nonzero()[0]:
            count = min(int(stops[at] - dfa.starts[at]), most + 1 - len(chars))
            chars += "".join(chr(int(dfa.starts[at]) + n) for n in range(count))
        own.append(chars)
    found: list[str] = []
    pending = [(0, "")]
    while pending:
        state, text = pending.pop()
        if dfa.final[state]:
            found.append(text)
            if len(found) > most:
                return None
        ahead = [
            (int(dfa.table[state, letter]), text + one)
            for letter in (dfa.table[state] != NOWHERE).nonzero()[0]
            for one in own[letter]
        ]
        pending += sorted(ahead, key=lambda each: each[1], reverse=True)
        if len(pending) > 2 * most + 2:
            return None  # every one of them is the beginning of another text
    return found
