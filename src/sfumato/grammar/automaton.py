"""A grammar over the tokens of a vocabulary: which token leads from which state to which."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import ConfigError
from sfumato.grammar.dfa import NOWHERE, Bools, Ints, unique_rows, with_nowhere
from sfumato.grammar.minimal import Moves

LARGEST = 2**26  # entries of a table: 256 MB of int32


SPACED = 1  # the state of an automaton before a space and then a text


def token_columns(table: Ints, words: Sequence[bytes | None]) -> tuple[NDArray[np.int32], Ints]:
    """Where each class of tokens leads, [C, Q], and the class of each token [V], or NOWHERE.

    Token by token, byte after byte, but tokens that have led to the same so far go together.
    """
    count = len(table)
    first, letter = unique_rows(table.T)
    dead = np.full((len(first), 1), NOWHERE)
    down = np.hstack((table[:, first].T, dead)).astype(np.int32)  # NOWHERE is its last column
    lengths = np.array([len(word) if word else 0 for word in words])
    spelt = np.frombuffer(b"".join(word for word in words if word), np.uint8)
    begin = np.cumsum(lengths) - lengths
    columns = np.arange(count, dtype=np.int32)[None]
    tokens = lengths.nonzero()[0]  # those that lead anywhere so far, and their classes
    classes = np.zeros(len(tokens), dtype=np.int64)
    done: list[NDArray[np.int32]] = [np.zeros((0, count), np.int32)]
    result = np.full(len(words), NOWHERE)
    place = total = 0
    while len(tokens):
        pairs, which = _ranked(classes * len(first) + letter[spelt[begin[tokens] + place]])
        _check_size((len(pairs) + total) * count, count, len(words))
        ahead = np.empty((len(pairs), count), np.int32)
        for row, pair in enumerate(pairs):
            before, by = divmod(int(pair), len(first))
            np.take(down[by], columns[before], out=ahead[row], mode="wrap")
        kept, merged = unique_rows(ahead)
        columns = ahead[kept]
        useful = (columns != NOWHERE).any(1)
        classes = np.where(useful, np.cumsum(useful) - 1, NOWHERE)[merged[which]]
        columns = columns[useful]
        place += 1
        ready = (classes != NOWHERE) & (lengths[tokens] == place)
        whole, own = _ranked(classes[ready])
        result[tokens[ready]] = own + total
        done.append(columns[whole])
        total += len(whole)
        longer = (classes != NOWHERE) & ~ready
        tokens, classes = tokens[longer], classes[longer]
    columns = np.vstack(done)
    first, merged = unique_rows(columns)  # tokens of different lengths may lead to the same
    return columns[first], np.append(merged, NOWHERE)[result]


def _ranked(keys: Ints) -> tuple[Ints, Ints]:
    """The different ones of some small numbers in their order, and which of these each is."""
    seen = np.zeros(int(keys.max(initial=-1)) + 1, dtype=np.bool_)
    seen[keys] = True
    return seen.nonzero()[0], (np.cumsum(seen) - 1)[keys]


def _check_size(entries: int, states: int, tokens: int) -> None:
    if entries > LARGEST:
        raise ConfigError(
            f"the grammar has {states:,} states, too many for a vocabulary of {tokens:,}; "
            "bound what repeats, or say it in a simpler way"
        )


def with_end(
    columns: NDArray[np.int32], classes: Ints, final: Bools, end: int, after: list[int]
) -> tuple[NDArray[np.int32], Ints]:
    """One more state, the last: final states lead there by `end`, and it to itself by `after`."""
    last = len(final)
    columns = with_nowhere(with_nowhere(columns).T).T  # also tokens of no class
    count = len(columns)
    classes = np.where(classes == NOWHERE, count - 1, classes)
    classes[after] += count  # what may follow an end is apart
    kept, classes = _ranked(classes)
    columns = columns[kept % count]
    columns[kept >= count, last] = last
    ending = np.append(np.where(final, last, NOWHERE), last if end in after else NOWHERE)
    classes[end] = len(columns)
    return np.vstack((columns, ending.astype(np.int32))), classes


@dataclass(frozen=True, eq=False)
class Automaton:
    """A grammar over tokens. Every state and class is useful: on some way to a final state from
    the first, 0, or from SPACED, before a space and then a text."""

    table: Ints  # [Q, C] the next state, or NOWHERE
    classes: Ints  # [V] the class of each token, or NOWHERE
    final: Bools  # [Q]
    ended: int = NOWHERE  # the state behind an end, if there is one
    padding: Ints = field(default_factory=lambda: np.zeros(0, np.int64))  # tokens

    @classmethod
    def trimmed(
        cls,
        columns: NDArray[np.int32],  # [C, Q]
        classes: Ints,
        final: Bools,
        ended: int = NOWHERE,
        padding: Ints | None = None,
    ) -> "Automaton":
        """Only what is useful; the two first states stay, also where nothing is."""
        count = len(final)
        label, source = (columns != NOWHERE).nonzero()
        moves = np.unique(source * count + columns[label, source])
        source, target = moves // count, moves % count
        useful = Moves.of(source, target, count).reached(np.arange(SPACED + 1))
        useful &= Moves.of(target, source, count).reached(final.nonzero()[0])
        useful[: SPACED + 1] = True
        renamed = np.append(np.where(useful, np.cumsum(useful) - 1, NOWHERE), NOWHERE)
        present = np.zeros(len(columns) + 1, dtype=np.bool_)
        present[classes] = True  # NOWHERE is the last
        columns = renamed.astype(np.int32)[columns[:, useful]]
        live = present[:-1] & (columns != NOWHERE).any(1)
        first, merged = unique_rows(columns[live])
        rank = np.full(len(columns) + 1, NOWHERE)
        rank[:-1][live] = merged
        table = columns[live][first].T.astype(np.int64)
        padding = np.zeros(0, np.int64) if padding is None else padding
        return cls(table, rank[classes], final[useful], int(renamed[ended]), padding)

    @property
    def num_states(self) -> int:
        return len(self.table)

    @property
    def num_classes(self) -> int:
        return self.table.shape[1]

    @cached_property
    def edges(self) -> "Edges":
        return Edges.of(self.table, self.ended)

    @cached_property
    def order(self) -> Ints:
        """The tokens that the grammar knows, class after class."""
        order = np.argsort(self.classes, kind="stable")
        return order[self.classes[order] != NOWHERE]

    @cached_property
    def order_start(self) -> Ints:
        """[C] where each class starts in it."""
        return np.searchsorted(self.classes[self.order], np.arange(self.num_classes))

    def after(self, state: int, tokens: Sequence[int]) -> int:
        """The state after some tokens, or NOWHERE."""
        for token in tokens:
            label = self.classes[token]
            state = NOWHERE if NOWHERE in (state, label) else int(self.table[state, label])
        return state

    def accepts(self, state: int, tokens: Sequence[int]) -> bool:
        """Whether some tokens are a text, from a state on."""
        state = self.after(state, tokens)
        return state != NOWHERE and bool(self.final[state])

    def completable(self, count: int) -> Bools:
        """[count + 1, Q] whether exactly so many tokens lead from a state to a final one."""
        found = np.zeros((count + 1, self.num_states), dtype=np.bool_)
        found[0] = self.final
        edges = self.edges
        for number in range(count):
            ahead, now = found[number][edges.target], found[number + 1]
            if len(ahead):
                now[edges.sources] = np.logical_or.reduceat(ahead, edges.source_start)
            if (now == found[number]).all():
                found[number + 2 :] = now
                break
        return found

    def lengths(self, state: int) -> Iterator[bool]:
        """Whether 0, 1, 2 ... tokens lead from a state to a final one."""
        edges = self.edges
        now = np.arange(self.num_states) == state
        while now.any():
            yield bool((now & self.final).any())
            over = now[edges.source_to_target]
            now = np.zeros_like(now)
            if len(over):
                now[edges.targets] = np.logical_or.reduceat(over, edges.target_start)


@dataclass(frozen=True, eq=False)
class Edges:
    """Pairs of states that tokens connect, sorted by source, and the sets of classes that do;
    and in which order, and from where on, they are summed up."""

    target: Ints  # [E]
    sets: Ints  # [E] the set of each edge
    sources: Ints | slice  # states with edges, and where theirs start
    source_start: Ints
    source_to_target: Ints  # [E] sources in the order of targets, sets in this order,
    sets_to_target: Ints  # [E]
    targets: Ints | slice  # the states that edges lead to,
    target_start: Ints  # and where theirs start in it
    source_to_set: Ints  # [E] the same by sets
    target_to_set: Ints  # [E]
    set_start: Ints  # [S]
    fan_sets: Ints  # [Q, D] the edges that leave each state: their sets,
    fan_target: Ints  # [Q, D] their targets,
    fan_real: Bools  # [Q, D] and whether there are so many
    member: Bools  # [S, C]
    pair_class: Ints  # classes of the sets, set after set
    pair_start: Ints  # [S]
    class_pair: Ints  # sets of the classes, class after class
    class_start: Ints  # [C]
    ended: int  # the set of what follows an end, of no other edge; NOWHERE: there is none

    @classmethod
    def of(cls, table: Ints, ended: int = NOWHERE) -> "Edges":
        states, labels = (table != NOWHERE).nonzero()  # int64
        keys = states * len(table) + table[states, labels]
        order = np.argsort(keys, kind="stable")
        pairs, starts = np.unique(keys[order], return_index=True)
        known: dict[bytes, int] = {}
        parts = np.split(labels[order], starts[1:]) if len(pairs) else []
        own = set((pairs == ended * len(table) + ended).nonzero()[0]) if ended != NOWHERE else set()
        found = [
            NOWHERE if edge in own else known.setdefault(part.tobytes(), len(known))
            for edge, part in enumerate(parts)
        ]
        count = len(known) + len(own)
        sets = np.array(found, dtype=np.int64)
        member = np.zeros((count, table.shape[1]), dtype=np.bool_)
        for spelt, number in known.items():
            classes: Ints = np.frombuffer(spelt, np.int64)
            member[number, classes] = True
        for edge in own:
            member[-1, parts[edge]] = True
            sets[edge] = count - 1
        source, target = pairs // len(table), pairs % len(table)
        degree = np.bincount(source, minlength=len(table))
        shape = (len(table), max(int(degree.max(initial=0)), 1))
        fan_sets, fan_target = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        fan_real = np.arange(shape[1]) < degree[:, None]
        fan_sets[fan_real], fan_target[fan_real] = sets, target
        sources, source_start = np.unique(source, return_index=True)
        by_target, by_set = np.argsort(target, kind="stable"), np.argsort(sets, kind="stable")
        of_set, pair_class = member.nonzero()
        of_class, class_pair = member.T.nonzero()
        return cls(
            target=target,
            sets=sets,
            sources=_slice(sources),
            source_start=source_start,
            source_to_target=source[by_target],
            sets_to_target=sets[by_target],
            target_start=_starts(target[by_target]),
            targets=_slice(np.unique(target)),
            source_to_set=source[by_set],
            target_to_set=target[by_set],
            set_start=_starts(sets[by_set]),
            fan_sets=fan_sets,
            fan_target=fan_target,
            fan_real=fan_real,
            member=member,
            pair_class=pair_class,
            pair_start=_starts(of_set),
            class_pair=class_pair,
            class_start=_starts(of_class),
            ended=count - 1 if len(own) else NOWHERE,
        )


def _slice(states: Ints) -> Ints | slice:
    """States as a slice if they are neighbours, which is faster."""
    if len(states) and states[-1] - states[0] == len(states) - 1:
        return slice(int(states[0]), int(states[-1]) + 1)
    return states


def _starts(keys: Ints) -> Ints:
    """Where each of some sorted keys starts."""
    return np.unique(keys, return_index=True)[1]
