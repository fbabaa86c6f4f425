"""Where texts of a grammar end, and how far their law is from the model's, by enumeration."""

import itertools

import numpy as np
import pytest
import torch
from grammar_worlds import END, MASK, PAD, WORDS, A, B, Listed, padded_law

from sfumato.decoding.constrained import Span, constrain
from sfumato.decoding.filters import TopP
from sfumato.decoding.loops import generate
from sfumato.decoding.page import blank
from sfumato.decoding.unmask import LeftToRight, RandomOrder
from sfumato.grammar.grammar import Grammar
from sfumato.lm.model import DiffusionLM
from sfumato.noise.corruption import Masked
from sfumato.noise.schedules import Linear
from sfumato.rng import Rng


def written(world, automaton, rows, step, filters=(), **more):
    length = world.texts.shape[1]
    fixed = torch.zeros(rows, length, dtype=torch.bool)
    page = blank(Masked(5, MASK), fixed.long(), fixed, Rng.from_seed(0, rows))
    rule = constrain(step, automaton, [Span(row, 0, length) for row in range(rows)])
    pages = generate(world, page, rule, Rng.from_seed(1, rows), filters=filters, **more)
    *_, last = pages
    return last.tokens


def lengths(tokens) -> np.ndarray:
    """Shares of the numbers of letters."""
    counts = (tokens <= B).sum(1)
    return np.bincount(counts.numpy(), minlength=tokens.shape[1] + 1) / len(tokens)


WAYS = [
    ({"num_steps": 1}, 0.03),
    ({}, 0.03),
    ({"block": 2}, 0.08),
    ({"block": 2, "lookahead": False}, 0.08),
    ({"block": 3, "num_steps": 3}, 0.08),
]


@pytest.mark.parametrize(("more", "far"), WAYS, ids=str)
@pytest.mark.parametrize(("hazard", "forbidden"), [(0.1, 0.3), (0.02, 0.2), (0.4, 0.05)])
def test_texts_end_as_the_model_ends_them(more, far, hazard, forbidden):
    """However many ways there are to go on, and however many pads must follow an end."""
    length, rows = 5, 1000
    world = padded_law(length, hazard, forbidden)
    automaton = Grammar.regex("a+").over(WORDS, never={MASK}, end=END, after={END, PAD})
    found = lengths(written(world, automaton, rows, LeftToRight(Linear()), **more))
    keeps = (1 - forbidden) ** np.arange(length + 1)
    expected = np.array(
        [hazard * (1 - hazard) ** n for n in range(length)] + [(1 - hazard) ** length]
    )
    expected = expected * keeps * (np.arange(length + 1) > 0)
    expected /= expected.sum()
    assert np.abs(found - expected).sum() / 2 < far + 0.04


def test_a_nucleus_holds_the_end_where_what_is_likelier_is_forbidden():
    world = padded_law(8, 0.05, 0.9)
    automaton = Grammar.regex("a+").over(WORDS, never={MASK}, end=END, after={END, PAD})
    found = lengths(written(world, automaton, 500, LeftToRight(Linear()), [TopP(0.9)]))
    assert found[8] < 0.1


def test_the_law_of_other_grammars_is_not_the_joint_law_of_the_model():
    """Total variation to the model's joint law given the grammar, one position a step."""
    rows, far, anyhow = 1500, [], []
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        texts = torch.tensor(list(itertools.product((A, B), repeat=5)))
        scores = 1.5 * torch.randn(len(texts), generator=draw, dtype=torch.float64)
        world = Listed(texts, scores.softmax(0))
        automaton = Grammar.regex("(ab|b)*a?b?a").over(WORDS, never={MASK, END, PAD})
        valid = torch.tensor([automaton.accepts(0, text) for text in texts.tolist()])
        law = world.law * valid / (world.law * valid).sum()
        for step, where in ((LeftToRight(Linear()), far), (RandomOrder(Linear()), anyhow)):
            tokens = written(world, automaton, rows, step)
            counts = (tokens[:, None] == texts[None]).all(2).double().mean(0)
            assert float(counts[~valid].sum()) == 0
            where.append(float((counts - law).abs().sum() / 2))
    assert 0.1 < np.mean(far) < 0.5  # docs/grammar.md says so
    assert 0.1 < np.mean(anyhow) < 0.5


def test_the_shipped_model_ends_a_text_of_letters_alone():
    lm = DiffusionLM.from_pretrained("stories")
    for seed in range(3):
        written = lm.generate("The little dog was very ", regex="[a-z ]+", seed=seed)
        assert 1 <= len(written.tokens[0]) < 60
