"""The subset construction: from an automaton that has choices to one that has none.

Letters: A letters (classes of characters that an automaton does not tell apart).
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from sfumato.grammar.dfa import NOWHERE, Bools, Budget, Ints


class Subsets:
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
