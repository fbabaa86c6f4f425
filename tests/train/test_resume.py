"""Going on after a kill: to the bit, from whole checkpoints only, and only with the same run."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_runs import of_kind, prepare_words, run_all, small_run

from sfumato.errors import CheckpointError, TrainingError
from sfumato.lm.model import DiffusionLM
from sfumato.train import Run, dump_run, load_run, train, training
from sfumato.train.checkpoint import Checkpoints
from sfumato.train.events import Evaluated, Finished, Interrupted, Saved, Started, Stepped
from sfumato.train.optim import rate_factor
from sfumato.train.trainer import Trainer
from sfumato.train.world import World


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return prepare_words(tmp_path_factory.mktemp("data") / "words")


def python(code: str, *arguments: object) -> subprocess.Popen:
    """A process of its own, one thread, this folder's modules within reach."""
    path = f"{Path(__file__).parents[1]}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    words = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.Popen(words, env=environment)


def killed_after(run: Run, step: int) -> None:
    """Train in a process of its own, which is killed with SIGKILL right after a step."""
    process = python(
        """
        import os, signal, sys
        from sfumato.train import load_run, training
        for event in training(load_run(sys.argv[1])):
            if type(event).__name__ == "Stepped" and event.step == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
        """,
        written(run),
        step,
    )
    assert process.wait() == -signal.SIGKILL


def written(run: Run) -> Path:
    path = run.output.with_suffix(".yaml")
    path.write_text(dump_run(run))
    return path


def same_tensors(one: Path, other: Path) -> bool:
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


HARD = {
    "model": {"dropout": 0.2},
    "train": {"ema_decay": 0.8, "save_steps": 5, "gradient_accumulation_steps": 2},
    "evaluate": {"eval_steps": 3},
}


def test_a_killed_run_ends_bit_for_bit_like_an_unbroken_one(words, tmp_path):
    straight = small_run(words, tmp_path / "straight", **HARD)
    expected = run_all(straight)
    run = small_run(words, tmp_path / "killed", **HARD)
    killed_after(run, step=8)
    assert Checkpoints(run.output / "checkpoints", 2).steps() == [5]
    events = run_all(run)
    assert of_kind(events, Started)[0].step == 5
    for name in ("model", "checkpoints/step-00000010/model", "checkpoints/step-00000010/training"):
        file = f"{name}.safetensors"
        assert same_tensors(run.output / file, straight.output / file), name
    numbers = [[(e.step, e.loss) for e in of_kind(es, Stepped)] for es in (events, expected)]
    assert numbers[0] == numbers[1][5:]
    assert of_kind(events, Evaluated) == of_kind(expected, Evaluated)[1:]
    timeless = []
    for folder in (run.output, straight.output):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        kept = [{k: v for k, v in json.loads(line).items() if "second" not in k} for line in lines]
        timeless.append(kept)
    assert timeless[0] == timeless[1]


def test_a_finished_run_given_again_does_nothing(words, tmp_path):
    run = small_run(words, tmp_path / "out")
    first = run_all(run)
    before = {p: p.stat().st_mtime_ns for p in run.output.rglob("*.safetensors")}
    again = run_all(run)
    assert [type(event).__name__ for event in again] == ["Started", "Finished"]
    assert again[-1] == first[-1]
    assert before == {p: p.stat().st_mtime_ns for p in run.output.rglob("*.safetensors")}


def test_a_run_stopped_by_its_user_goes_on(words, tmp_path):
    run = small_run(words, tmp_path / "out", train={"save_steps": 4})
    for event in training(run):
        if isinstance(event, Stepped) and event.step == 6:
            break
    assert [e.step for e in of_kind(run_all(run), Stepped)] == [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("step", [5, 6, 7])  # where it would save, where it measures, elsewhere
def test_a_run_asked_to_stop_saves_and_goes_on_bit_for_bit(words, tmp_path, step):
    straight = small_run(words, tmp_path / "straight", **HARD)
    expected = run_all(straight)
    run = small_run(words, tmp_path / "stopped", **HARD)
    answers = iter([*[False] * (step - 1), True])
    events = list(training(run, lambda: next(answers)))
    assert events[-1] == Interrupted(step, run.output / f"checkpoints/step-{step:08d}")
    assert [e.step for e in of_kind(events, Saved)] == [5, step][5 // step :]
    assert of_kind(run_all(run), Started)[0].step == step
    for name in ("model", "checkpoints/step-00000010/model", "checkpoints/step-00000010/training"):
        assert same_tensors(
            run.output / f"{name}.safetensors", straight.output / f"{name}.safetensors"
        )
    lines = (run.output / "metrics.csv").read_text().splitlines()
    assert len(lines) == len((straight.output / "metrics.csv").read_text().splitlines())
    assert of_kind(expected, Evaluated)[0] == of_kind(events, Evaluated)[0]


def test_a_run_asked_to_stop_at_its_end_is_finished(words, tmp_path):
    run = small_run(words, tmp_path / "out", "train.max_steps=3")
    answers = iter([False, False])
    assert train(run, lambda: next(answers)) == run_all(run)[-1]


def test_train_trains_to_the_end_and_returns_how_it_ended(words, tmp_path):
    run = small_run(words, tmp_path / "out", "train.max_steps=4")
    answers = iter([False, True])
    assert train(run, lambda: next(answers)) == Interrupted(
        2, run.output / "checkpoints/step-00000002"
    )
    ended = train(run)
    assert isinstance(ended, Finished)
    assert (ended.step, ended.path, ended.stopped_early) == (4, run.output, False)
    DiffusionLM.from_pretrained(run.output)


def test_training_does_nothing_before_its_first_event_is_asked_for(words, tmp_path):
    run = small_run(words, tmp_path / "out", "train.max_steps=3")
    events = training(run)
    assert not run.output.exists()
    assert isinstance(next(events), Started)
    assert run.output.exists()
    assert [*events][-1] == train(run)


# --- whole or absent ---


def test_a_kill_at_any_moment_leaves_only_whole_checkpoints(tmp_path):
    """Processes write checkpoint after checkpoint; each is killed, every time a bit later."""
    process = python(
        """
        import os, signal, sys, time, torch
        from pathlib import Path
        from safetensors.torch import save_file
        from sfumato.train.checkpoint import Checkpoints

        kept = Checkpoints(Path(sys.argv[1]), keep=2)

        def write_on(step):
            kept.sweep()
            while True:
                step += 1
                tensors = {str(i): torch.full((20_000,), float(step)) for i in range(20)}
                write = lambda folder: save_file(tensors, folder / "model.safetensors")
                kept.save(step, {"mark": step}, tensors, write)

        def check():
            assert 1 <= len(kept.steps()) <= 3  # the oldest may be on its way out
            for step in kept.steps():
                state, tensors = kept.load(step)
                assert state["mark"] == step
                assert all(bool((tensor == step).all()) for tensor in tensors.values())

        for trial in range(8):
            newest = (kept.steps() or [0])[-1]
            child = os.fork()
            if not child:
                write_on(newest)
            while (kept.steps() or [0])[-1] < newest + 2:
                time.sleep(0.001)
            time.sleep(0.003 * trial)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            check()
        kept.sweep()
        assert not list(kept.folder.glob(".*"))
        """,
        tmp_path / "checkpoints",
    )
    assert process.wait() == 0


def test_half_a_checkpoint_is_never_gone_on_from(words, tmp_path):
    run = small_run(words, tmp_path / "out", train={"save_steps": 5})
    run_all(run)
    folder = run.output / "checkpoints"
    shutil.rmtree(folder / "step-00000010")
    half = shutil.copytree(folder / "step-00000005", folder / ".step-00000010.part")
    (half / "training.safetensors").unlink()
    assert of_kind(run_all(run), Started)[0].step == 5
    assert not half.exists()


def test_a_full_disk_stops_the_run_and_spares_the_last_checkpoint(words, tmp_path):
    run = small_run(words, tmp_path / "out", train={"save_steps": 5})
    events = training(run)
    for event in events:
        if isinstance(event, Saved):
            break
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))  # less than the weights
    try:
        with pytest.raises(CheckpointError, match=r"cannot write .*make room and give the same"):
            list(events)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    folder = run.output / "checkpoints"
    assert [path.name for path in folder.iterdir()] == ["step-00000005"]
    DiffusionLM.from_pretrained(run.output)
    assert [e.step for e in of_kind(run_all(run), Stepped)] == [6, 7, 8, 9, 10]


def test_a_disk_too_full_for_metrics_stops_the_run_too(words, tmp_path):
    run = small_run(words, tmp_path / "out")
    events = training(run)
    for event in events:
        if isinstance(event, Stepped):
            break
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"cannot write .*make room"):
            list(events)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [e.step for e in of_kind(run_all(run), Stepped)] == list(range(1, 11))


@pytest.mark.parametrize("name", ["training.safetensors", "model.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_refused(words, tmp_path, name):
    run = small_run(words, tmp_path / "out", train={"save_steps": 5})
    run_all(run)
    file = run.output / "checkpoints/step-00000010" / name
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"step-00000010/.* is damaged: remove it to go on"):
        run_all(run)
    shutil.rmtree(file.parent)
    assert of_kind(run_all(run), Started)[0].step == 5


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(words, tmp_path):
    run = small_run(words, tmp_path / "out", train={"save_steps": 2})
    run.output.mkdir()
    trainer = Trainer(run, World(torch.device("cpu")))
    events = trainer.events()
    while not isinstance(event := next(events), Saved) or event.step < 4:
        pass
    with torch.no_grad():
        trainer.model.embed.weight.fill_(torch.inf)
    with pytest.raises(TrainingError, match=r"at step 5 .*before this step changed a weight"):
        list(events)
    trainer.close()
    assert trainer.checkpoints.steps() == [2, 4]
    assert [e.step for e in of_kind(run_all(run), Stepped)] == [5, 6, 7, 8, 9, 10]


# --- the same run ---


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.learning_rate=0.5"], r"other settings: train.learning_rate 0.02 -> 0.5; set them"),
        (["seed=5", "data.length=16"], r"data.length 32 -> 16, seed 0 -> 5;"),
        (["objective.weight=clipped"], r"objective.weight.name None -> 'clipped'"),
        (["model.num_hidden_layers=3"], r"model.num_hidden_layers 2 -> 3"),
        (["train.max_steps=9"], r"train.max_steps 10 -> 9"),  # its steps have other rates
        (["train.max_steps=20", "seed=5"], r"seed 0 -> 5, train.max_steps 10 -> 20"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(words, tmp_path, overrides, message):
    run_all(small_run(words, tmp_path / "out"))
    with pytest.raises(CheckpointError, match=message):
        run_all(small_run(words, tmp_path / "out", *overrides))


def test_other_data_are_refused(words, tmp_path):
    run_all(small_run(words, tmp_path / "out"))
    other = prepare_words(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"trained on other data \(fingerprint"):
        run_all(small_run(other, tmp_path / "out"))


def test_settings_that_change_no_step_may_change(words, tmp_path):
    run_all(small_run(words, tmp_path / "straight", train={"save_steps": 5}))
    run = small_run(words, tmp_path / "out", train={"save_steps": 5})
    for event in training(run):
        if isinstance(event, Saved):
            break
    moved = shutil.copytree(words, tmp_path / "moved")
    changes = ["log.logging_steps=3", "train.save_steps=2", "train.dataloader_num_workers=1"]
    run_all(load_run(written(run), [*changes, f"data.folder={moved}", "evaluate.eval_steps=1"]))
    file = "checkpoints/step-00000010/training.safetensors"
    assert same_tensors(run.output / file, tmp_path / "straight" / file)


@pytest.mark.parametrize("kind", ["constant", "wsd"])
def test_a_run_at_its_peak_rate_can_be_made_longer(words, tmp_path, kind):
    rates = {"lr_scheduler_type": kind, "save_steps": 6}
    rates |= {"decay_steps": 4} if kind == "wsd" else {}
    longer = {"max_steps": 14}
    run_all(small_run(words, tmp_path / "straight", train={**rates, **longer}))
    short = small_run(words, tmp_path / "out", train=rates)
    events = training(short)
    while not isinstance(event := next(events), Saved):
        pass
    assert event.step == 6
    events.close()
    run_all(small_run(words, tmp_path / "out", train={**rates, **longer}))
    file = "checkpoints/step-00000014/training.safetensors"
    assert same_tensors(tmp_path / "out" / file, tmp_path / "straight" / file)


def test_a_finished_constant_run_can_be_made_longer(words, tmp_path):
    rates = {"lr_scheduler_type": "constant"}
    run_all(small_run(words, tmp_path / "out", train=rates))
    events = run_all(small_run(words, tmp_path / "out", train={**rates, "max_steps": 12}))
    assert [e.step for e in of_kind(events, Stepped)] == [11, 12]
    assert not events[-1].stopped_early


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd"])
def test_a_run_whose_rate_falls_can_be_made_longer_too_and_says_so(words, tmp_path, kind):
    rates = {"lr_scheduler_type": kind, "save_steps": 6, "min_lr_ratio": 0.25}
    run_all(small_run(words, tmp_path / "out", train=rates))
    longer = small_run(words, tmp_path / "out", train={**rates, "max_steps": 16})
    events = training(longer)
    begun = next(events)
    assert begun.step == 10
    assert begun.note.startswith("made longer, from 10 to 16 steps: the learning rate is ")
    for step in (10, 11):
        expected = 0.02 * rate_factor(step, longer.train)
        assert next(events).learning_rate == pytest.approx(expected)
    while not isinstance(next(events), Saved):  # that of step 12
        pass
    events.close()
    events = run_all(longer)  # as a run of 16 steps, which goes on as any other
    assert of_kind(events, Started)[0].note == ""
    assert [e.step for e in of_kind(events, Stepped)] == [13, 14, 15, 16]


def test_a_run_killed_between_its_first_model_and_its_first_checkpoint_begins_again(
    words, tmp_path
):
    run = small_run(words, tmp_path / "out", "evaluate.eval_steps=3", "train.save_steps=8")
    events = training(run)
    while not isinstance(next(events), Evaluated):
        pass
    events.close()
    assert (run.output / "model.safetensors").exists()
    with pytest.raises(CheckpointError, match="already holds a model, and no checkpoint"):
        run_all(run.model_copy(update={"seed": 1}))
    run_all(run)
    straight = run.model_copy(update={"output": tmp_path / "straight"})
    run_all(straight)
    file = "checkpoints/step-00000010/training.safetensors"
    assert same_tensors(run.output / file, straight.output / file)
    shutil.copy(run.output / "model.safetensors", tmp_path)
    shutil.rmtree(run.output)
    run.output.mkdir()
    shutil.copy(tmp_path / "model.safetensors", run.output)  # from somewhere else
    with pytest.raises(CheckpointError, match="already holds a model, and no checkpoint"):
        run_all(run)


def test_a_folder_with_a_model_but_no_checkpoint_is_spared(words, tmp_path):
    run = small_run(words, tmp_path / "out")
    run_all(run)
    shutil.rmtree(run.output / "checkpoints")
    with pytest.raises(CheckpointError, match=r"already holds a model, and no checkpoint"):
        run_all(run)


def test_overwriting_starts_again(words, tmp_path):
    run_all(small_run(words, tmp_path / "out", "seed=1"))
    events = run_all(small_run(words, tmp_path / "out", "overwrite=true"))
    assert of_kind(events, Started)[0].step == 0
    assert not load_run(tmp_path / "out/run.yaml").overwrite  # given again, it goes on
    records = (tmp_path / "out/metrics.jsonl").read_text().splitlines()
    assert [json.loads(r)["step"] for r in records if "grad_norm" in r] == list(range(1, 11))


def test_overwriting_is_of_another_run_so_that_a_preempted_one_ends(words, tmp_path):
    run_all(small_run(words, tmp_path / "out", "seed=1"))
    run = small_run(words, tmp_path / "out", "overwrite=true", train={"save_steps": 3})
    begun = []
    for _ in range(4):  # a job that is stopped after every checkpoint, and given again as it was
        events = training(run)
        begun.append(next(events).step)
        while not isinstance(next(events, None), Saved | Finished | None):
            pass
        events.close()
    assert begun == [0, 3, 6, 9]
    assert run_all(run)[0].step == 10
    assert isinstance(run_all(run)[-1], Finished)  # and what is finished stays so


def test_overwriting_takes_a_folder_of_other_data(words, tmp_path):
    run = small_run(words, tmp_path / "out", "overwrite=true")
    run_all(run)
    other = prepare_words(tmp_path / "other", seed=1)
    assert run_all(small_run(other, tmp_path / "out", "overwrite=true"))[0].step == 0


def test_overwriting_spares_the_good_checkpoints_of_its_own_run(words, tmp_path):
    run = small_run(words, tmp_path / "out", "overwrite=true", train={"save_steps": 5})
    run_all(run)
    (run.output / "checkpoints/step-00000010/state.json").write_text("{")
    with pytest.raises(CheckpointError, match="remove it to go on from the one before it"):
        run_all(run)
    shutil.rmtree(run.output / "checkpoints/step-00000010")
    assert run_all(run)[0].step == 5
    (run.output / "checkpoints/step-00000010/state.json").write_text("{")
    assert run_all(small_run(words, tmp_path / "out", "overwrite=true", "seed=3"))[0].step == 0


def test_a_lock_outlives_neither_its_process_nor_a_kill(words, tmp_path):
    # its data worker holds the lock for some seconds more
    run = small_run(words, tmp_path / "out", train={"save_steps": 2, "dataloader_num_workers": 1})
    killed_after(run, step=3)
    assert (run.output / ".lock").read_text().isdigit()
    assert of_kind(run_all(run), Started)[0].step == 2


def test_only_whole_folders_of_a_step_are_checkpoints(tmp_path):
    for name in ("step-00000005", "step-99", "step-0000000x", "step-00000007.part"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000099").touch()
    assert Checkpoints(tmp_path, keep=2).steps() == [5]
