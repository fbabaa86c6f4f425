"""The likelihood of texts under any rule that decides where before it draws."""

import pytest
import torch
from tiny_lm import tiny_lm
from torch.testing import assert_close
from worlds import MASK, VOCAB, World, batch_of

from sfumato import likelihood
from sfumato.decoding.loops import generate
from sfumato.decoding.page import blank
from sfumato.decoding.remask import Wino
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
from sfumato.errors import ConfigError, DataError
from sfumato.likelihood.block_teacher_forcing import TeacherForcedBlocks
from sfumato.likelihood.remembered import Remembered
from sfumato.likelihood.teacher_forcing import teacher_forced
from sfumato.noise.corruption import Masked, Uniform
from sfumato.noise.schedules import Linear
from sfumato.rng import Rng
from sfumato.types import Batch

WORLD = World.random(4)
TEXTS = batch_of(WORLD.texts)
MASKED = Masked(VOCAB + 1, MASK)
WRONG = WORLD.denoiser(MASKED, error=1.0)
KLASS = Klass(Linear(), level=0.35, eps=0.6, patience=1)
CHOOSERS = [
    TopProbability(Linear()),
    Margin(Linear()),
    LowEntropy(Linear()),
    LeftToRight(Linear()),
    Threshold(Linear(), level=0.5),
    Factor(Linear()),
    EntropyBound(Linear(), gamma=0.4),
]


def same_draws(rows: int, seed: int = 0) -> Rng:
    """Every row is decided in the same order."""
    return Rng(Rng.from_seed(seed).keys.expand(rows))


@pytest.mark.parametrize("step", CHOOSERS, ids=repr)
@pytest.mark.parametrize("around", [{}, {"num_steps": 2, "block": 2}, {"block": 2}], ids=str)
def test_rules_that_choose_have_their_likelihood_by_decoder(step, around):
    expected = likelihood.by_decoder(WRONG, MASKED, TEXTS, step, **around)
    found = teacher_forced(WRONG, MASKED, TEXTS, step, same_draws(len(WORLD.texts)), **around)
    assert_close(found, expected.nats)


@pytest.mark.parametrize("step", [KLASS, Ancestral(MASKED), RandomOrder(Linear())], ids=repr)
@pytest.mark.parametrize("num_steps", [2, 4])
def test_likelihoods_sum_to_one_whatever_the_rule_remembers_or_draws(step, num_steps):
    rng = same_draws(len(WORLD.texts))
    found = teacher_forced(WRONG, MASKED, TEXTS, step, rng, num_steps=num_steps)
    assert_close(float(found.neg().exp().sum()), 1.0)


def test_klass_writes_texts_as_often_as_their_likelihood_says():
    expected = teacher_forced(
        WRONG, MASKED, TEXTS, KLASS, same_draws(len(WORLD.texts)), num_steps=4
    )
    count = 20_000
    rng, empty = Rng.from_seed(1, count), torch.zeros(count, 4, dtype=torch.int64)
    canvas = blank(MASKED, empty, torch.zeros_like(empty, dtype=torch.bool), rng)
    *_, page = generate(WRONG, canvas, KLASS, rng, num_steps=4)
    law = World(WORLD.texts, expected.neg().exp())
    floor = law.noise_floor(count)
    assert law.distance(page.tokens) < 1.5 * floor
    plain = teacher_forced(WRONG, MASKED, TEXTS, CHOOSERS[0], same_draws(81), num_steps=4)
    assert World(WORLD.texts, plain.neg().exp()).distance(page.tokens) > 3 * floor


# --- all blocks at once ---


SORTS = {"plain": {}, "told the time": {"time_conditioned": True}, "shifted": {"shift": True}}


@pytest.fixture(scope="module", params=SORTS)
def blocks(request):
    lm = tiny_lm(attention="block_causal", block_size=4, **SORTS[request.param])
    lm.model.norm.weight.data.mul_(8)  # predictions so different that rounding decides nothing
    return lm


def rows_of(lm, count=5, length=16):
    """Texts of different lengths: where one ends in a block, and blocks after its end."""
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(4, len(lm.tokenizer), (count, length), generator=draw)
    batch = batch_of(tokens)
    batch.trainable[:, 0] = False  # a given opening
    batch.trainable[1, 9:] = False
    batch.trainable[2, 4:] = False
    return batch


@pytest.mark.parametrize("step", CHOOSERS, ids=repr)
@pytest.mark.parametrize("each", [None, 3, 2, 1])
def test_blocks_at_once_are_blocks_one_by_one(blocks, step, each):
    batch, corruption = rows_of(blocks), blocks.corruption
    read = TeacherForcedBlocks.read(blocks.denoiser, corruption, batch)
    found = read.teacher_forced(step, Rng.from_seed(0, 5), steps_each=each)
    for row, written in enumerate([4, 3, 1, 4, 4]):
        alone = Batch(*(part[row : row + 1] for part in vars(batch).values()))
        around = {"num_steps": each and each * written, "block": 4, "lookahead": False}
        expected = likelihood.by_decoder(blocks.denoiser, corruption, alone, step, **around)
        assert_close(found[row], expected.nats[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [KLASS, Ancestral(MASKED)], ids=repr)
def test_blocks_at_once_remember_and_draw_as_blocks_one_by_one(blocks, step):
    batch, corruption, rng = rows_of(blocks), blocks.corruption, Rng.from_seed(0, 5)
    read = TeacherForcedBlocks.read(blocks.denoiser, corruption, batch)
    found = read.teacher_forced(step, rng)
    expected = teacher_forced(
        blocks.denoiser, corruption, batch, step, rng, block=4, lookahead=False
    )
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_texts_are_read_once_and_every_state_is_asked_about_once(blocks):
    batch, calls = rows_of(blocks), []
    hook = blocks.model.register_forward_hook(lambda *_: calls.append(1))
    try:
        read = TeacherForcedBlocks.read(blocks.denoiser, blocks.corruption, batch)
        assert len(calls) == 1
        one = read.teacher_forced(Factor(Linear(), factor=1e9), Rng.from_seed(0, 5))
        assert len(calls) == 2
        again = read.teacher_forced(Threshold(Linear(), level=1e-9), Rng.from_seed(0, 5))
        assert len(calls) == 2
        slow = read.teacher_forced(TopProbability(Linear()), Rng.from_seed(0, 5))
        assert len(calls) == 5
        same = read.teacher_forced(Threshold(Linear(), level=1.0), Rng.from_seed(0, 5))
        assert len(calls) == 5
    finally:
        hook.remove()
    assert_close(one, again)
    assert_close(slow, same)
    told_time = blocks.model.config.time_conditioned
    times = {key[2] for key in read.denoiser.seen}
    assert (len(times) > 4) == told_time  # 1, 3/4, 1/2, 1/4; 2/3, 1/3 where 3 are noisy


def test_what_is_remembered_is_bounded_and_changes_nothing(blocks, monkeypatch):
    batch = rows_of(blocks)
    read = TeacherForcedBlocks.read(blocks.denoiser, blocks.corruption, batch)
    free = [read.teacher_forced(step, Rng.from_seed(0, 5)) for step in CHOOSERS]
    monkeypatch.setattr("sfumato.likelihood.remembered.ROOM", 40 * len(blocks.tokenizer))
    read = TeacherForcedBlocks.read(blocks.denoiser, blocks.corruption, batch)
    tight = [read.teacher_forced(step, Rng.from_seed(0, 5)) for step in CHOOSERS]
    assert_close(tight, free, rtol=1e-5, atol=1e-5)
    assert sum(len(one) for one in read.denoiser.seen.values()) < 150


@pytest.mark.parametrize("lookahead", [True, False])
def test_remembering_changes_nothing_for_full_attention(lookahead):
    lm = tiny_lm()
    lm.model.norm.weight.data.mul_(8)
    batch, rng = rows_of(lm), Rng.from_seed(0, 5)
    kept = Remembered.of(lm.denoiser, told_time=lm.model.config.time_conditioned)
    for step in CHOOSERS:
        for block in (4, 8):
            around = {"block": block, "lookahead": lookahead}
            found = teacher_forced(kept, lm.corruption, batch, step, rng, **around)
            expected = teacher_forced(lm.denoiser, lm.corruption, batch, step, rng, **around)
            assert_close(found, expected, rtol=1e-4, atol=1e-4)


# --- what is refused ---


@pytest.mark.parametrize(
    "step", [TopConfidence(Linear()), FirstHitting(Linear()), Wino(Linear(), MASK)], ids=repr
)
def test_rules_that_look_at_what_was_drawn_are_refused(step):
    with pytest.raises(ConfigError, match=f"{type(step).__name__} chooses or revises"):
        teacher_forced(WRONG, MASKED, TEXTS, step, same_draws(81))


def test_other_noise_and_packed_rows_are_refused(blocks):
    uniform = Uniform(VOCAB + 1, MASK)
    with pytest.raises(ConfigError, match="only masked diffusion can be teacher-forced"):
        teacher_forced(WRONG, uniform, TEXTS, Ancestral(uniform), same_draws(81))
    packed = batch_of(WORLD.texts)
    packed.segments[:, 2:] = 1
    with pytest.raises(DataError, match="one document each"):
        teacher_forced(WRONG, MASKED, packed, CHOOSERS[0], same_draws(81))
    with pytest.raises(DataError, match="one document each"):
        TeacherForcedBlocks.read(blocks.denoiser, blocks.corruption, packed)
    with pytest.raises(DataError, match="not whole blocks of 4"):
        TeacherForcedBlocks.read(blocks.denoiser, blocks.corruption, rows_of(blocks, length=14))
    with pytest.raises(ConfigError, match="models of blocks"):
        TeacherForcedBlocks.read(tiny_lm().denoiser, blocks.corruption, TEXTS)


def law_of_threshold(level: float) -> torch.Tensor:
    """P(text) of every text, by walking all that the decoder may do: [S]."""
    perfect = WORLD.denoiser(MASKED)
    chances = torch.zeros(len(WORLD.texts), dtype=torch.float64)
    for number, text in enumerate(WORLD.texts):
        page, chance = torch.full_like(text, MASK), 1.0
        while bool((page == MASK).any()):
            probs = perfect(page[None], torch.zeros(1))[0].softmax(-1)
            sure = probs.amax(-1).masked_fill(page != MASK, -1)
            chosen = (sure >= level) | (torch.arange(len(text)) == int(sure.argmax()))
            for place in (chosen & (page == MASK)).nonzero()[:, 0].tolist():
                chance *= float(probs[place, text[place]])
            page = torch.where(chosen & (page == MASK), text, page)
        chances[number] = chance
    return chances


@pytest.mark.parametrize("level", [0.4, 0.55, 0.9])
def test_what_a_threshold_loses_on_a_law_is_its_divergence_from_the_law(level):
    perfect, rng = WORLD.denoiser(MASKED), same_draws(len(WORLD.texts))
    one_each = teacher_forced(perfect, MASKED, TEXTS, TopProbability(Linear()), rng)
    bold = teacher_forced(perfect, MASKED, TEXTS, Threshold(Linear(), level=level), rng)
    law = law_of_threshold(level)
    assert_close(float(law.sum()), 1.0)
    divergence = float((WORLD.law * (WORLD.law / law).log()).sum())
    assert float((WORLD.law * (bold - one_each)).sum()) == pytest.approx(divergence, abs=1e-6)
    assert (divergence > 0.01) == (level < 0.9)
