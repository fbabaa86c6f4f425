"""Overfit, then recite: the one test that crosses the whole core, for every objective and rule."""

import functools
import math
from dataclasses import dataclass, replace

import pytest
import torch
from worlds import batch_of

from sfumato.decoding.blocks import Blocks
from sfumato.decoding.filters import Temperature
from sfumato.decoding.loops import generate
from sfumato.decoding.page import blank
from sfumato.decoding.remask import Cap, Remasking, Wino, loop
from sfumato.decoding.unmask import (
    Ancestral,
    EntropyBound,
    Factor,
    FirstHitting,
    Klass,
    LeftToRight,
    LowEntropy,
    Margin,
    RandomOrder,
    Threshold,
    TopConfidence,
    TopProbability,
)
from sfumato.denoisers.blocks import CachedReader
from sfumato.denoisers.full import Full, autoregressive
from sfumato.models import DiffusionTransformer, TransformerConfig
from sfumato.noise.corruption import Hybrid, Masked, Uniform
from sfumato.noise.schedules import CosineAlpha, Linear
from sfumato.objectives.blocks import BlockDiffusion
from sfumato.objectives.bound import Bound
from sfumato.objectives.masked import MaskedDiffusion
from sfumato.objectives.next_token import NextToken
from sfumato.objectives.selection import Bernoulli
from sfumato.objectives.times import Systematic
from sfumato.objectives.weights import Cart, ClippedWeight, ConstantWeight
from sfumato.rng import Rng
from sfumato.testing import check_denoiser

SENTENCES = """
a small cat sat on the red mat
the old man walked to the sea
one day we all went out to play
she gave him a big green apple today
two birds sang in the tall tree
my dog likes to run and jump
they made a house out of stones
it was cold so he stayed home
""".strip().splitlines()
WORDS = ["<mask>", "<start>", "<end>", *sorted({w for line in SENTENCES for w in line.split()})]
MASK, START, END, LENGTH, ROWS = 0, 1, 2, 10, 64
# without a start, a network of relative positions could not tell the places of a blank canvas apart
TEXTS = torch.tensor([
    ([START, *map(WORDS.index, line.split())] + [END] * LENGTH)[:LENGTH] for line in SENTENCES
])  # fmt: skip
BLOCK = 3
LINEAR = Linear()
MASKED = Masked(len(WORDS), MASK)

OBJECTIVES = {
    "exact-k": MaskedDiffusion(MASK, Systematic(ROWS)),
    "clipped": MaskedDiffusion(MASK, Systematic(ROWS), weight=ClippedWeight(4)),
    "constant": MaskedDiffusion(MASK, Systematic(ROWS), weight=ConstantWeight()),
    "cart": MaskedDiffusion(MASK, Systematic(ROWS), weight=Cart()),
    "complementary": MaskedDiffusion(MASK, Systematic(ROWS), complementary=True),
    "bernoulli": MaskedDiffusion(MASK, Systematic(ROWS), Bernoulli(CosineAlpha())),
    "bound": Bound(MASKED, Systematic(ROWS)),
    "uniform": Bound(Uniform(len(WORDS), MASK), Systematic(ROWS)),
    "hybrid": Bound(Hybrid(len(WORDS), MASK), Systematic(ROWS)),
    "blocks": BlockDiffusion(BLOCK, MaskedDiffusion(MASK, Systematic(ROWS * 4))),
    "next token": NextToken(),
}
WHOLE = list(OBJECTIVES)[:7]  # masked, over the whole row
OTHERS = ("clipped", "constant", "cart", "complementary", "bound", "hybrid")


def learnable(names) -> list:
    """Each costs seconds of training, and one of a kind is enough for the default tests."""
    return [pytest.param(n, marks=[pytest.mark.slow] * (n in OTHERS)) for n in names]


RULES = [
    Ancestral(MASKED),
    FirstHitting(LINEAR),
    RandomOrder(LINEAR),
    LeftToRight(LINEAR),
    TopConfidence(LINEAR),
    TopProbability(LINEAR),
    Margin(LINEAR),
    LowEntropy(LINEAR),
    Threshold(LINEAR),
    Factor(LINEAR, 0.5),
    EntropyBound(LINEAR),
    Klass(LINEAR, level=0.9),
    Remasking(LINEAR, MASK, Cap(0.1)),
    Remasking(LINEAR, MASK, Cap(0.1), by_confidence=True),
    loop(LINEAR, MASK),
    Wino(LINEAR, MASK, draft=0.9),
]


@functools.cache
def learnt(name: str):
    """A denoiser that has seen each sentence 1600 times or more, and its loss in the end."""
    objective = OBJECTIVES[name]
    revisits = name in ("uniform", "hybrid")  # noise that looks like text: slower to learn
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        time_conditioned=revisits,
        attention="block_causal" if name == "blocks" else "full",
        block_size=BLOCK if name == "blocks" else None,
    )
    model = DiffusionTransformer(config).train()
    causal = isinstance(objective, NextToken)
    denoiser = autoregressive(model, MASK) if causal else Full(model, MASK)
    steps, losses = 300 if revisits else 200, []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95))
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps, pct_start=0.1)
    texts = TEXTS.repeat(ROWS // 8, 1)
    batch = batch_of(texts, trainable=texts != START)
    for number in range(steps):
        batch = replace(batch, slots=torch.arange(ROWS) + number * ROWS)
        loss = objective(denoiser, batch, Rng.from_seed(0))
        optimizer.zero_grad()
        loss.value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        losses.append(float(loss.nll.sum() / loss.count))
    model.eval()
    return denoiser, sum(losses[-20:]) / 20


def recited(written: torch.Tensor) -> torch.Tensor:
    """How often each sentence was written, [8]."""
    return (written[:, None] == TEXTS).all(-1).double().mean(0)


def write(denoiser, step, corruption=MASKED, *, rows=ROWS, lead=1, **options) -> torch.Tensor:
    template = TEXTS.repeat(rows // 8, 1)
    fixed = (torch.arange(LENGTH) < lead).expand(template.shape)
    rng = Rng.from_seed(1, rows)
    canvas = blank(corruption, template, fixed, rng.fold(0))
    if isinstance(denoiser, CachedReader):
        pages = Blocks(reader=denoiser, ends=(END,), filler=END).pages
    else:
        pages = functools.partial(generate, denoiser)
    *_, last = pages(canvas, step, rng.fold(1), **options)
    return last.tokens


@pytest.mark.parametrize("name", learnable(OBJECTIVES))
def test_the_bound_falls_to_the_entropy(name):
    """ln 8 nats for eight sentences, spread over nine words."""
    _, loss = learnt(name)
    entropy = math.log(8) / 9
    assert 0.95 * entropy < loss < (3 if name in ("uniform", "hybrid") else 1.3) * entropy


@pytest.mark.parametrize("step", RULES, ids=repr)
def test_a_masked_model_recites_by_every_rule(step):
    denoiser, _ = learnt("exact-k")
    reopens = getattr(step, "reopens", False) or isinstance(step, Ancestral)
    shares = recited(write(denoiser, step, num_steps=100 if reopens else None))
    # several places at once: how well they go together differs with the last bits of the training
    assert float(shares.sum()) > (0.7 if step.exact else 0.5)
    if step.exact:
        assert float(shares.min()) > 0  # all eight


@pytest.mark.parametrize("name", learnable(WHOLE))
def test_every_masked_objective_recites(name):
    denoiser, _ = learnt(name)
    shares = recited(write(denoiser, RandomOrder(LINEAR)))
    assert float(shares.sum()) > 0.7
    assert float(shares.min()) > 0


@pytest.mark.parametrize("name", learnable(["uniform", "hybrid"]))
def test_other_noise_recites(name):
    denoiser, _ = learnt(name)
    corruption = OBJECTIVES[name].corruption
    shares = recited(write(denoiser, Ancestral(corruption), corruption, num_steps=64))
    assert float(shares.sum()) > 0.8
    assert float((shares > 0).sum()) >= 7


@pytest.mark.parametrize("cached", [False, True])
def test_an_autoregressive_model_recites(cached):
    denoiser, _ = learnt("next token")
    if cached:
        written = write(CachedReader(denoiser.model, MASK, 1, shift=True), LeftToRight(LINEAR))
    else:
        written = write(denoiser, LeftToRight(LINEAR), block=1, lookahead=False)
    shares = recited(written)
    assert float(shares.sum()) > 0.9
    assert float(shares.min()) > 0


@pytest.mark.parametrize("step", RULES, ids=repr)
def test_a_model_of_blocks_recites_by_every_rule(step):
    """And continues every sentence at temperature 0, each from its first word."""
    denoiser, _ = learnt("blocks")
    reader = CachedReader(denoiser.model, MASK, BLOCK)
    reopens = getattr(step, "reopens", False) or isinstance(step, Ancestral)
    steps = 100 if reopens else None
    for rows, lead, filters in ((ROWS, 1, ()), (8, 2, (Temperature(0),))):
        own = {"num_steps": steps, "filters": filters, "rows": rows, "lead": lead}
        shares = recited(write(reader, step, **own))
        assert float(shares.sum()) > (0.85 if lead == 2 else 0.7 if step.exact else 0.5)


@pytest.mark.parametrize("step", RULES, ids=repr)
@pytest.mark.parametrize("name", learnable(WHOLE))
def test_the_first_word_is_enough_at_temperature_0(name, step):
    """Sentences begin differently: greedy decoding continues each as it was."""
    denoiser, _ = learnt(name)
    written = write(denoiser, step, filters=[Temperature(0)], rows=8, lead=2)
    assert int((written == TEXTS).all(1).sum()) >= 7


def test_a_model_that_knows_one_sentence_keeps_the_contract():
    """Given its first word, the rest is certain: logits are about the token at their own place."""
    denoiser, _ = learnt("exact-k")
    for text in TEXTS[:3]:
        check_denoiser(
            Beginning(denoiser, text[:2]),
            vocab_size=len(WORDS),
            mask_id=MASK,
            length=LENGTH - 2,
            packs=False,
            recites=text[2:],
        )


@dataclass(frozen=True)
class Beginning:
    """A denoiser of what follows a text."""

    denoiser: Full
    text: torch.Tensor  # [P]

    def __call__(self, tokens, t, where=None, *, segments=None):
        return self._given(len(tokens))(tokens, t, where, segments=segments)

    def given(self, left=None, right=None):
        rows = len(left if left is not None else right)
        return self._given(rows).given(left=left, right=right)

    def _given(self, rows):
        return self.denoiser.given(left=self.text.expand(rows, -1))
