"""A row that has written its end is done, however it is written; its text is the same as before."""

from dataclasses import replace

import pytest
import torch
from reference_models import network
from tiny_lm import CANVAS, HYBRID, tiny_lm

from sfumato.decoding.blocks import Blocks, OneByOne
from sfumato.decoding.canvas import WholeCanvas
from sfumato.decoding.filters import Suppress
from sfumato.decoding.page import blank, filled
from sfumato.decoding.rules import STEPS
from sfumato.denoisers.blocks import CachedReader
from sfumato.denoisers.full import Full, autoregressive
from sfumato.noise.corruption import Masked
from sfumato.rng import Rng
from sfumato.types import Canvas

VOCAB, MASK, FILLER, END, LENGTH = 7, 3, 0, 2, 14
MASKED = Masked(VOCAB, MASK)
ROWS = 5
FULL = network(VOCAB, max_position_embeddings=32)
CAUSAL = network(VOCAB, attention="causal", max_position_embeddings=32)
WAYS = {
    "whole": {},
    "blocks": {"block": 4},
    "blocks without lookahead": {"block": 4, "lookahead": False},
    "few steps": {"num_steps": 6},
}


def written(denoiser, step, rows=None, **options) -> list[Canvas]:
    """Every page of some rows, with given text in front and one end token in it."""
    rng = Rng.from_seed(5, ROWS)
    text = torch.full((ROWS, LENGTH), 5)
    text[:, 1] = END
    fixed = torch.arange(LENGTH).expand(ROWS, -1) < torch.tensor([[3], [2], [4], [2], [3]])
    page = blank(MASKED, text, fixed, rng)
    if rows is not None:
        rng = rng.select(torch.tensor(rows))
        page = Canvas(page.tokens[rows], page.noisy[rows], page.fixed[rows])
    filters = [Suppress((FILLER,))]
    shared = {"filters": filters, "num_steps": options.pop("num_steps", None)}
    if isinstance(denoiser, CachedReader):
        decoder = OneByOne(reader=denoiser, **options)
    else:
        decoder = WholeCanvas(denoiser=denoiser, **options)
    return list(decoder.pages(page, step, rng.fold(1), **shared))


def texts(page: Canvas) -> list[list[int]]:
    """What is new, up to the first end in it."""
    rows = []
    for tokens, fixed in zip(page.tokens.tolist(), page.fixed.tolist(), strict=True):
        new = tokens[fixed.index(False) :]
        rows.append(new[: new.index(END)] if END in new else new)
    return rows


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", STEPS)
def test_the_text_is_the_same_in_fewer_passes(name, way):
    step, denoiser = STEPS[name](MASKED, {}), Full(FULL, MASK)
    without, ending = written(denoiser, step, **way), {"ends": (END,), "filler": FILLER, **way}
    pages = written(denoiser, step, **ending)
    assert texts(pages[-1]) == texts(without[-1])
    assert any(END in row[4:] for row in pages[-1].tokens.tolist())
    assert len(pages) <= len(without)
    assert not bool(pages[-1].noisy.any())
    for row in (0, 2):  # whatever its neighbours
        alone = written(denoiser, step, [row], **ending)
        assert torch.equal(alone[-1].tokens[0], pages[-1].tokens[row])
        assert len(alone) <= len(pages)


@pytest.mark.parametrize("name", ["left_to_right", "threshold", "ancestral", "klass"])
def test_a_row_is_done_when_its_end_stands_and_nothing_before_it_is_open(name):
    step, ending = STEPS[name](MASKED, {}), {"ends": (END,), "filler": FILLER}
    pages = written(Full(FULL, MASK), step, **ending)
    for row in range(ROWS):
        for page in pages:
            tokens, noisy = page.tokens[row].tolist(), page.noisy[row].tolist()
            done = [t == END and n >= 4 and not any(noisy[:n]) for n, t in enumerate(tokens)]
            if any(done):
                first = done.index(True)
                assert tokens[first + 1 :] == [FILLER] * (LENGTH - first - 1)
                assert bool(page.fixed[row, first + 1 :].all())
                assert not any(noisy)


def test_rules_that_take_decisions_back_go_on_until_a_block_is_over():
    taking = {name for name in STEPS if getattr(STEPS[name](MASKED, {}), "revises", False)}
    assert taking == {name for name in STEPS if name.startswith(("wino", "remask"))}
    for name in taking:
        step = STEPS[name](MASKED, {})
        plain = written(Full(FULL, MASK), step)
        ending = written(Full(FULL, MASK), step, ends=(END,), filler=FILLER)
        assert len(ending) == len(plain)
        for one, other in zip(plain[:-1], ending[:-1], strict=True):
            assert torch.equal(one.tokens, other.tokens)


def test_an_autoregressive_model_stops_with_its_longest_text():
    step = STEPS["left_to_right"](MASKED, {})
    whole, cached = autoregressive(CAUSAL, MASK), CachedReader(CAUSAL, MASK, 1, shift=True)
    for denoiser, own in ((whole, {"lookahead": False}), (cached, {})):
        without = written(denoiser, step, **own)
        pages = written(denoiser, step, ends=(END,), filler=FILLER, **own)
        assert texts(pages[-1]) == texts(without[-1])
        lengths = [len(text) for text in texts(pages[-1])]
        given = [3, 2, 4, 2, 3]
        lengths = [n + (g + n < LENGTH) for n, g in zip(lengths, given, strict=True)]
        assert len(pages) == max(lengths) < len(without)


def test_given_ends_end_nothing():
    tokens = torch.tensor([[END, 4, END, 5]])
    noisy = torch.zeros(1, 4, dtype=torch.bool)
    given = Canvas(tokens, noisy, torch.tensor([[True, True, False, True]]))
    assert filled(given, (END,), FILLER).tokens.tolist() == [[END, 4, END, 5]]
    new = Canvas(tokens, noisy, torch.tensor([[True, True, False, False]]))
    assert filled(new, (END,), FILLER).tokens.tolist() == [[END, 4, END, FILLER]]
    open_ = Canvas(tokens, noisy | (tokens == 4), torch.tensor([[True, False, False, False]]))
    assert filled(open_, (END,), FILLER) is open_


def endless(pages):
    """The same way of writing, for which nothing ends a text."""
    return lambda self, *args, **options: pages(replace(self, ends=()), *args, **options)


@pytest.mark.parametrize("kind", [{}, {"objective": "next_token"}, {"corruption": HYBRID}], ids=str)
def test_a_models_texts_stay_and_its_steps_are_those_of_the_longest(kind, monkeypatch):
    lm = tiny_lm(**kind)
    prompts = {"prompt": ["A", "The fox", ""], "seed": 3, "num_samples": 2}
    made = lm.generate(**prompts)
    for decoder in (Blocks, WholeCanvas):
        monkeypatch.setattr(decoder, "pages", endless(decoder.pages))
    before = lm.generate(**prompts)
    assert made.full_texts == before.full_texts
    assert made.tokens == before.tokens
    assert made.num_steps <= before.num_steps
    assert before.num_steps <= CANVAS
    if kind.get("objective") == "next_token":
        assert made.num_steps <= max(map(len, made.tokens)) + 4  # the end, and shorter prompts
    assert 0 < made.tokens_per_step <= CANVAS


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("step", ["probability", "threshold", "wino"])
def test_a_growing_canvas_stops_with_its_text_too(step, block, monkeypatch):
    own = {"grow": 3, "length": 13, "grow_options": {"enough": 0.02}, "step": step, "block": block}
    asked = {"prompt": ["A", "The fox", ""], "seed": 1, "num_samples": 3, **own}
    lm = tiny_lm()
    made = lm.generate(**asked)
    monkeypatch.setattr(
        "sfumato.decoding.growing.behind_end", lambda page, ends: torch.zeros_like(page.noisy)
    )
    before = lm.generate(**asked)
    assert made.full_texts == before.full_texts
    assert made.num_steps <= before.num_steps
