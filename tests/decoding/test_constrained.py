"""A step rule within a grammar: the law of what it draws, and that it always completes a text."""

import itertools
import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from fixed_laws import END, MASK, PATTERNS, Fixed, empty, laws, over, valid, whole

from sfumato.decoding.constrained import Span, constrain
from sfumato.decoding.filters import Temperature, TopK
from sfumato.decoding.loops import denoise, generate
from sfumato.decoding.remask import Cap, Remasking, Wino
from sfumato.decoding.step import Around
from sfumato.decoding.times import even_times
from sfumato.decoding.unmask import LeftToRight, RandomOrder
from sfumato.errors import ConfigError
from sfumato.grammar.grammar import Grammar
from sfumato.noise.schedules import Linear
from sfumato.rng import Rng


def at_once(automaton, logits, rows, filters=(), seed=0):
    """Every position decided in one step."""
    rule = constrain(LeftToRight(Linear()), automaton, whole(rows, len(logits)))
    pages = denoise(
        Fixed(logits),
        empty(rows, len(logits)),
        rule,
        even_times(1),
        Rng.from_seed(seed, rows),
        filters=filters,
    )
    return next(iter(pages)).tokens


def test_a_request_needs_no_table_of_states_by_states():
    """Of the numbers of tokens that complete a text, only those that there is room for."""
    words = [bytes([byte]) for byte in range(256)]
    automaton = Grammar.regex(".{0,2000}").over([*words, None], end=256)
    assert automaton.num_states > 15_000
    automaton.edges  # noqa: B018
    tracemalloc.start()
    try:
        rule = constrain(LeftToRight(Linear()), automaton, [Span(0, 0, 64)])
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rule.ahead.shape == (65, automaton.num_states)
    assert most < 10 * rule.ahead.nbytes


def scores(logits, texts):
    """log p of every text's tokens [number, length] up to its first end: padding costs nothing."""
    logp = logits.double().log_softmax(-1).numpy()
    each = logp[np.arange(texts.shape[1]), texts]
    return np.where((np.cumsum(texts == END, 1) - (texts == END)) > 0, 0.0, each)


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_samples_follow_the_law_given_the_grammar(pattern, ends):
    length, rows = 4, 4000
    texts = valid(pattern, length, ends)
    if not len(texts):
        pytest.skip("no text of this length")
    logits = laws(length, seed=len(pattern))
    score = scores(logits, texts).sum(1)
    expected = np.exp(score - score.max())
    expected /= expected.sum()
    tokens = at_once(over(pattern, ends), logits, rows).numpy()
    counts = (tokens[:, None] == texts[None]).all(2).sum(0)
    assert counts.sum() == rows  # nothing else
    large = expected * rows > 5
    chi = ((counts - expected * rows) ** 2 / (expected * rows))[large].sum()
    assert chi < large.sum() + 5 * np.sqrt(2 * large.sum()) + 1


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_greedy_text_is_the_most_likely_one(pattern, ends):
    for length, seed in itertools.product((3, 5), range(4)):
        texts = valid(pattern, length, ends)
        if not len(texts):
            continue
        logits = laws(length, seed)
        best = texts[scores(logits, texts).sum(1).argmax()]
        found = at_once(over(pattern, ends), logits, 1, [Temperature(0)])
        assert found[0].tolist() == best.tolist()


@dataclass(frozen=True)
class Noting(Around):
    """A rule that keeps the logits it is given, and decides nothing."""

    kept: list

    def __call__(self, canvas, seen, t, s, rng):
        self.kept.append((seen.where, seen.logits))
        return canvas


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("pattern", PATTERNS[:3])
@pytest.mark.parametrize("decided", [{}, {1: 1}, {0: 0, 3: 1}], ids=str)
def test_a_rule_judges_by_the_marginals_given_the_grammar(pattern, ends, decided):
    """Also, for a rule that verifies, of decided positions: given all the others."""
    length = 5
    texts = valid(pattern, length, ends)
    possible = [text for text in texts if all(text[p] == v for p, v in decided.items())]
    if not possible:
        pytest.skip("no such text")
    logits, canvas = laws(length), empty(1, length)
    for place, token in decided.items():
        canvas.tokens[0, place], canvas.noisy[0, place] = token, False
    rule = Noting(Wino(Linear(), MASK), [])
    bound = constrain(rule, over(pattern, ends), whole(1, length))
    rng = Rng.from_seed(0)
    next(denoise(Fixed(logits), canvas, bound, even_times(1), rng))
    where, seen = rule.kept[0]
    assert bool(where.all())
    for place in range(length):
        fixed = {p: v for p, v in decided.items() if p != place}
        marginal = np.zeros(7)
        for text in texts:
            if all(text[p] == v for p, v in fixed.items()):
                free = [p for p in range(length) if p not in fixed]
                marginal[text[place]] += np.exp(scores(logits, text[None])[0, free].sum())
        found = seen[place].softmax(-1).numpy()
        np.testing.assert_allclose(found, marginal / marginal.sum(), rtol=1e-4, atol=1e-6)


def test_a_block_leaves_room_for_the_rest():
    """Its law is that of its own tokens and of all that can follow, were that like the block."""
    pattern, size, rows = "(ab)*a{2}b|b", 2, 3000
    texts = valid(pattern, 4, True)
    starts = np.unique(texts[:, :size], axis=0)
    logits = laws(4, seed=3)
    mean = logits[:size].double().softmax(-1).mean(0).log().expand(2, -1)
    alike = torch.cat((logits[:size].double(), mean))
    chance = np.exp(scores(alike, texts).sum(1))
    expected = ((texts[None, :, :size] == starts[:, None]).all(2) * chance).sum(1)
    expected /= expected.sum()
    rule = constrain(LeftToRight(Linear()), over(pattern, True), whole(rows, 4))
    draws = generate(
        Fixed(logits), empty(rows, 4), rule, Rng.from_seed(0, rows), num_steps=2, block=size
    )
    *_, last = draws
    tokens = last.tokens.numpy()
    assert {*map(tuple, tokens.tolist())} <= {*map(tuple, texts.tolist())}
    share = (tokens[:, None, :size] == starts[None]).all(2).mean(0)
    np.testing.assert_allclose(share, expected, atol=0.03)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_decided_first_what_is_left_can_be_completed(seed):
    """Steep laws, that change at every look, against a grammar with few texts."""

    @dataclass(frozen=True)
    class Changing(Fixed):
        def __call__(self, tokens, t, where, *, segments=None):
            draws = int(tokens.sum()) + seed
            return 60 * laws(int(where.sum()), draws)

        leave_one_out = __call__

    rows, length = 8, 6
    texts = {tuple(text) for text in valid("(a|b)(ab){1,2}|ébé?|b", length, True).tolist()}
    automaton = over("(a|b)(ab){1,2}|ébé?|b", True)
    for step in (RandomOrder(Linear()), Remasking(Linear(), MASK, Cap(0.4)), Wino(Linear(), MASK)):
        rule = constrain(step, automaton, whole(rows, length))
        rng = Rng.from_seed(seed, rows)
        for block in (None, 4):
            pages = generate(
                Changing(laws(1)), empty(rows, length), rule, rng, num_steps=4, block=block
            )
            *_, last = pages
            assert {*map(tuple, last.tokens.tolist())} <= texts


def test_a_cut_law_is_left_only_where_no_text_is_within_it():
    logits = torch.zeros(3, 7)
    logits[:, [1, 4]] = torch.tensor([3.0, 2.0])  # the two likeliest, never valid together
    logits[:, MASK] = -torch.inf
    tokens = at_once(over("a*b|aaa", False), logits, 50, [TopK(1)])
    assert {*map(tuple, tokens.tolist())} == {(0, 0, 1)}
    assert {*map(tuple, at_once(over("aaa", False), logits, 9, [TopK(1)]).tolist())} == {(0, 0, 0)}


def test_extreme_laws_are_no_end_of_the_sums():
    """Hundreds of positions, each with a next to impossible token that the grammar needs."""
    length = 300
    logits = torch.full((length, 7), 0.0)
    logits[:, 0], logits[:, END], logits[:, MASK] = -1e4, 50.0, -torch.inf
    tokens = at_once(over("a{299}", True), logits, 2)
    assert tokens[0, :299].tolist() == [0] * 299
    logits[:, 0] = -torch.inf
    tokens = at_once(over("a{299}", True), logits, 2, [Temperature(0)])
    assert tokens[0, :299].tolist() == [0] * 299


def test_ways_that_are_closed_do_not_drown_those_that_are_open():
    """After a b only next to impossible tokens follow; the likely ones only after an a."""
    logits, canvas = torch.zeros(20, 7), empty(1, 20)
    logits[:, 0] = -1e4
    canvas.tokens[0, 0], canvas.noisy[0, 0] = 1, False
    rule = constrain(LeftToRight(Linear()), over("ba{19}|ab{19}", False), whole(1, 20))
    pages = denoise(Fixed(logits), canvas, rule, even_times(1), Rng.from_seed(0))
    assert next(iter(pages)).tokens[0].tolist() == [1] + [0] * 19


def test_logits_that_are_not_numbers_are_refused():
    with pytest.raises(ConfigError, match="not numbers; check the model"):
        at_once(over("a*", True), torch.full((3, 7), torch.nan), 1)
