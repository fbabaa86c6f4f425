"""Regular languages over tokens: which sequences spell a text that a pattern accepts.

A regular expression becomes an automaton over bytes, and that, for a vocabulary, one over tokens.
A token is its bytes, so it may be part of a character. Tokens that lead from every state to the
same states are one class, and arithmetic is over classes: for a JSON schema there are some
hundred, whatever the size of the vocabulary.

Letters: Q states, V tokens, C classes, E edges (pairs of states that some class connects), S sets
(of classes that connect a pair; many pairs have the same).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.errors import ConfigError, MissingExtra
from sfumato.json_schema import literal, schema_regex, unanchored

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

LARGEST = 2**26  # entries of a table: 256 MB of int32
ASCII = {r"\d": "[0-9]", r"\w": "[0-9A-Za-z_]", r"\s": r"[ \t\n\r\f\v]"}
STOP = "\U0010ffff"  # no character
NOWHERE = -1  # where a class that a state does not allow leads


@dataclass(frozen=True, eq=False)
class Grammar:
    """A pattern that whole texts match, as an automaton over bytes."""

    table: Ints  # [Q, 256] the next state, or NOWHERE
    final: Bools  # [Q]; state 0 is the first

    @classmethod
    def regex(cls, pattern: str) -> "Grammar":
        """All of a text matches the pattern, in the syntax of Rust's `regex`: no look-around.

        \\d, \\w and \\s are ASCII, so that what matches does so by any other library too.
        """
        if not isinstance(pattern, str):
            raise ConfigError(f"a regular expression is a string, got {pattern!r}")
        return cls(*_smallest(*_byte_automaton(_plain(unanchored(pattern)))))

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> "Grammar":
        """JSON that is valid under a schema; see `json_schema.py` for what it may ask for."""
        return cls.regex(schema_regex(schema, fits))

    @classmethod
    def choices(cls, choices: Sequence[str]) -> "Grammar":
        """One of these texts."""
        if isinstance(choices, str) or not all(isinstance(one, str) for one in choices):
            raise ConfigError(f"choices must be a list of texts, got {choices!r}")
        if not choices:
            raise ConfigError("no choices; give at least one text")
        return cls.regex("|".join(map(literal, choices)))

    def over(
        self,
        words: Sequence[bytes | None],  # [V] the bytes of each token; None: never written
        *,
        ends: Sequence[int] = (),
        after: Sequence[int] = (),
    ) -> "Automaton":
        """The automaton over these tokens.

        With `ends`, a text may be shorter than its room: from an accepting state these tokens lead
        into a last state, in which any of `after` may follow.
        """
        columns, classes = _columns(self.table, words)
        final = self.final
        if ends:
            columns, classes = _with_end(columns, classes, final, list(ends), list(after))
            final = np.append(final, True)
        return Automaton.trimmed(columns.T, classes, final)


def _plain(pattern: str) -> str:
    """\\d, \\w and \\s spelt out: libraries differ in what they are beyond ASCII."""
    return re.sub(r"\\.", lambda found: ASCII.get(found[0], found[0]), pattern, flags=re.DOTALL)


def _byte_automaton(pattern: str) -> tuple[Ints, Bools]:
    """States and moves of the library's automaton, which stops looking once a text has matched:
    of `a|ab` it knows the first. So a stop, which is in no text, is put behind every text."""
    _index(pattern)  # its own mistakes: with what is put around it, it could be another pattern
    index = _index(f"(?:{pattern})\\x{{{ord(STOP):x}}}")
    moves = index.get_transitions()
    names = list(dict.fromkeys([index.get_initial_state(), *moves, *index.get_final_states()]))
    number = {name: n for n, name in enumerate(names)}
    table = np.full((len(names), 256), NOWHERE)
    for name, row in moves.items():
        found = [(byte, number[to]) for byte, to in row.items() if byte < 256]
        if found:
            table[number[name], [byte for byte, _ in found]] = [to for _, to in found]
    stopped = np.array([number[name] for name in index.get_final_states()])
    final = np.arange(len(table))
    for byte in STOP.encode():
        final = np.where(final == NOWHERE, NOWHERE, table[final, byte])
    return np.where(np.isin(table, stopped), NOWHERE, table), np.isin(final, stopped)


def _index(pattern: str) -> Any:
    try:
        from outlines_core import Index, Vocabulary
    except ImportError:
        raise MissingExtra("outlines_core", "grammar", "a grammar") from None
    end = 256  # the library wants an end token
    alphabet = Vocabulary(end, {bytes([byte]): [byte] for byte in range(end)})  # type: ignore[arg-type]
    try:
        return Index(pattern, alphabet)
    except (ValueError, UnicodeEncodeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "no transitions" in reason:
            raise ConfigError(f"no text matches the regular expression {pattern!r}") from None
        raise ConfigError(
            f"cannot use the regular expression {pattern!r}: {reason.split('. ')[0]}; look-around, "
            "back references, Unicode word boundaries and anchors inside are not regular"
        ) from None


def _smallest(table: Ints, final: Bools) -> tuple[Ints, Bools]:
    """States that accept the same texts become one (Moore's refinement); the first stays 0."""
    letters = np.unique(table, axis=1)  # bytes that do the same
    group = final.astype(np.int64)
    count = 0
    while count != (count := int(group.max()) + 1):
        ahead = np.where(letters == NOWHERE, NOWHERE, group[letters])
        group = np.unique(np.column_stack((group, ahead)), axis=0, return_inverse=True)[1].ravel()
    first = np.unique(group, return_index=True)[1]
    order = np.argsort(first)  # by first appearance, so that state 0 is in group 0
    rank = np.argsort(order)
    ahead = np.where(table == NOWHERE, NOWHERE, rank[group[table]])
    return ahead[first[order]], final[first[order]]


def fits(inner: str, outer: str) -> bool:
    """Whether every text that matches one pattern matches the other."""
    one, other = Grammar.regex(inner), Grammar.regex(outer)
    seen, pending = {(0, 0)}, [(0, 0)]
    while pending:
        a, b = pending.pop()
        if one.final[a] and (b == NOWHERE or not other.final[b]):
            return False
        for byte in (one.table[a] != NOWHERE).nonzero()[0]:
            pair = (int(one.table[a, byte]), NOWHERE if b == NOWHERE else int(other.table[b, byte]))
            if pair not in seen:
                seen.add(pair)
                pending.append(pair)
    return True


def _columns(table: Ints, words: Sequence[bytes | None]) -> tuple[Ints, Ints]:
    """Where each class of tokens leads, [C, Q], and the class of each token [V], or NOWHERE.

    Token by token, byte after byte, but tokens that have led to the same so far go together.
    """
    count = len(table)
    letters, letter = np.unique(table, axis=1, return_inverse=True)
    letter = letter.ravel()
    down = np.vstack((letters, np.full((1, letters.shape[1]), NOWHERE)))  # NOWHERE is its last row
    lengths = np.array([len(word) if word else 0 for word in words])
    spelt = np.zeros((len(words), max(int(lengths.max(initial=0)), 1)), dtype=np.int64)
    for token, word in enumerate(words):
        if word:
            spelt[token, : len(word)] = np.frombuffer(word, np.uint8)
    columns = np.arange(count)[None]
    classes = np.where(lengths > 0, 0, NOWHERE)
    done: list[Ints] = []
    result = np.full(len(words), NOWHERE)
    total = 0
    for place in range(spelt.shape[1]):
        alive = (classes != NOWHERE) & (lengths > place)
        keys = classes[alive] * letters.shape[1] + letter[spelt[alive, place]]
        pairs, which = np.unique(keys, return_inverse=True)
        before, by = pairs // letters.shape[1], pairs % letters.shape[1]
        if len(pairs) * count > LARGEST:
            raise ConfigError(
                f"the grammar has {count:,} states, too many for a vocabulary of {len(words):,}; "
                "bound what repeats, or say it in a simpler way"
            )
        columns = down[columns[before], by[:, None]]
        columns, merged = np.unique(columns, axis=0, return_inverse=True)
        useful = (columns != NOWHERE).any(1)
        renamed = np.where(useful, np.cumsum(useful) - 1, NOWHERE)
        classes = np.full(len(words), NOWHERE)
        classes[alive] = renamed[merged.ravel()[which.ravel()]]
        columns = columns[useful]
        ready = (classes != NOWHERE) & (lengths == place + 1)
        result[ready] = classes[ready] + total
        done.append(columns)
        total += len(columns)
    return np.vstack(done), result


def _with_end(
    columns: Ints, classes: Ints, final: Bools, ends: list[int], after: list[int]
) -> tuple[Ints, Ints]:
    """One more state, the last: final states lead there by `ends`, and it to itself by `after`."""
    last = len(final)
    columns = np.column_stack((columns, np.full(len(columns), NOWHERE)))
    # every class in two kinds, without and with a place after the end; one more for tokens of none
    columns = np.vstack((columns, np.full((1, last + 1), NOWHERE)))
    count = len(columns)
    columns = np.vstack((columns, columns))
    columns[count:, last] = last
    classes = np.where(classes == NOWHERE, count - 1, classes)
    classes[after] += count
    ending = np.append(np.where(final, last, NOWHERE), NOWHERE)
    closing = ending.copy()
    closing[last] = last
    columns = np.vstack((columns, ending, closing))
    classes[ends] = 2 * count
    classes[[end for end in ends if end in set(after)]] = 2 * count + 1
    return columns, classes


@dataclass(frozen=True, eq=False)
class Automaton:
    """A grammar over tokens. Every state and class is useful: on some way from the first state,
    0, to a final one."""

    table: Ints  # [Q, C] the next state, or NOWHERE
    classes: Ints  # [V] the class of each token, or NOWHERE
    final: Bools  # [Q]

    @classmethod
    def trimmed(cls, table: Ints, classes: Ints, final: Bools) -> "Automaton":
        """Only what is useful of a table; state 0 stays, also where nothing is."""
        ways = np.zeros((len(table), len(table)), dtype=np.bool_)
        source, label = (table != NOWHERE).nonzero()
        ways[source, table[source, label]] = True
        forward = _closure(ways, np.arange(len(table)) == 0)
        useful = forward & _closure(ways.T, final)
        useful[0] = True
        renamed = np.append(np.where(useful, np.cumsum(useful) - 1, NOWHERE), NOWHERE)
        table = renamed[table[useful]]
        present = np.isin(np.arange(table.shape[1]), classes)
        kept, merged = np.unique(table, axis=1, return_inverse=True)
        merged = np.where(present, merged.ravel(), NOWHERE)
        live = (kept != NOWHERE).any(0) & np.isin(np.arange(kept.shape[1]), merged)
        rank = np.append(np.where(live, np.cumsum(live) - 1, NOWHERE), NOWHERE)
        classes = np.where(classes == NOWHERE, NOWHERE, rank[merged[classes]])
        return cls(kept[:, live], classes, final[useful])

    @property
    def num_states(self) -> int:
        return len(self.table)

    @property
    def num_classes(self) -> int:
        return self.table.shape[1]

    @cached_property
    def edges(self) -> "Edges":
        return Edges.of(self.table)

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

    def completable(self, count: int) -> Bools:
        """[count + 1, Q] whether exactly so many tokens lead from a state to a final one."""
        found = np.zeros((count + 1, self.num_states), dtype=np.bool_)
        found[0] = self.final
        edges = self.edges
        for number in range(count):
            np.logical_or.at(found[number + 1], edges.source, found[number][edges.target])
        return found


def _closure(ways: Bools, start: Bools) -> Bools:
    """The states that can be reached from some, these included: ways [Q, Q]."""
    reached = frontier = start
    while frontier.any():
        frontier = ways[frontier].any(0) & ~reached
        reached = reached | frontier
    return reached


@dataclass(frozen=True, eq=False)
class Edges:
    """Pairs of states that tokens connect, sorted by source, and the sets of classes that do;
    and in which order, and from where on, they are summed up."""

    source: Ints  # [E]
    target: Ints  # [E]
    sets: Ints  # [E] the set of each edge
    fan: Ints  # [Q, D] the edges that leave each state, filled up with E
    member: Bools  # [S, C]
    sources: Ints  # states with edges, and where theirs start
    source_start: Ints
    to_target: Ints  # [E] edges sorted by target
    targets: Ints
    target_start: Ints
    to_set: Ints  # [E] edges sorted by set
    set_start: Ints  # [S]
    pair_class: Ints  # classes of the sets, set after set
    pair_start: Ints  # [S]
    class_pair: Ints  # sets of the classes, class after class
    class_start: Ints  # [C]

    @classmethod
    def of(cls, table: Ints) -> "Edges":
        states, labels = (table != NOWHERE).nonzero()
        keys = states * len(table) + table[states, labels]
        order = np.argsort(keys, kind="stable")
        pairs, starts = np.unique(keys[order], return_index=True)
        known: dict[bytes, int] = {}
        parts = np.split(labels[order], starts[1:]) if len(pairs) else []
        sets = np.array([known.setdefault(p.tobytes(), len(known)) for p in parts], dtype=np.int64)
        member = np.zeros((len(known), table.shape[1]), dtype=np.bool_)
        for spelt, number in known.items():
            member[number, np.frombuffer(spelt, labels.dtype)] = True
        source, target = pairs // len(table), pairs % len(table)
        degree = np.bincount(source, minlength=len(table))
        fan = np.full((len(table), max(int(degree.max(initial=0)), 1)), len(pairs))
        fan[source, np.arange(len(pairs)) - (np.cumsum(degree) - degree)[source]] = np.arange(
            len(pairs)
        )
        sources, source_start = np.unique(source, return_index=True)
        to_target, targets, target_start = _sorted_by(target)
        to_set, _, set_start = _sorted_by(sets)
        of_set, pair_class = member.nonzero()
        of_class, class_pair = member.T.nonzero()
        return cls(
            source=source,
            target=target,
            sets=sets,
            fan=fan,
            member=member,
            sources=sources,
            source_start=source_start,
            to_target=to_target,
            targets=targets,
            target_start=target_start,
            to_set=to_set,
            set_start=set_start,
            pair_class=pair_class,
            pair_start=np.unique(of_set, return_index=True)[1],
            class_pair=class_pair,
            class_start=np.unique(of_class, return_index=True)[1],
        )


def _sorted_by(keys: Ints) -> tuple[Ints, Ints, Ints]:
    """The order of edges by keys [E], the keys that there are, and where each starts in it."""
    order = np.argsort(keys, kind="stable")
    present, starts = np.unique(keys[order], return_index=True)
    return order, present, starts
