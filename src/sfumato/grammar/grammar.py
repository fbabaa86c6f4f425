"""Grammars: which texts are allowed, and which sequences of tokens spell them.

A regular expression, a JSON schema or a list of texts becomes an automaton over characters, that
one over bytes, and that, for a vocabulary, one over tokens. A token is its bytes, so it may be part
of a character. Tokens that lead from every state to the same states are one class, and arithmetic
is over classes: for a JSON schema there are some hundred, whatever the size of the vocabulary.

Letters: Q states, V tokens, C classes, E edges (pairs of states that some class connects), S sets
(of classes that connect a pair; many pairs have the same).
"""

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from sfumato.errors import ConfigError
from sfumato.grammar.automaton import Automaton, token_columns, with_end
from sfumato.grammar.dfa import BUDGET, NOWHERE, Bools, Budget, Dfa, Ints
from sfumato.grammar.json_schema import schema_automaton
from sfumato.grammar.json_text import words
from sfumato.grammar.patterns import read_pattern
from sfumato.grammar.products import texts_of
from sfumato.grammar.regular import automaton
from sfumato.grammar.utf8 import byte_table

LONGEST = 100_000  # characters of a regular expression


@dataclass(frozen=True, eq=False)
class Grammar:
    """A language of whole texts."""

    characters: Dfa
    budget: Budget = BUDGET

    @classmethod
    def regex(cls, pattern: str, budget: Budget = BUDGET) -> "Grammar":
        """All of a text matches the pattern; `patterns.py` says what may be in one."""
        if not isinstance(pattern, str):
            raise ConfigError(f"a regular expression is a string, got {pattern!r}")
        if len(pattern) > LONGEST:
            raise ConfigError(
                f"the regular expression has {len(pattern):,} characters, more than {LONGEST:,}; "
                "many texts are better given as choices"
            )
        return _of_regex(pattern, budget)

    @classmethod
    def json_schema(
        cls, schema: Mapping[str, Any] | bool | str, budget: Budget = BUDGET
    ) -> "Grammar":
        """JSON that is valid under a schema; see `json_schema.py` for what it may ask for."""
        if isinstance(schema, str):
            return _of_schema(schema, budget)
        try:
            text = json.dumps(schema)
            known = json.loads(text) == schema
        except (TypeError, ValueError, RecursionError):
            known, text = False, ""
        if known:
            return _of_schema(text, budget)
        return cls(schema_automaton(schema, budget), budget)  # which says what is no JSON in it

    @classmethod
    def choices(cls, choices: Sequence[str], budget: Budget = BUDGET) -> "Grammar":
        """One of these texts."""
        if isinstance(choices, str) or not all(isinstance(one, str) for one in choices):
            raise ConfigError(f"choices must be a list of texts, got {choices!r}")
        if not choices:
            raise ConfigError("no choices; give at least one text")
        for one in choices:
            if any(0xD800 <= ord(sign) <= 0xDFFF for sign in one):
                raise ConfigError(f"the choice {one!r} has half a character; give whole ones")
        return _of_choices(tuple(choices), budget)

    def texts(self, most: int) -> list[str] | None:
        """All texts; None where there are more than `most`."""
        return texts_of(self.characters, most)

    @cached_property
    def moves(self) -> tuple[Ints, Bools]:
        """The automaton over bytes: [Q, 256] the next state, or NOWHERE; and final states."""
        table, final = byte_table(self.characters)
        self.budget.check(len(table), "the grammar, in bytes,")
        return table, final

    def over(
        self,
        words: Sequence[bytes | None],  # [V] the bytes of each token; None: never written
        *,
        never: Set[int] = frozenset(),
        end: int | None = None,
        after: Set[int] | None = None,
    ) -> "Automaton":
        """The automaton over these tokens, of which some are `never` written.

        With an `end`, a text may be shorter than its room: from an accepting state this token leads
        into a last state, in which any of `after` may follow (None: any token). State 1 is that
        before a space and then a text: a space that is given may be left to the token behind it.
        The last few are kept.
        """
        behind = None if after is None else frozenset(after)
        return _over(self, tuple(words), frozenset(never), end, behind)


@lru_cache(maxsize=4)
def _over(
    grammar: Grammar,
    words: tuple[bytes | None, ...],
    never: frozenset[int],
    end: int | None,
    after: frozenset[int] | None,
) -> "Automaton":
    words = tuple(None if token in never else word for token, word in enumerate(words))
    table, final = grammar.moves
    space = np.full((1, 256), NOWHERE)
    space[0, ord(" ")] = 0
    table = np.vstack((table[:1], space, table[1:]))
    table[table > 0] += 1
    final = np.insert(final, 1, False)
    columns, classes = token_columns(table, words)
    if end is not None and end not in never:
        later = (set(range(len(words))) if after is None else after) - never
        columns, classes = with_end(columns, classes, final, end, sorted(later))
        final = np.append(final, True)
        padding = np.array(sorted((after or set()) - {end}), dtype=np.int64)
        return Automaton.trimmed(columns, classes, final, len(final) - 1, padding)
    return Automaton.trimmed(columns, classes, final)


@lru_cache(maxsize=16)
def _of_regex(pattern: str, budget: Budget) -> Grammar:
    shown = pattern if len(pattern) <= 60 else pattern[:57] + "..."
    found = automaton(read_pattern(pattern), f"the regular expression {shown!r}", budget)
    if found.empty:
        raise ConfigError(f"no text matches the regular expression {shown!r}")
    return Grammar(found, budget)


@lru_cache(maxsize=16)
def _of_choices(choices: tuple[str, ...], budget: Budget) -> Grammar:
    return Grammar(words(choices, "the list of choices", budget), budget)


@lru_cache(maxsize=16)
def _of_schema(schema: str, budget: Budget) -> Grammar:
    return Grammar(schema_automaton(schema, budget), budget)
