"""WINO and KLASS as published: step for step against a reference of their algorithms."""

from itertools import pairwise

import numpy as np
import pytest
import reference
import torch

from sfumato.decoding.filters import Suppress, Temperature
from sfumato.decoding.loops import denoise
from sfumato.decoding.page import blank
from sfumato.decoding.published import KlassPublished, WinoPublished
from sfumato.decoding.remask import Wino
from sfumato.decoding.rules import STEPS
from sfumato.decoding.times import even_times
from sfumato.decoding.unmask import Klass
from sfumato.noise.corruption import Masked
from sfumato.noise.schedules import Linear
from sfumato.rng import Rng
from sfumato.testing import check_step

LENGTH, VOCAB, MASK = 9, 6, 5
MASKED = Masked(VOCAB, MASK)


class Toy:
    """Logits of a position by what stands elsewhere, surer the more does; the mask is no token."""

    def __init__(self, seed: int, lean: float):
        draw = np.random.default_rng(seed)
        self.own = lean * draw.normal(size=(LENGTH, VOCAB))
        self.table = lean * draw.normal(size=(LENGTH, VOCAB, LENGTH, VOCAB)) / 3

    def look(self, text: list[int]) -> np.ndarray:
        logits = self.own.copy()
        for i in range(LENGTH):
            for j, token in enumerate(text):
                if j != i and token != MASK:
                    logits[i] += self.table[j, token, i]
        logits[:, MASK] = -1e9
        return logits

    def __call__(self, tokens, t, where):
        logits = torch.stack([torch.from_numpy(self.look(row.tolist())) for row in tokens])
        return logits[where]

    leave_one_out = __call__


def traced(step, toys: list[Toy], steps: int) -> list[list[list[int]]]:
    """Greedy texts after each step, toy by toy."""
    every = []
    for toy in toys:
        rng = Rng.from_seed(0)
        nothing = torch.zeros(1, LENGTH, dtype=torch.bool)
        page = blank(MASKED, nothing.long(), nothing, rng)
        pages = denoise(
            toy, page, step, even_times(steps), rng, filters=[Suppress((MASK,)), Temperature(0.0)]
        )
        every.append([page.tokens[0].tolist() for page in pages])
    return every


TOYS = [Toy(seed, lean) for seed in range(12) for lean in (1.0, 2.0, 4.0)]


@pytest.mark.parametrize(("draft", "verify"), [(0.6, 0.9), (0.3, 0.5), (0.9, 0.99)])
def test_wino_is_its_authors_step_for_step(draft, verify):
    step = WinoPublished(Linear(), MASK, draft, verify)
    wanted = [reference.wino_published(toy.look, LENGTH, MASK, draft, verify) for toy in TOYS]
    assert traced(step, TOYS, 200) == wanted
    steps = [pair for trace in wanted for pair in pairwise(trace)]
    assert any(a != MASK and b == MASK for pair in steps for a, b in zip(*pair, strict=True))


def test_wino_differs_from_ours_where_the_docs_say():
    theirs = traced(WinoPublished(Linear(), MASK), TOYS, 200)
    assert theirs != traced(Wino(Linear(), MASK), TOYS, 200)


@pytest.mark.parametrize("steps", [LENGTH, 5, 3])
@pytest.mark.parametrize(("level", "eps", "patience"), [(0.6, 0.015, 2), (0.4, 1.0, 1)])
def test_klass_is_its_authors_step_for_step(steps, level, eps, patience):
    step = KlassPublished(Linear(), level, eps, patience)
    own = {"level": level, "eps": eps, "patience": patience}
    wanted = [reference.klass_published(toy.look, LENGTH, MASK, steps, **own) for toy in TOYS]
    for got, each in zip(traced(step, TOYS, steps), wanted, strict=True):
        until = len(each) - (MASK in each[-1])  # theirs leaves masks behind; ours decides them
        assert got[:until] == each[:until]
        assert MASK not in got[-1]
    if steps > 3:  # else nothing is ever stable
        ours = Klass(Linear(), level, eps, patience)
        assert traced(step, TOYS, steps) != traced(ours, TOYS, steps)


@pytest.mark.parametrize("name", ["wino_published", "klass_published"])
def test_they_keep_the_contract(name):
    noise = Masked(5, 4, Linear())
    check_step(STEPS[name](noise, {}), noise, revises=name == "wino_published")
