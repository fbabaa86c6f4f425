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
from sfumato.grammar.charset import LAST, SURROGATES

Ints = NDArray[np.int64]


Number = TypeVar("Number", bound=np.integer)


Bools = NDArray[np.bool_]


NOWHERE = -1  # no state, and no letter


BEGIN, END = LAST + 1, LAST + 2  # letters that stand for ^ and $ until an automaton is made


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
