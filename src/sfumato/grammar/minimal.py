"""Automata of fewer states that accept the same texts."""

from dataclasses import dataclass

import numpy as np

from sfumato.grammar.dfa import NOWHERE, Bools, Dfa, Ints, unique_rows

ROUNDS = 64  # of refinement, before states that are not told apart yet are left apart


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
