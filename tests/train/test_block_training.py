"""Runs that train block diffusion, and what they refuse."""

import pytest
from small_runs import of_kind, prepare_words, run_all, small_run

from sfumato import DiffusionLM
from sfumato.errors import ConfigError
from sfumato.noise.corruption import Masked
from sfumato.objectives.blocks import BlockDiffusion
from sfumato.objectives.curriculum import Curriculum
from sfumato.objectives.masked import MaskedDiffusion
from sfumato.objectives.times import Systematic
from sfumato.train.build_objective import build_measure, build_objective
from sfumato.train.events import Evaluated

BLOCKS = ("objective.name=block", "model.block_size=8")
OWN_SHAPE = {"hidden_size": None, "num_hidden_layers": None, "num_attention_heads": None}
CURRICULUM = "objective.curriculum=[{size: 1, steps: 3}, {size: 4, steps: 2}]"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return prepare_words(tmp_path_factory.mktemp("blocks") / "words")


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    run = small_run(words, tmp_path_factory.mktemp("run") / "out", "train.max_steps=30", *BLOCKS)
    return run, run_all(run)


def test_a_run_of_blocks_learns_and_leaves_a_block_model(finished):
    run, events = finished
    bounds = [event.bound for event in of_kind(events, Evaluated)]
    assert bounds[-1] < bounds[0] - 0.3
    config = DiffusionLM.from_pretrained(run.output).model.config
    assert (config.attention, config.block_size, config.objective) == ("block_causal", 8, "masked")


def test_times_are_spread_over_rows_and_blocks_of_a_step(words, tmp_path):
    run = small_run(words, tmp_path, *BLOCKS, CURRICULUM)
    objective = build_objective(run, Masked(9, 8), 8)
    assert isinstance(objective, Curriculum)
    sizes = [(end, stage.size, stage.masked.times) for end, stage in objective.stages]
    assert sizes == [(24, 1, Systematic(8 * 32)), (40, 4, Systematic(8 * 8))]
    assert objective.last.masked.times == Systematic(8 * 4)
    measure = build_measure(run, Masked(9, 8), 12, 8)
    assert measure == BlockDiffusion(8, MaskedDiffusion(8, Systematic(12 * 4)))


def test_a_curriculum_trains(words, tmp_path):
    events = run_all(small_run(words, tmp_path / "out", *BLOCKS, CURRICULUM))
    assert events[-1].step == 10


@pytest.mark.parametrize("first", ["objective.name=masked", "objective.name=next_token"])
def test_any_model_becomes_a_block_model_and_back(words, tmp_path, first):
    one = small_run(words, tmp_path / "one", first)
    run_all(one)
    two = small_run(
        words,
        tmp_path / "two",
        *BLOCKS,
        CURRICULUM,
        model={**OWN_SHAPE, "init_from": str(one.output)},
    )
    run_all(two)
    config = DiffusionLM.from_pretrained(two.output).model.config
    assert (config.attention, config.block_size) == ("block_causal", 8)
    assert config.shift == (first == "objective.name=next_token")
    three = small_run(words, tmp_path / "three", model={**OWN_SHAPE, "init_from": str(two.output)})
    run_all(three)
    config = DiffusionLM.from_pretrained(three.output).model.config
    assert (config.attention, config.block_size, config.shift) == ("full", None, False)


def test_a_block_model_goes_on_with_its_own_blocks(finished, words, tmp_path):
    model = {**OWN_SHAPE, "init_from": str(finished[0].output)}
    run = small_run(words, tmp_path / "more", "objective.name=block", model=model)
    run_all(run)
    assert DiffusionLM.from_pretrained(run.output).model.config.block_size == 8


@pytest.mark.parametrize(
    ("words_of_run", "message"),
    [
        (["objective.name=block"], "needs block_size; set it"),
        (["objective.name=block", "model.block_size=33"], "33 tokens are longer than data.length"),
        (
            [*BLOCKS, "objective.curriculum=[{size: 64, steps: 1}]"],
            "blocks of 64 tokens are longer",
        ),
        ([CURRICULUM], "objective.curriculum is for objective.name=block, not masked"),
        ([*BLOCKS, "corruption.name=uniform"], "objective.name=block needs corruption.name=masked"),
        (["objective.name=block", "model.block_size=0"], "greater than or equal to 1, got 0"),
    ],
)
def test_blocks_that_cannot_be_are_refused(words, tmp_path, words_of_run, message):
    with pytest.raises(ConfigError, match=message):
        run_all(small_run(words, tmp_path / "out", *words_of_run))


def test_a_size_for_a_model_without_blocks_is_refused(finished, words, tmp_path):
    for options, message in (
        (["objective.name=masked", "model.block_size=4"], "model.block_size is for objective.name"),
        (["model.attention=full"], "brings its own shape"),
    ):
        model = {**OWN_SHAPE, "init_from": str(finished[0].output)}
        with pytest.raises(ConfigError, match=message):
            run_all(small_run(words, tmp_path / "out", *options, model=model))
