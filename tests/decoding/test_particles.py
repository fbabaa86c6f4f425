"""Weighted canvases: their weights and their law, by enumeration."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from grammar_worlds import END, MASK, PAD, WORDS, A, B, Listed, padded_law
from tiny_lm import tiny_lm

from sfumato.decoding.constrained import Span, constrain
from sfumato.decoding.loops import generate
from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.page import blank
from sfumato.decoding.particles import Weighted, multiplied, written
from sfumato.decoding.request import Request
from sfumato.decoding.unmask import LeftToRight, RandomOrder
from sfumato.errors import ConfigError
from sfumato.grammar.grammar import Grammar
from sfumato.noise.corruption import Masked
from sfumato.noise.schedules import Linear
from sfumato.rng import Rng
from sfumato.types import Canvas


def joint(seed: int):
    """A random law over 32 texts, the grammar of docs/grammar.md, and the law given that [S]."""
    draw = torch.Generator().manual_seed(seed)
    texts = torch.tensor(list(itertools.product((A, B), repeat=5)))
    scores = 1.5 * torch.randn(len(texts), generator=draw, dtype=torch.float64)
    world = Listed(texts, scores.softmax(0))
    automaton = Grammar.regex("(ab|b)*a?b?a").over(WORDS, never={MASK, END, PAD})
    valid = torch.tensor([automaton.accepts(0, text) for text in texts.tolist()])
    law = (world.law * valid / (world.law * valid).sum()).numpy()
    return world, automaton, law


def request_of(world, automaton, rows, count, step, seed=1) -> Request:
    length = world.texts.shape[1]
    fixed = torch.zeros(rows, length, dtype=torch.bool)
    rng = Rng.from_seed(seed, rows)
    return Request(
        options=GenerationOptions(regex="(ab|b)*a?b?a", particles=count),
        rows=((slice(0, length),),) * rows,
        canvas=blank(Masked(5, MASK), fixed.long(), fixed, rng),
        rng=rng,
        step=constrain(step, automaton, [Span(row, 0, length) for row in range(rows)]),
        filters=(),
    )


def run(world, **more):
    return lambda request: generate(world, request.canvas, request.step, request.rng, **more)


def shares(world, tokens) -> np.ndarray:
    """[S] of the texts of a world."""
    return (tokens[:, None] == world.texts).all(2).double().mean(0).numpy()


def marginals(world, prefix) -> np.ndarray:
    """[L, 5] the laws of all positions given the first tokens, by enumeration."""
    texts, law = world.texts.numpy(), world.law.numpy()
    law = law * (texts[:, : len(prefix)] == prefix).all(1)
    each = np.stack([np.bincount(texts[:, i], law, 5) for i in range(texts.shape[1])])
    return each / law.sum()


def proposed(world, automaton, text, lookahead: bool) -> float:
    """The probability of a text, written from left to right within the grammar: each token by all
    the texts that it leaves, or (no lookahead) by whether it leaves any."""
    length, whole = len(text), 1.0
    every = [t for t in itertools.product((A, B), repeat=length) if automaton.accepts(0, t)]
    for place in range(length):
        laws, sums = marginals(world, text[:place]), np.zeros(5)
        left = [t for t in every if t[:place] == tuple(text[:place])]
        for one in left:
            later = [laws[i, one[i]] for i in range(place, length)]
            sums[one[place]] += np.prod(later)
        if not lookahead:
            sums = np.where(np.isin(np.arange(5), [t[place] for t in left]), laws[place], 0)
        whole *= sums[text[place]] / sums.sum()
    return whole


@pytest.mark.parametrize("seed", range(2))
def test_a_weight_is_what_the_model_thinks_over_what_was_drawn(seed):
    """Two canvases a row: their effective number is never below one, so none is drawn anew."""
    world, automaton, _ = joint(seed)
    request = request_of(world, automaton, 40, 2, LeftToRight(Linear()))
    request, found = multiplied(request, 2, copies=True)
    *_, last = run(world)(request)
    nats = found[:, 0].numpy()
    p = dict(zip(map(tuple, world.texts.tolist()), world.law.tolist(), strict=True))
    found = {tuple(text): one for text, one in zip(last.tokens.tolist(), nats, strict=True)}
    assert len(found) > 5
    for text, one in found.items():
        expected = np.log(p[text] / proposed(world, automaton, text, True))
        assert one == pytest.approx(expected, abs=1e-4)


def test_canvases_that_are_drawn_anew_stand_for_as_much_as_before():
    """In the mean over 20,000 rows of the same canvases: each copy of one carries its weight."""
    rows, count = 20_000, 6
    nats = torch.tensor([[2.0, 0.0, -1.0, 0.5, -0.5, 1.0], [0.0, 3.0, 0.5, 1.0, -0.5, 0.0]])
    nats = nats.double().T.repeat(rows, 1)  # [B K, 2]: weights, and what completes a canvas
    before, rng = nats[:count, 0].exp(), Rng.from_seed(3, rows * count)
    tokens = torch.arange(count).repeat(rows)[:, None]
    noisy = torch.ones_like(tokens, dtype=torch.bool)
    page = Canvas(tokens, noisy, ~noisy, {"seen": tokens.clone()})
    rule: Any = RandomOrder(Linear())  # of which resampling asks nothing
    weighted = Weighted(rule, count, True, nats.clone())
    after = weighted.resampled(page, rng)
    assert torch.equal(after.memory["seen"], after.tokens)
    assert not torch.equal(after.tokens, tokens)
    total = torch.zeros(count, dtype=torch.float64)
    total.index_add_(0, after.tokens[:, 0], weighted.nats[:, 0].exp())
    assert (total / rows).tolist() == pytest.approx(before.tolist(), rel=0.1)
    # copies follow the weight with what completes them, and keep that
    shares = nats[:count].sum(1).softmax(0)
    copies = torch.bincount(after.tokens[:, 0], minlength=count) / (rows * count)
    assert copies.tolist() == pytest.approx(shares.tolist(), abs=0.005)
    assert torch.equal(weighted.nats[:, 1], nats[:count, 1][after.tokens[:, 0]])


def test_canvases_stay_where_no_few_have_all_of_the_weight_or_nothing_is_left_to_write():
    even = torch.tensor([[0.0, 0.1], [0.2, 0.0], [-0.1, 0.0]], dtype=torch.float64)
    poor = torch.tensor([[9.0, 0.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    nats = torch.cat((even, poor, poor))
    tokens = torch.arange(9)[:, None]
    noisy = torch.tensor([True] * 6 + [False] * 3)[:, None]
    rule: Any = RandomOrder(Linear())
    weighted = Weighted(rule, 3, True, nats.clone())
    after = weighted.resampled(Canvas(tokens, noisy, ~noisy), Rng.from_seed(0, 9))
    assert after.tokens[:, 0].tolist() == [0, 1, 2, 3, 3, 3, 6, 7, 8]
    assert torch.equal(weighted.nats[[0, 1, 2, 6, 7, 8]], nats[[0, 1, 2, 6, 7, 8]])


@pytest.mark.parametrize("place", [0, 2])
def test_what_completes_a_canvas_is_weighed_by_the_laws_that_the_step_saw(place):
    world, automaton, _ = joint(1)
    request = request_of(world, automaton, 20, 2, LeftToRight(Linear()))
    request, nats = multiplied(request, 2, copies=True)
    page = list(itertools.islice(run(world)(request), place + 1))[-1]
    every = [t for t in itertools.product((A, B), repeat=5) if automaton.accepts(0, t)]
    for text, found in zip(page.tokens.tolist(), nats[:, 1].tolist(), strict=True):
        laws = marginals(world, text[:place])
        left = [t for t in every if list(t[: place + 1]) == text[: place + 1]]
        mass = sum(np.prod([laws[i, t[i]] for i in range(place + 1, 5)]) for t in left)
        assert found == pytest.approx(np.log(mass), abs=1e-4)


@pytest.mark.parametrize("step", [LeftToRight(Linear()), RandomOrder(Linear())], ids=repr)
def test_more_canvases_are_nearer_to_the_joint_law(step):
    far = {}
    for count in (1, 4, 16):
        found = []
        for seed in (0, 1):
            world, automaton, law = joint(seed)
            *_, last = written(request_of(world, automaton, 200, count, step), run(world), False)
            found.append(np.abs(shares(world, last.tokens) - law).sum() / 2)
        far[count] = float(np.mean(found))
    assert far[1] > 0.2
    assert far[16] < far[4] < 0.8 * far[1]
    assert far[16] < 0.12  # of which 0.07 is that of counting 200 texts


TABLE = {  # of docs/grammar.md: total variation to each of four laws
    (True, 1): (0.52, 0.30, 0.24, 0.29),
    (True, 4): (0.20, 0.10, 0.03, 0.11),
    (True, 16): (0.04, 0.03, 0.01, 0.03),
    (False, 1): (0.56, 0.35, 0.30, 0.26),
    (False, 4): (0.26, 0.13, 0.06, 0.06),
    (False, 16): (0.06, 0.03, 0.01, 0.01),
}


@pytest.mark.parametrize("lookahead", [True, False])
def test_the_table_of_the_law_with_and_without_lookahead(lookahead):
    """By enumeration: of K texts that are drawn, one is picked by its weight."""
    rng, rows = np.random.default_rng(0), 40_000
    page = Path(__file__).parents[2].joinpath("docs", "grammar.md").read_text(encoding="utf-8")
    for seed in range(4):
        world, automaton, law = joint(seed)
        texts = law.nonzero()[0]
        own = [proposed(world, automaton, world.texts[i].tolist(), lookahead) for i in texts]
        assert sum(own) == pytest.approx(1)
        for count in (1, 4, 16):
            drawn = rng.choice(len(texts), (rows, count), p=own)
            weights = (law[texts] / own)[drawn]
            weights /= weights.sum(1, keepdims=True)
            found = np.bincount(drawn.ravel(), weights.ravel(), len(texts)) / rows
            far = np.abs(found - law[texts]).sum() / 2
            assert far == pytest.approx(TABLE[lookahead, count][seed], abs=0.01)
    for (ahead, count), far in TABLE.items():
        kind = "with" if ahead else "without"
        assert f"| {count} | {kind} | " + " | ".join(f"{one:.2f}" for one in far) + " |" in page


def test_where_a_text_ends_is_weighed_too():
    world = padded_law(4, 0.3, 0.4)
    automaton = Grammar.regex("a+").over(WORDS, never={MASK}, end=END, after={END, PAD})
    request = request_of(world, automaton, 400, 8, RandomOrder(Linear()))
    *_, last = written(request, run(world), False)
    valid = np.array([automaton.accepts(0, text) for text in world.texts.tolist()])
    law = world.law.numpy() * valid
    assert np.abs(shares(world, last.tokens) - law / law.sum()).sum() / 2 < 0.08


def test_a_row_does_not_depend_on_the_others_and_every_text_matches():
    lm = tiny_lm()
    more = {"regex": "(ab|b)*a?b?a", "length": 6, "particles": 3, "seed": 5}
    both = lm.generate(["The", "A cat"], step="random", **more)
    alone = lm.generate("The", step="random", **more)
    assert both.texts[0] == alone.texts[0]
    pages = list(lm.stream("The", step="left_to_right", **more, num_samples=2))
    assert not pages[-1].canvas.noisy.any()
    filled = lm.infill("a____ b____", gap_length=3, step="entropy", regex="[ab]+", particles=4)
    assert all(set(fill) <= {"a", "b"} for fill in filled.fills[0])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"regex": None}, "particles weigh texts of a grammar; give one"),
        ({"temperature": 0}, "use a temperature above 0"),
        ({"block": 4, "approx_cache": "dual"}, "know no approx_cache"),
        ({"step": "confidence"}, "'confidence' looks at the tokens that it draws"),
        ({"step": "remask_cap"}, "'remask_cap' looks at the tokens that it draws"),
        ({"particles": 0}, "particles"),
    ],
)
def test_what_cannot_be_weighed_is_refused(request_, message):
    lm = tiny_lm()
    request_ = {"regex": "a+b", "particles": 2, "length": 8, "step": "random", **request_}
    with pytest.raises(ConfigError, match=message):
        lm.start("", **request_)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_canvases_of_blocks_are_weighed_too(block):
    world, automaton, law = joint(0)
    more = {"block": block, "lookahead": False}
    request = request_of(world, automaton, 300, 16, LeftToRight(Linear()))
    *_, last = written(request, run(world, **more), True)
    assert np.abs(shares(world, last.tokens) - law).sum() / 2 < 0.14  # 0.5 of one canvas


@pytest.mark.parametrize(
    "config", [{"objective": "next_token"}, {"attention": "block_causal", "block_size": 8}], ids=str
)
def test_models_that_read_what_is_written_have_particles(config):
    lm = tiny_lm(**config)
    more = {"regex": "(ab|b)*a?b?a", "length": 12, "particles": 3, "seed": 5}
    both = lm.generate(["The", "A cat"], **more)
    assert both.texts[0] == lm.generate("The", **more).texts[0]
    assert all(set(text) <= {"a", "b"} for text in both.texts)
