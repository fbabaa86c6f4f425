"""Grammars of a few texts: each is drawn by the model's own law."""

from functools import partial

import numpy as np
import pytest
import torch
from tiny_lm import CANVAS, UNIFORM, tiny_lm

from sfumato.decoding.few_texts import Finite, draw_texts, score
from sfumato.decoding.rules import STEPS
from sfumato.decoding.writing import canvases
from sfumato.grammar.grammar import Grammar
from sfumato.lm.gaps import log_probability
from sfumato.lm.model import DiffusionLM

CHOICES = ("fox", "a fox met", "caf\u00e9")


def law(lm, request, row=0):
    """The candidates of a row, [N, W], where their own tokens are, and log p of each."""
    finite = Finite.of(request, lm.corruption, lm.encode, lm.special)
    assert finite is not None
    found, width = finite.candidates(row), request.canvas.tokens.shape[1]
    laid = torch.stack([finite.laid(row, one, width) for one in found])
    asked = torch.stack([finite.asked(row, one, width) for one in found])
    cut = lm.autoregressive
    with lm.inference():
        nats = score(request, row, laid, asked, finite.order, partial(canvases, lm.writer), cut=cut)
    return laid, asked, nats


def test_all_texts_of_a_grammar():
    assert Grammar.regex("(a|b)c?|").texts(5) == ["", "a", "ac", "b", "bc"]
    assert Grammar.choices(["caf\u00e9", "x"]).texts(2) == ["caf\u00e9", "x"]
    assert Grammar.regex("(a|b)c?|").texts(4) is None
    assert Grammar.regex("a*").texts(100) is None


CONFIGS = ({}, {"objective": "next_token"}, {"attention": "block_causal", "block_size": 8})


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("prompt", ["The ", "The fox", ""])
@pytest.mark.parametrize("more", [{}, {"length": 9}], ids=str)
def test_scores_are_those_of_the_model_left_to_right(config, prompt, more):
    """By the function that judges gaps, on the same canvas."""
    lm = tiny_lm(**config)
    request = lm.start(prompt, choices=CHOICES, seed=0, **more)
    laid, asked, nats = law(lm, request)
    tokens = torch.where(asked, laid, request.canvas.tokens)
    ids = [lm.prompts.opening(lm.encode([lm.prompts.stem(prompt)])[0])] * len(laid)
    denoiser, shown = lm.denoiser, request.canvas.fixed.expand(len(laid), -1)
    if request.left is not None:
        denoiser = denoiser.given(left=torch.tensor(ids))
    never = torch.tensor(sorted(lm.never - lm.reader.ends))

    def written_only(tokens, t, where):
        logits = denoiser(tokens, t, where)
        return logits.index_fill(-1, never, -torch.inf)

    expected = log_probability(written_only, lm.corruption, tokens, shown, asked)
    torch.testing.assert_close(nats, expected, rtol=1e-4, atol=1e-4)
    ends = [ids[-1] for ids in (row[own].tolist() for row, own in zip(laid, asked, strict=True))]
    assert set(ends) == {lm.special.eos}


@pytest.mark.parametrize("temperature", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_texts_are_drawn_by_the_law(config, temperature):
    lm, rows = tiny_lm(**config), 300
    options = {"choices": CHOICES, "seed": 1, "temperature": temperature, "top_p": 0.5}
    request = lm.start("The ", num_samples=rows, **options)
    laid, asked, nats = law(lm, request)
    if temperature:
        expected = (nats / temperature).softmax(0).numpy()
    else:
        expected = (nats == nats.max()).double().numpy()
    finite = Finite.of(request, lm.corruption, lm.encode, lm.special)
    with lm.inference():
        drawn = draw_texts(request, finite, partial(canvases, lm.writer), cut=lm.autoregressive)
    written = drawn.filters[-1].tokens
    counts = (written[:, None] == laid[None]).all(2).double().mean(0).numpy()
    np.testing.assert_allclose(counts, expected, atol=3.5 * np.sqrt(0.25 / rows))
    texts = lm.generate("The ", **options).texts
    best = int((written[0] == laid).all(1).nonzero()[0])
    assert texts == (sorted(CHOICES)[best],)
    assert int(asked.sum()) > 0


@pytest.mark.parametrize("step", STEPS)
def test_every_rule_writes_what_was_drawn(step):
    lm = tiny_lm()
    for more in ({}, {"length": 12, "block": 5, "num_steps": 3}, {"temperature": 0}):
        one = lm.generate(["The ", ""], choices=CHOICES, step=step, seed=2, **more)
        assert set(one.texts) <= set(CHOICES)
    alone = lm.generate("The ", choices=CHOICES, step=step, seed=2).texts
    both = lm.generate(["The ", "A much longer one"], choices=CHOICES, step=step, seed=2).texts
    assert alone == both[:1]


def test_the_likelier_text_is_written_however_long_it_is():
    """Of independent positions, a text is likely by how many of its tokens are likely alone."""
    lm = tiny_lm()
    request = lm.start("The ", choices=CHOICES, seed=0)
    _, _, nats = law(lm, request)
    for step in ("left_to_right", "confidence", "wino"):
        written = lm.generate("The ", choices=CHOICES, step=step, temperature=0, seed=3)
        assert written.text == "The " + sorted(CHOICES)[int(nats.argmax())]


def test_gaps_are_filled_by_the_joint_law():
    lm = tiny_lm()
    lengths = [len(ids) for ids in lm.encode([" fox", " bear", " ball"])]
    size = max(set(lengths), key=lengths.count)
    request = lm.start_infill(
        "a ____ met a ____.", gap_length=size, choices=["fox", "bear", "ball"], seed=0
    )
    laid, asked, nats = law(lm, request)
    assert len(laid) == lengths.count(size) ** 2
    tokens = torch.where(asked, laid, request.canvas.tokens)
    never = torch.tensor(sorted(lm.never))

    def written_only(tokens, t, where):
        return lm.denoiser(tokens, t, where).index_fill(-1, never, -torch.inf)

    fixed = request.canvas.fixed.expand(len(laid), -1)
    expected = log_probability(written_only, lm.corruption, tokens, fixed, asked)
    torch.testing.assert_close(nats, expected, rtol=1e-4, atol=1e-4)
    filled = lm.infill(
        "a ____ met a ____.", gap_length=size, choices=["fox", "bear", "ball"], seed=0
    )
    assert {*filled.fills[0]} <= {"fox", "bear", "ball"}


def test_the_stream_shows_the_text_as_it_is_written():
    lm = tiny_lm()
    pages = list(lm.stream("The ", choices=["caf\u00e9 noir", "fox"], seed=0))
    assert len(pages[-1].canvas.tokens[0]) == CANVAS
    assert 2 <= len(pages) <= 1 + CANVAS
    assert not bool(pages[-1].canvas.noisy.any())


def test_what_is_not_few_or_not_masked_keeps_to_the_grammar_in_the_other_way():
    lm = tiny_lm()
    request = lm.start("The", regex="[a-z]{1,9}", seed=0)
    assert Finite.of(request, lm.corruption, lm.encode, lm.special) is None
    many = tuple(f"{number:03}" for number in range(300))
    request = lm.start("The", choices=many, seed=0)
    assert Finite.of(request, lm.corruption, lm.encode, lm.special) is None
    noisy = tiny_lm(UNIFORM)
    request = noisy.start("The", choices=CHOICES, seed=0)
    assert Finite.of(request, noisy.corruption, noisy.encode, noisy.special) is None


def test_the_shipped_model_writes_the_text_that_it_prefers():
    """Every second token of the longer one is likely alone, and together they are not."""
    lm = DiffusionLM.from_pretrained("stories")
    written = lm.generate(
        "The little dog was very ",
        choices=("hungry", "excited to go to the park"),
        num_samples=24,
        length=12,
        seed=0,
    )
    assert written.texts.count("hungry") >= 20
