"""The search for mask rates to train on; the bound that is reported has all of them."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from small_runs import SEARCH, of_kind, prepare_words, run_all, small_run
from test_resume import same_tensors
from worlds import MASK, World, batch_of

from sfumato.errors import ConfigError
from sfumato.noise.corruption import Masked
from sfumato.noise.schedules import Linear
from sfumato.objectives.masked import MaskedDiffusion
from sfumato.objectives.selection import ExactK
from sfumato.objectives.times import Independent, Systematic
from sfumato.objectives.weights import ClippedWeight
from sfumato.rng import Rng
from sfumato.train import train
from sfumato.train.build_objective import build_measure
from sfumato.train.events import Evaluated, Searched, Stepped
from sfumato.train.search import INTERVALS, least, loss_variances
from sfumato.train.step import Scored
from sfumato.train.world import World as Processes

BLOCKS = ("objective.name=block", "model.block_size=8")
ALONE = Processes(torch.device("cpu"))
ROWS = 5


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return prepare_words(tmp_path_factory.mktemp("search") / "words")


@pytest.fixture
def few(monkeypatch) -> tuple[tuple[float, float], ...]:
    """Three intervals, for speed."""
    few = INTERVALS[::3]
    monkeypatch.setattr("sfumato.train.trainer.INTERVALS", few)
    return few


def enumerated_variance(denoiser, text, low: float, high: float, limit: float) -> float:
    """Of the loss of one text over every number of masked tokens, and every choice of so many."""
    n, first, second = len(text), 0.0, 0.0
    for k in range(1, n + 1):
        share = max(0.0, min(high, k / n) - max(low, (k - 1) / n)) / (high - low)
        subsets = list(itertools.combinations(range(n), k))
        for subset in subsets:
            noisy = torch.zeros(1, n, dtype=torch.bool)
            noisy[0, list(subset)] = True
            logits = denoiser(text[None].masked_fill(noisy, MASK), torch.tensor([k / n]), noisy)
            nats = -logits.log_softmax(-1).gather(-1, text[noisy[0]][:, None]).sum()
            loss = min(n / k, limit) * float(nats) / n
            first += share / len(subsets) * loss
            second += share / len(subsets) * loss**2
    return second - first**2


@pytest.mark.parametrize("limit", [1e9, 1.5])
def test_the_search_measures_what_enumeration_says(limit):
    world = World.random(4)
    denoiser, texts = world.denoiser(Masked(4, MASK, Linear()), error=1.0), world.sample(ROWS)
    intervals = ((0.0, 1.0), (0.0, 0.5), (0.5, 1.0))
    wanted = [
        sum(enumerated_variance(denoiser, text, *pair, limit) for text in texts) / ROWS**2
        for pair in intervals
    ]
    objectives = [
        MaskedDiffusion(MASK, Independent(), ExactK(*pair), ClippedWeight(limit))
        for pair in intervals
    ]
    scored, batches = Scored(torch.nn.Linear(1, 1), denoiser), [batch_of(texts)]
    found = loss_variances(scored, objectives, batches, Rng.from_seed(0), ALONE, repeats=200)
    assert found.tolist() == pytest.approx(wanted, rel=0.4)  # 200 draws: some 10 %, 4 times that
    assert max(wanted) > 1.8 * min(wanted)
    assert least(found.tolist()) == least(wanted)


def test_a_step_in_parts_varies_as_in_one():
    world = World.random(4)
    scored = Scored(torch.nn.Linear(1, 1), world.denoiser(Masked(4, MASK, Linear())))
    batch = batch_of(world.sample(6))
    parts = [replace(batch, **{k: v[n::2] for k, v in vars(batch).items()}) for n in range(2)]
    objectives = [MaskedDiffusion(MASK, Systematic(6), ExactK(*pair)) for pair in INTERVALS]
    one, two = (
        loss_variances(scored, objectives, batches, Rng.from_seed(0), ALONE)
        for batches in ([batch], parts)
    )
    assert one.tolist() == pytest.approx(two.tolist(), rel=1e-4)
    assert min(one.tolist()) > 0


def test_what_is_found_is_trained_on_logged_and_gone_on_with(words, tmp_path, few):
    options = {"train": {"save_steps": 5}, "evaluate": {"eval_steps": 4}}
    straight = small_run(words, tmp_path / "straight", *SEARCH, **options)
    expected = run_all(straight)
    found = of_kind(expected, Searched)
    assert [event.step for event in found] == [5, 10]
    assert all(event.deviation <= event.whole_deviation for event in found)
    assert found[0].interval in few[1:]  # else the last lines here say nothing
    records = map(json.loads, (straight.output / "metrics.jsonl").read_text().splitlines())
    logged = [(r["interval_low"], r["interval_high"]) for r in records if "interval_low" in r]
    assert logged == [event.interval for event in found]

    run = small_run(words, tmp_path / "stopped", *SEARCH, **options)
    answers = iter([*[False] * 6, True])
    train(run, lambda: next(answers))
    events = run_all(run)
    assert of_kind(events, Stepped)[0].step == 8
    assert of_kind(events, Searched) == found[1:]
    assert of_kind(events, Evaluated) == of_kind(expected, Evaluated)[1:]
    for name in ("model", "checkpoints/step-00000010/training"):
        file = f"{name}.safetensors"
        assert same_tensors(run.output / file, straight.output / file), name

    plain = run_all(small_run(words, tmp_path / "plain", *BLOCKS, **options))
    losses = [[event.loss for event in of_kind(es, Stepped)] for es in (plain, expected)]
    assert losses[0][:5] == losses[1][:5]
    assert losses[0][5] != losses[1][5]


@pytest.mark.parametrize(
    "options", [SEARCH, (*BLOCKS, "objective.selection={name: exact_k, low: 0.3, high: 0.8}")]
)
def test_the_reported_bound_has_all_mask_rates(words, tmp_path, few, options):
    run = small_run(words, tmp_path / "clipped", *options, train={"save_steps": 5})
    last = of_kind(run_all(run), Evaluated)[-1]
    measure = build_measure(run, Masked(9, 8), 12, 8)
    assert measure.masked.selection == ExactK(0.0, 1.0)
    still = small_run(
        words,
        tmp_path / "still",
        *("objective.name=block", "train.max_steps=1", "train.warmup_steps=0"),
        *("train.learning_rate=1e-12", "train.adam_learning_rate=1e-12"),
        model={
            **{"hidden_size": None, "num_hidden_layers": None, "num_attention_heads": None},
            "init_from": str(run.output / "checkpoints/step-00000010"),
        },
    )
    assert of_kind(run_all(still), Evaluated)[-1].bound == pytest.approx(last.bound, abs=1e-4)


def test_blocks_of_one_token_keep_all_rates(words, tmp_path, few):
    options = ("objective.name=block", "model.block_size=1", "objective.search_steps=10")
    run = small_run(words, tmp_path / "out", *options)
    found = of_kind(run_all(run), Searched)
    assert [(event.interval, event.deviation) for event in found] == [((0.0, 1.0), 0.0)]


def test_nothing_is_searched_while_next_tokens_are_learnt(words, tmp_path, few):
    options = ("objective.search_steps=3", "objective.next_token_steps=5")
    found = of_kind(run_all(small_run(words, tmp_path / "out", *options)), Searched)
    assert [event.step for event in found] == [6, 9]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["objective.name=next_token"], "search_steps is for objective.name=masked or block"),
        (["objective.selection=bernoulli"], "finds the low and high of selection exact_k"),
        (["objective.selection={name: exact_k, low: 0.3}"], "finds the low and high of selection"),
        (["objective.weight=constant"], "in nats a token, which weight constant does not give"),
    ],
)
def test_searches_that_cannot_be_are_refused(words, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        run_all(small_run(words, tmp_path / "out", "objective.search_steps=2", *options))
