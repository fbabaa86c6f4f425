"""What a training step calls a bound is the held-out one, or it is left out: by table."""

import csv
import itertools
import math

import pytest
import torch
from small_runs import prepare_words, run_all, small_run
from worlds import MASK, VOCAB, World, batch_of

from sfumato.noise.corruption import Hybrid, Masked, Uniform
from sfumato.noise.schedules import Clipped, CosineAlpha, CosineMask, Linear, LogLinear, Power
from sfumato.objectives.bound import Bound
from sfumato.objectives.curriculum import Curriculum, DroppedSource
from sfumato.objectives.masked import MaskedDiffusion
from sfumato.objectives.next_token import CausalFirst, NextToken
from sfumato.objectives.selection import Bernoulli, ExactK
from sfumato.objectives.times import Independent
from sfumato.objectives.weights import Cart, ClippedWeight, ConstantWeight
from sfumato.rng import Rng
from sfumato.types import PairBatch

WORLD = World.random()
ROWS = 6_000
TEXTS = batch_of(WORLD.sample(ROWS, seed=3))
SCHEDULES = [
    Linear(),
    CosineMask(),
    CosineAlpha(),
    Power(2),
    LogLinear(),
    LogLinear(0.3),
    Clipped(),
    Clipped(CosineMask(), 0.0, 0.5),
    Clipped(Linear(), 0.0, 1.0),
]
MASKED = Masked(VOCAB + 1, MASK)


def held_out(denoiser):
    """Nats a token of these texts by the enumerated bound of masked diffusion."""
    total = torch.zeros(len(WORLD.texts), dtype=torch.float64)
    for pattern in itertools.product([False, True], repeat=3):
        noisy = torch.tensor(pattern)
        if k := int(noisy.sum()):
            seen = WORLD.texts.masked_fill(noisy, MASK)
            logp = denoiser(seen, torch.zeros(len(seen))).log_softmax(-1)
            nats = -(logp.gather(-1, WORLD.texts[..., None])[..., 0] * noisy).sum(1)
            total += nats / math.comb(3, k) / k
    return float(WORLD.frequencies(TEXTS.tokens).double() @ total) / 3


def check(objective, denoiser, truth):
    loss = objective(denoiser, TEXTS, Rng.from_seed(0))
    each = loss.nll.double().sum(1) * len(loss.nll) / float(loss.count)
    error = float(each.std()) / math.sqrt(len(each))
    near = float(each.mean()) == pytest.approx(truth, abs=4 * error + 1e-6)
    assert near if loss.bounds else True, (float(each.mean()), truth, error)
    return loss.bounds, near


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("weight", [ConstantWeight(), ClippedWeight(2.0), Cart()], ids=repr)
@pytest.mark.parametrize("complementary", [False, True])
def test_what_masked_diffusion_calls_a_bound_is_the_held_out_one(schedule, weight, complementary):
    denoiser = WORLD.denoiser(MASKED, error=1.0)
    truth = held_out(denoiser)
    selections = [ExactK(schedule=schedule), ExactK(0.2, 0.9), Bernoulli(schedule)]
    found = [
        check(MaskedDiffusion(MASK, Independent(), each, weight, complementary), denoiser, truth)
        for each in selections
    ]
    whole = schedule.low == 0 and schedule.high == 1
    assert [bounds for bounds, _ in found] == [True, False, whole]
    if not whole and schedule.high < 0.99:
        assert not found[2][1]  # and it would have been another number


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("noise", [Masked, Uniform, Hybrid])
def test_the_integrand_is_a_bound_where_the_schedule_has_all_noise_rates(noise, schedule):
    corruption = noise(VOCAB + 1, MASK, schedule)
    loss = Bound(corruption, Independent())(WORLD.denoiser(corruption), TEXTS, Rng.from_seed(0))
    assert loss.bounds == (schedule.low == 0 and schedule.high == 1)
    if loss.bounds and noise is Masked:  # others have no variance, so no error to go by
        each = loss.nll.sum(1)
        error = float(each.std()) / math.sqrt(ROWS)
        truth = -WORLD.frequencies(TEXTS.tokens).double() @ WORLD.law.log()
        assert float(each.mean()) == pytest.approx(float(truth), abs=4 * error + 0.01)


class Unread:
    """An objective of pairs that looks at the targets alone."""

    def __call__(self, denoiser, batch, rng):
        return NextToken()(denoiser, batch_of(batch.tokens), rng)


def test_stages_and_dropped_sources_are_bounds_of_something_else():
    denoiser = WORLD.denoiser(MASKED)
    masked = MaskedDiffusion(MASK, Independent())
    stages = Curriculum(((30, masked),), masked)
    early = batch_of(WORLD.texts)
    assert not stages(denoiser, early, Rng.from_seed(0)).bounds
    late = batch_of(WORLD.texts)
    late = type(late)(late.tokens, late.trainable, late.segments, late.slots + 30)
    assert stages(denoiser, late, Rng.from_seed(0)).bounds
    assert CausalFirst(masked, 10)(denoiser, late, Rng.from_seed(0)).bounds
    assert NextToken()(denoiser, early, Rng.from_seed(0)).bounds
    source = torch.zeros(len(WORLD.texts), 1, dtype=torch.int64)
    pairs = PairBatch(**vars(early), source=source)
    assert not DroppedSource(Unread(), 0.5)(denoiser, pairs, Rng.from_seed(0)).bounds


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return prepare_words(tmp_path_factory.mktemp("words") / "prepared")


@pytest.mark.parametrize(
    ("keys", "column"),
    [
        ([], True),
        (["objective.selection=bernoulli"], True),
        (
            [
                "objective.selection=bernoulli",
                "corruption.schedule={name: clipped, low: 0, high: 0.5}",
            ],
            False,
        ),
        (["objective.selection=bernoulli", "corruption.schedule=log_linear"], False),
        (["objective.selection={name: exact_k, low: 0.3, high: 0.8}"], False),
        (["objective.name=bound", "corruption.name=uniform"], True),
        (["objective.name=block", "model.block_size=4"], True),
        (["objective.name=next_token"], True),
        (["objective.next_token_steps=100"], False),
    ],
    ids=str,
)
def test_the_column_of_a_run_is_a_bound_or_empty(words, tmp_path, keys, column):
    run_all(small_run(words, tmp_path / "out", *keys, "train.max_steps=4", "log.logging_steps=2"))
    with (tmp_path / "out" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [row for row in rows if row["loss"]]
    assert steps
    assert all(bool(row["bound"]) == column for row in steps)
    assert "NaN" not in (tmp_path / "out" / "metrics.jsonl").read_text()
