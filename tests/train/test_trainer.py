"""The loop: what a run tells and leaves behind, and what it refuses."""

import csv
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import golden_losses, of_kind, prepare_words, run_all, small_run
from torch.testing import assert_close

from sfumato.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingExtra,
    SfumatoError,
    TrainingError,
)
from sfumato.estimates import Estimate
from sfumato.lm.model import DiffusionLM
from sfumato.train import load_run, training
from sfumato.train.events import Evaluated, Finished, Sampled, Saved, Started, Stepped
from sfumato.train.trainer import Trainer
from sfumato.train.world import World


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return prepare_words(tmp_path_factory.mktemp("data") / "words")


# --- a whole run ---


@pytest.fixture(scope="module")
def finished(words, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "out"
    run = small_run(
        words,
        output,
        train={"max_steps": 60, "warmup_steps": 5, "save_steps": 20, "learning_rate": 0.02},
        evaluate={"eval_steps": 20},
        samples={"sample_steps": 30, "prompts": ["the cat", "a"], "num_steps": 4, "length": 8},
        log={"logging_steps": 10, "report_to": ["png", "tensorboard"]},
    )
    return run, run_all(run)


def test_a_run_tells_what_happens_in_order(finished):
    _, events = finished
    assert [type(event) for event in events[:2]] == [Started, Stepped]
    assert [event.step for event in of_kind(events, Stepped)] == list(range(1, 61))
    assert [event.step for event in of_kind(events, Evaluated)] == [20, 40, 60]
    assert [event.step for event in of_kind(events, Sampled)] == [30, 60]
    assert [event.step for event in of_kind(events, Saved)] == [20, 40, 60]
    assert isinstance(events[-1], Finished)
    assert events[-1].best == min(event.bound for event in of_kind(events, Evaluated))
    assert not events[-1].stopped_early


def test_a_run_learns(finished):
    _, events = finished
    bounds = [event.bound for event in of_kind(events, Evaluated)]
    losses = [event.loss for event in of_kind(events, Stepped)]
    assert losses[0] == pytest.approx(np.log(279), abs=0.1)  # 280 tokens, the mask never
    assert bounds[-1] < bounds[0] - 0.5
    assert np.mean(losses[-10:]) < losses[0] - 1.5


def test_a_run_leaves_a_model_that_writes(finished):
    run, _ = finished
    lm = DiffusionLM.from_pretrained(run.output)
    assert len(lm.generate("the", length=5, num_steps=2, seed=0).tokens[0]) <= 5
    assert lm.model.config.objective == "masked"
    assert lm.options.canvas == 32
    modes = {(run.output / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1


def test_only_the_newest_checkpoints_stay_and_each_is_a_model(finished):
    run, _ = finished
    names = sorted(path.name for path in (run.output / "checkpoints").iterdir())
    assert names == ["step-00000040", "step-00000060"]
    DiffusionLM.from_pretrained(run.output / "checkpoints" / names[0])


def test_metrics_are_the_same_in_json_and_csv(finished):
    run, events = finished
    lines = (run.output / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    with (run.output / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [{k: float(v) for k, v in row.items() if v} for row in table] == records
    assert [r["step"] for r in records if "loss" in r] == [10, 20, 30, 40, 50, 60]
    assert [r["step"] for r in records if "eval_bound" in r] == [20, 40, 60]
    told = of_kind(events, Stepped)
    assert records[0]["loss"] == pytest.approx(
        sum(e.loss for e in told[:10]) / 10, rel=0.02
    )  # rows of equal counts but for the last of a pass
    assert told[-1].tokens == records[-2]["tokens"] > 59 * 8 * 32


def test_pictures_event_files_samples_and_settings_are_written(finished):
    run, events = finished
    assert (run.output / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((run.output / "tensorboard").iterdir())
    samples = [json.loads(s) for s in (run.output / "samples.jsonl").read_text().splitlines()]
    assert [tuple(s["texts"]) for s in samples] == [e.texts for e in of_kind(events, Sampled)]
    assert all(text.startswith("the cat") for text in (s["texts"][0] for s in samples))
    assert load_run(run.output / "run.yaml") == run


def test_the_saved_run_can_be_run_again(finished, tmp_path):
    run, events = finished
    again = run_all(load_run(run.output / "run.yaml", [f"output={tmp_path / 'again'}"]))
    assert [e.loss for e in of_kind(again, Stepped)] == [e.loss for e in of_kind(events, Stepped)]
    for name, value in load_file(run.output / "model.safetensors").items():
        assert_close(load_file(tmp_path / "again/model.safetensors")[name], value, rtol=0, atol=0)


def test_losses_are_those_that_were_stored(tmp_path):
    """A refactor keeps them; a change of numbers runs golden/make_training.py and says why."""
    stored = json.loads((Path(__file__).parents[1] / "golden/training.json").read_text())
    for name, losses in golden_losses(tmp_path).items():
        # another processor rounds otherwise, and twenty steps amplify it
        assert losses == pytest.approx(stored[name], rel=2e-4), name


def test_the_held_out_bound_does_not_depend_on_batches(words, tmp_path):
    bounds = [
        of_kind(
            run_all(
                small_run(
                    words,
                    tmp_path / str(size),
                    train={"max_steps": 1, "warmup_steps": 0},
                    evaluate={"batch_size": size},
                )
            ),
            Evaluated,
        )[0]
        for size in (1, 5, 64)
    ]
    for other in bounds[1:]:
        assert other.bound == pytest.approx(bounds[0].bound, rel=1e-6)
        assert other.accuracy == bounds[0].accuracy


def test_training_stops_when_it_no_longer_gets_better(words, tmp_path):
    run = small_run(
        words,
        tmp_path / "out",
        train={"learning_rate": 1e-30, "adam_learning_rate": 1e-30},
        evaluate={"eval_steps": 2, "early_stopping_patience": 2},
    )
    events = run_all(run)
    assert [event.best for event in of_kind(events, Evaluated)] == [True, False, False]
    assert events[-1].stopped_early
    assert events[-1].step == 6
    assert run_all(run)[-1].step == 6  # and it stays finished


def test_the_model_of_a_run_is_the_best_and_not_the_last(words, tmp_path):
    run = small_run(
        words,
        tmp_path / "out",
        train={
            "max_steps": 30,
            "lr_scheduler_type": "constant",
            "learning_rate": 0.5,
            "adam_learning_rate": 0.5,
        },
        evaluate={"eval_steps": 1, "early_stopping_patience": 3},
    )
    events = run_all(run)
    assert events[-1].stopped_early
    model = load_file(run.output / "model.safetensors")
    last = load_file(of_kind(events, Saved)[-1].path / "model.safetensors")
    assert any(not torch.equal(model[name], last[name]) for name in model)
    best = min(of_kind(events, Evaluated), key=lambda event: event.bound)
    again = run_all(
        small_run(
            words,
            tmp_path / "best",
            "model.num_hidden_layers=null",
            model={"hidden_size": None, "num_attention_heads": None, "init_from": str(run.output)},
            train={
                "max_steps": 1,
                "warmup_steps": 0,
                "learning_rate": 1e-30,
                "adam_learning_rate": 1e-30,
            },
        )
    )
    assert of_kind(again, Evaluated)[0].bound == pytest.approx(best.bound, rel=1e-6)


@pytest.mark.parametrize("bound", [math.nan, math.inf])
def test_a_bound_that_is_no_number_is_never_the_best(words, tmp_path, bound):
    (tmp_path / "out").mkdir()
    trainer = Trainer(small_run(words, tmp_path / "out"), World(torch.device("cpu")))
    events = trainer.events()
    next(events)
    assert not trainer._judge(Estimate.of(bound, math.nan), [1.0, 1.0]).best
    assert not (trainer.run.output / "model.safetensors").exists()
    assert trainer._judge(Estimate.of(3.0, 0.1), [1.0, 1.0]).best
    assert not trainer._judge(Estimate.of(bound, math.nan), [1.0, 1.0]).best
    assert trainer.progress.best == 3.0
    assert trainer.progress.since_best == 1
    trainer.close()
    lines = (trainer.run.output / "metrics.jsonl").read_text().splitlines()
    assert ["eval_bound" in json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        False,
        True,
        False,
    ]


def test_averaged_weights_are_what_is_measured_and_kept(words, tmp_path):
    run = small_run(words, tmp_path / "out", train={"ema_decay": 0.9})
    saved = of_kind(run_all(run), Saved)[-1].path
    model, training = (
        load_file(saved / "model.safetensors"),
        load_file(saved / "training.safetensors"),
    )
    assert any(not torch.equal(value, training[f"weight.{name}"]) for name, value in model.items())
    plain = small_run(words, tmp_path / "plain")
    last = of_kind(run_all(plain), Saved)[-1].path
    for name, value in load_file(last / "model.safetensors").items():
        assert_close(training[f"weight.{name}"], value, rtol=0, atol=0)


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective.name=next_token", "samples.sample_steps=2", "samples.num_steps=3"],
        ["objective.name=bound"],
        ["corruption.name=uniform", "objective.name=bound"],
        ["corruption.name=hybrid", "objective.name=bound", "corruption.uniform_share=0.3"],
        ["objective.weight={name: clipped, limit: 2}", "objective.selection=bernoulli"],
        ["objective.complementary=true", "objective.times=stratified"],
        ["corruption.schedule=cosine_mask", "model.time_conditioned=true", "model.dropout=0.1"],
        ["data.layout=padded", "objective.times=independent"],
        ["train.gradient_checkpointing=true", "train.precision=bf16"],
        ["train.optimizer=adamw", "train.lr_scheduler_type=wsd", "train.weight_decay=0.1"],
    ],
    ids=" ".join,
)
def test_every_kind_of_run_trains_and_loads(words, tmp_path, overrides):
    run = small_run(words, tmp_path / "out", "train.max_steps=4", *overrides)
    events = run_all(run)
    assert events[-1].step == 4
    assert 0 < events[-1].best < 60  # uniform noise costs a new network ten times ln V
    DiffusionLM.from_pretrained(run.output)


def test_recomputed_activations_give_the_same_run(words, tmp_path):
    losses = [
        [e.loss for e in of_kind(run_all(small_run(words, tmp_path / word, *extra)), Stepped)]
        for word, extra in (("kept", ()), ("again", ("train.gradient_checkpointing=true",)))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_data_smaller_than_a_batch_are_read_over_and_over(tmp_path):
    data = prepare_words(tmp_path / "few")
    run = small_run(data, tmp_path / "out", "data.length=2048", "train.max_steps=3")
    events = run_all(run)
    assert events[0].num_rows < 8
    assert events[-1].step == 3


# --- what is refused ---


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["objective.weight=clippd"],
            r"objective.weight: unknown name 'clippd'; did you mean clip",
        ),
        (
            ["objective.weight={name: clipped, limt: 3}"],
            r"'objective.weight.limt'; did you mean li",
        ),
        (["objective.weight={name: bound, limit: 3}"], r"limit'; 'bound' has no options"),
        (["objective.weight={name: clipped, limit: big}"], r"must be a number, got 'big'"),
        (["objective.weight={name: clipped, limit: -1}"], r"weight limit must be positive, got -1"),
        (["corruption.schedule=liner"], r"corruption.schedule: unknown name 'liner'; did you mean"),
        (["corruption.schedule={name: power, exponnt: 2}"], r"exponnt'; did you mean exponent"),
        (
            ["corruption.name=uniform"],
            r"objective.name=masked needs corruption.name=masked, got uni",
        ),
        (["corruption.gamma=1"], r"corruption 'masked'.*gamma"),
        (["objective.name=bound", "objective.weight=bound"], r"objective.weight is for .*=masked"),
        (["objective.name=next_token", "objective.complementary=true"], r"complementary is for"),
        (["model.size=smal"], r"unknown model size 'smal'; did you mean small"),
        (["model.hidden_size=15"], r"hidden_size 15 must be an even multiple"),
        (
            ["model.hidden_size=131072", "model.num_hidden_layers=4096"],
            r"this machine has .*make it less",
        ),
        (["objective.weight={name: clipped, limit: true}"], r"limit must be a number, got True"),
        (["output=/dev/null"], r"cannot write to /dev/null"),
        (["data.folder=/dev/null"], r"expected a folder of prepared data, got /dev/null"),
        (
            ["model.attention=ful"],
            r"'attention' must be one of full, causal, block_causal; got 'ful'",
        ),
        (["train.device=gpu"], r"cannot use device 'gpu'"),
    ],
)
def test_what_cannot_be_trained_is_refused(words, tmp_path, overrides, message):
    with pytest.raises(SfumatoError, match=message):
        run_all(small_run(words, tmp_path / "out", *overrides))


def test_data_without_held_out_text_are_refused(tmp_path):
    from sfumato.data.preparation import prepare

    (tmp_path / "x.txt").write_text("one small text " * 40)
    prepare(tmp_path / "x.txt", tmp_path / "x", vocab_size=270, validation=0.0, workers=1)
    with pytest.raises(DataError, match=r"'validation'.* is empty"):
        next(training(small_run(tmp_path / "x", tmp_path / "out", "evaluate.eval_steps=1000")))
    assert (
        run_all(small_run(tmp_path / "x", tmp_path / "out2", "evaluate.eval_steps=0"))[-1].best
        is None
    )


def test_two_runs_in_one_folder_are_refused(words, tmp_path):
    first = training(small_run(words, tmp_path / "out"))
    next(first)
    with pytest.raises(
        TrainingError, match=rf"out is in use by another run \(process {os.getpid()}"
    ):
        next(training(small_run(words, tmp_path / "out")))
    first.close()
    next(training(small_run(words, tmp_path / "out")))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.size=tiny"], r"leave out the other keys of model"),
        (["data.length=64"], r"has 32 positions, fewer than data.length 64; set data.length=32"),
    ],
)
def test_a_start_from_a_model_that_does_not_fit_is_refused(
    finished,
    tmp_path,
    words,
    overrides,
    message,
):
    keys = {"output": tmp_path, "data": {"folder": words, "length": 32}}
    run = load_run({**keys, "model": {"init_from": str(finished[0].output)}}, overrides)
    with pytest.raises(ConfigError, match=message):
        run_all(run)


def test_a_start_from_a_model_of_another_tokenizer_is_refused(finished, tmp_path):
    other = prepare_words(tmp_path / "other", vocab_size=270)
    keys = {"output": tmp_path / "out", "data": {"folder": other, "length": 32}}
    with pytest.raises(DataError, match="prepared with tokenizer"):
        run_all(load_run({**keys, "model": {"init_from": str(finished[0].output)}}))


def test_a_folder_that_cannot_be_written_is_named(words, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(CheckpointError, match=r"cannot write .*out: .*File exists"):
        run_all(small_run(words, tmp_path / "out"))


def test_what_the_launcher_asks_for_is_done_and_written(words, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run = small_run(words, tmp_path / "out", "train.precision=auto")
    assert run_all(run)[0].precision == "bfloat16"
    assert load_run(run.output / "run.yaml").train.precision == "bf16"
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match="ACCELERATE_USE_DEEPSPEED"):
        next(training(run))


@pytest.mark.parametrize(
    ("word", "module", "extra"),
    [
        ("wandb", "wandb", "wandb"),
        ("tensorboard", "torch.utils.tensorboard", "track"),
        ("png", "matplotlib.figure", "plots"),
    ],
)
def test_a_missing_extra_is_named(words, tmp_path, monkeypatch, word, module, extra):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(MissingExtra, match=rf"log.report_to={word} needs .*sfumato\[{extra}\]"):
        run_all(small_run(words, tmp_path / "out", f"log.report_to={word}"))
