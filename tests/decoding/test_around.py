"""A rule around another writes what the other writes, by all that the loops ask of it."""

from dataclasses import dataclass

import pytest
import torch
from fixed_laws import Fixed, empty, laws, over, whole
from reference_models import network

from sfumato.decoding.constrained import constrain
from sfumato.decoding.loops import generate
from sfumato.decoding.page import blank
from sfumato.decoding.remask import Cap, Remasking, Wino, loop
from sfumato.decoding.step import FLAGS, Around
from sfumato.decoding.unmask import Ancestral, FirstHitting, Klass, RandomOrder
from sfumato.denoisers.full import Full
from sfumato.errors import ConfigError
from sfumato.noise.corruption import Masked, Uniform
from sfumato.noise.schedules import CosineMask, Linear
from sfumato.rng import Rng

VOCAB, MASK, ROWS, LENGTH = 7, 3, 3, 8
LINEAR = Linear()
MASKED, UNIFORM = Masked(VOCAB, MASK), Uniform(VOCAB, MASK)
TOLD = network(VOCAB, time_conditioned=True)
RULES = [
    FirstHitting(LINEAR),
    Klass(LINEAR, level=0.3),
    Remasking(LINEAR, MASK, Cap(0.3)),
    loop(CosineMask(), MASK, eta=0.3),
    Wino(LINEAR, MASK, draft=0.2, verify=0.3),
    Ancestral(UNIFORM),
]


@dataclass(frozen=True)
class Passing(Around):
    def __call__(self, canvas, seen, t, s, rng):
        return self.step(canvas, seen, t, s, rng)


def pages(step, corruption, **options):
    nothing = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    rng = Rng.from_seed(0, ROWS)
    canvas = blank(corruption, nothing.long(), nothing, rng.fold(0))
    written = generate(Full(TOLD, MASK), canvas, step, rng.fold(1), num_steps=12, **options)
    return torch.stack([page.tokens for page in written])


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_it_writes_the_same_pages(rule, block):
    corruption = MASKED if rule.absorbing else UNIFORM
    around = {"block": block, "lookahead": False}
    expected = pages(rule, corruption, **around)
    assert torch.equal(pages(Passing(Passing(rule)), corruption, **around), expected)
    assert Passing(Passing(rule)).rule is rule
    said = [getattr(Passing(rule), flag) for flag in FLAGS[1:]]
    assert said == [getattr(rule, flag) for flag in FLAGS[1:]]


def test_it_tells_that_noise_may_be_text():
    with pytest.raises(ConfigError, match="noise other than masks"):
        pages(Passing(Ancestral(UNIFORM)), UNIFORM, block=4)


def test_it_knows_where_a_block_is():
    grammar = constrain(RandomOrder(LINEAR), over("b(a|b)*aa", False), whole(1, 4))
    texts = []
    for rule in (grammar, Passing(grammar)):
        *_, last = generate(Fixed(laws(4)), empty(1, 4), rule, Rng.from_seed(1), block=2)
        texts.append(last.tokens.tolist())
    assert texts[0] == texts[1]


def test_a_rule_that_verifies_needs_a_denoiser_that_can():
    class Plain:
        def __call__(self, tokens, t, where=None, *, segments=None):
            raise AssertionError("not asked")

        def given(self, left=None, right=None):
            return self

    nothing = torch.zeros(1, 4, dtype=torch.bool)
    canvas = blank(MASKED, nothing.long(), nothing, Rng.from_seed(0))
    with pytest.raises(ConfigError, match="needs leave_one_out, which Plain has not"):
        next(generate(Plain(), canvas, Wino(LINEAR, MASK), Rng.from_seed(0)))
