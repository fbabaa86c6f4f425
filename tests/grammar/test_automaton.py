"""Automata over tokens accept the texts that match, and know how many tokens complete one."""

import itertools

import pytest
from fixed_laws import END, MASK, PATTERNS, WORDS, accepts, over, valid

from sfumato.grammar.dfa import NOWHERE
from sfumato.grammar.grammar import Grammar


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_automaton_accepts_the_texts_that_match(pattern, ends):
    automaton = over(pattern, ends)
    for length in range(5):
        for tokens in itertools.product(range(7), repeat=length):
            state = automaton.after(0, tokens)
            accepted = state != NOWHERE and bool(automaton.final[state])
            expected = MASK not in tokens and accepts(pattern, tokens, ends)
            assert accepted == expected, tokens


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_numbers_of_tokens_that_complete_a_text(pattern, ends):
    automaton = over(pattern, ends)
    found = automaton.completable(5)[1:, 0].tolist()
    assert found == [len(valid(pattern, length, ends)) > 0 for length in range(1, 6)]


def test_numbers_of_tokens_are_the_same_forwards_and_backwards():
    for pattern, ends in itertools.product(PATTERNS, (True, False)):
        automaton = over(pattern, ends)
        found = automaton.completable(12)
        for state in range(automaton.num_states):
            forth = list(itertools.islice(automaton.lengths(state), 13))
            assert forth + [False] * (13 - len(forth)) == found[:, state].tolist()


def test_tokens_that_lead_alike_are_one_class():
    words = [bytes([byte]) for byte in range(256)]
    automaton = Grammar.regex("[a-z]+[0-9]").over(words)
    assert automaton.num_classes == 3  # letters, digits, and a space before them
    assert automaton.num_states == 4
    assert (automaton.classes == NOWHERE).sum() == 256 - 37


def test_what_follows_an_end_may_be_free():
    automaton = Grammar.regex("ab").over(WORDS, never={MASK}, end=END)
    for tail in itertools.product(range(6), repeat=2):
        assert automaton.final[automaton.after(0, [2, END, *tail])]
    assert automaton.after(0, [2, 0]) == NOWHERE
