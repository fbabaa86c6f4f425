"""From an automaton over characters to one over the bytes of UTF-8."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sfumato.grammar.dfa import NOWHERE, Bools, Dfa, Ints, unique_rows, with_nowhere


def byte_table(dfa: Dfa) -> tuple[Ints, Bools]:
    """Moves by bytes [Q, 256], and final states; those of the automaton come first."""
    tree = _Tree(dfa.starts, dfa.labels)
    lead = [tree.lead(byte) for byte in range(256)]
    states = [with_nowhere(dfa.table)]  # letter -> state
    count, tails = len(dfa), []
    places: list[Ints] = []  # of each node, its state for every state before it
    for children in tree.nodes:
        kinds = sorted(set(children), key=str)
        rows = np.stack([_places(kind, states[0], places) for kind in kinds], axis=1)
        first, which = unique_rows(rows)
        found = rows[first]
        live = (found != NOWHERE).any(1)
        numbers = np.where(live, np.cumsum(live) - 1 + count, NOWHERE)
        places.append(numbers[which])
        tail = np.full((int(live.sum()), 256), NOWHERE)
        tail[:, 0x80:0xC0] = found[live][:, [kinds.index(child) for child in children]]
        tails.append(tail)
        count += len(tail)
    table = np.stack([_places(kind, states[0], places) for kind in lead], axis=1)
    final = np.zeros(count, dtype=np.bool_)
    final[: len(dfa)] = dfa.final
    return np.vstack((table, *tails)), final


Kind = tuple[str, int]  # a letter, or a node, by its number


def _places(kind: Kind, letters: Ints, places: Sequence[Ints]) -> Ints:
    """Where a byte leads from every state."""
    return letters[:, kind[1]] if kind[0] == "letter" else places[kind[1]]


NO_LETTER: Kind = ("letter", NOWHERE)


@dataclass
class _Tree:
    """What follows a leading byte, where characters of many intervals are one letter."""

    starts: Ints
    labels: Ints
    nodes: list[tuple[Kind, ...]] = field(default_factory=list)  # [64] children, inner ones first
    known: dict[object, Kind] = field(default_factory=dict)

    def lead(self, byte: int) -> Kind:
        if byte < 0x80:
            return self.block(byte, 0)
        if 0xC2 <= byte <= 0xDF:
            return self.block((byte & 31) << 6, 1)
        if 0xE0 <= byte <= 0xEF:
            return self.block((byte & 15) << 12, 2, 0x800)
        if 0xF0 <= byte <= 0xF4:
            return self.block((byte & 7) << 18, 3, 0x10000)
        return NO_LETTER

    def block(self, low: int, level: int, least: int = 0) -> Kind:
        """The characters from `low` on that have so many more bytes; those below `least` are
        spelt shorter."""
        at = int(np.searchsorted(self.starts, low, side="right")) - 1
        size = 64**level
        whole = at + 1 == len(self.starts) or self.starts[at + 1] >= low + size
        label = int(self.labels[at])
        if whole and low >= least:
            if level == 0 or label == NOWHERE:
                return ("letter", label)
            return self.node((self.same(label, level - 1),) * 64)
        if low + size <= least:
            return NO_LETTER
        part = size // 64
        return self.node(tuple(self.block(low + n * part, level - 1, least) for n in range(64)))

    def same(self, label: int, level: int) -> Kind:
        if level == 0:
            return ("letter", label)
        return self.node((self.same(label, level - 1),) * 64)

    def node(self, children: tuple[Kind, ...]) -> Kind:
        if set(children) == {NO_LETTER}:
            return NO_LETTER
        if children not in self.known:
            self.nodes.append(children)
            self.known[children] = ("node", len(self.nodes) - 1)
        return self.known[children]
