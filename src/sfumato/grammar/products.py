"""Automata made of others: both, not, without its beginning; and the texts of a finite one."""

import numpy as np

from sfumato.grammar.dfa import BEGIN, BUDGET, NOWHERE, Budget, Dfa, common, over
from sfumato.grammar.minimal import smallest


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
