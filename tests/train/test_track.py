"""Metrics that go elsewhere: TensorBoard's files and Weights & Biases, also after a kill."""

import json
import sys
import types
from collections import defaultdict

import pytest
from small_runs import prepare_words, run_all, small_run

from sfumato.errors import CheckpointError, TrainingError
from sfumato.train import training
from sfumato.train.events import Saved, Stepped
from sfumato.train.log import Metrics, read_records


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return prepare_words(tmp_path_factory.mktemp("data") / "words")


def records_of(run) -> list[dict[str, float]]:
    lines = (run.output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def by_step(records) -> dict[int, dict[str, float]]:
    """Those of one step together, without what a clock says."""
    merged = defaultdict(dict)
    for record in records:
        merged[record["step"]] |= {k: v for k, v in record.items() if "second" not in k}
    return dict(merged)


def stop_after(run, step: int) -> None:
    """As a kill would: the step is logged, and not in a checkpoint."""
    events = training(run)
    while not (isinstance(event := next(events), Stepped) and event.step == step):
        pass
    next(events)  # it logs after it told
    events.close()


class FakeWandb(types.ModuleType):
    """What a server keeps of each id; offline, every start has a history of its own."""

    class Error(Exception):
        pass

    def __init__(self, offline: bool = False):
        super().__init__("wandb")
        self.offline, self.histories, self.starts = offline, [], []

    def init(self, **options):
        known = [number for number, start in enumerate(self.starts) if start["id"] == options["id"]]
        if self.offline or not known:
            self.histories.append({})
            known = [len(self.histories) - 1]
        self.starts.append(options)
        return FakeRun(self.histories[known[0]])


class FakeRun:
    def __init__(self, history):
        self.history, self.step, self.open = history, max(history, default=-1) + 1, True

    def log(self, record, step):
        assert self.open
        assert step >= self.step, "it would be ignored"
        self.step = step
        self.history[step] = self.history.get(step, {}) | record

    def finish(self):
        self.open = False


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def wandb_run(words, tmp_path, *overrides):
    options = ("log.report_to=wandb", "train.save_steps=4")
    return small_run(words, tmp_path / "out", *options, *overrides)


@pytest.mark.parametrize("offline", [False, True])
def test_wandb_has_every_record_once_also_after_a_kill(words, tmp_path, wandb, offline):
    wandb.offline = offline
    run = wandb_run(words, tmp_path)
    stop_after(run, 7)
    assert sorted(wandb.histories[0]) == [1, 2, 3, 4, 5, 6, 7]
    run_all(run)
    first, again = wandb.starts
    assert first["id"] == again["id"]
    assert (first["name"], first["project"], first["resume"]) == ("out", "sfumato", "allow")
    assert first["config"]["train"]["save_steps"] == 4
    assert by_step(wandb.histories[-1].values()) == by_step(records_of(run))
    assert len(wandb.histories) == 1 + offline


def test_wandb_gets_what_was_lost_on_its_way(words, tmp_path, wandb):
    run = wandb_run(words, tmp_path)
    stop_after(run, 7)
    for step in (3, 4, 5, 6, 7):
        del wandb.histories[0][step]
    run_all(run)
    assert sorted(wandb.histories[0]) == list(range(1, 11))


def test_a_run_that_begins_anew_is_a_new_one_for_wandb(words, tmp_path, wandb):
    run_all(wandb_run(words, tmp_path))
    run_all(wandb_run(words, tmp_path))  # does nothing
    run_all(wandb_run(words, tmp_path, "overwrite=true", "seed=1"))
    assert len({start["id"] for start in wandb.starts}) == len(wandb.starts) == 2
    assert all(sorted(history) == list(range(1, 11)) for history in wandb.histories)
    run_all(wandb_run(words, tmp_path, f"output={tmp_path / 'other'}"))
    assert len(wandb.histories) == 3


def test_what_wandb_refuses_is_an_error_in_one_line(words, tmp_path, wandb):
    def refuse(**options):
        raise wandb.Error("No API key configured.")

    wandb.init = refuse
    with pytest.raises(TrainingError, match=r"No API key configured.*WANDB_MODE=offline"):
        run_all(wandb_run(words, tmp_path))
    assert not (tmp_path / "out/metrics.jsonl").exists()


def test_wandb_itself_keeps_to_that(tmp_path, monkeypatch):
    """The real package, offline: what the fake one is made after."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert issubclass(wandb.errors.UsageError, wandb.Error)
    for _ in range(2):
        run = wandb.init(project="p", name="n", id="abc", dir=tmp_path, resume="allow", config={})
        assert run.step == 0
        run.log({"step": 3, "loss": 1.0}, step=3)
        assert run.step == 3
        run.log({"step": 3, "eval_bound": 1.0}, step=3)
        run.finish()
    assert len(list(tmp_path.glob("wandb/offline-run-*-abc/run-abc.wandb"))) == 2


def test_tensorboard_shows_every_record_once_also_after_a_kill(words, tmp_path):
    module = "tensorboard.backend.event_processing.event_accumulator"
    accumulator = pytest.importorskip(module).EventAccumulator
    run = small_run(words, tmp_path / "out", "log.report_to=tensorboard", "train.save_steps=4")
    stop_after(run, 7)
    events = training(run)
    while not isinstance(next(events), Saved):
        pass
    events.close()
    run_all(run)
    shown = accumulator(str(run.output / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    wanted = defaultdict(list)
    for record in records_of(run):
        for name in record.keys() - {"step"}:
            wanted[name].append((record["step"], pytest.approx(record[name], rel=1e-6)))
    assert {"loss", "eval_bound", "learning_rate"} < set(wanted)
    tags = shown.Tags()["scalars"]
    assert {k: [(e.step, e.value) for e in shown.Scalars(k)] for k in tags} == wanted


@pytest.mark.parametrize(
    "end", [b"\n", b"\0" * 40, b"\0\n", b"[]\n", b'{"step": "x"}\n', b'{"a": "\xc3']
)
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_what_a_crash_left_in_the_records_does_not_keep_a_run_from_going_on(tmp_path, name, end):
    lines = b'{"step": 1, "loss": 2.5, "odd": NaN}\n'
    (tmp_path / name).write_bytes(lines + end)
    run = small_run(tmp_path / "words", tmp_path)
    metrics = Metrics(run, 1)
    metrics.write({"step": 2, "loss": 2.0})
    metrics.close()
    kept = read_records(tmp_path / name)
    assert [record["step"] for record in kept] == [1, 2] if name == "metrics.jsonl" else [1]
    assert read_records(tmp_path / "metrics.jsonl")[-1] == {"step": 2, "loss": 2.0}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it tells too
def test_a_disk_too_full_for_tensorboard_stops_the_run_and_nothing_is_lost(
    words, tmp_path, monkeypatch
):
    from tensorboard.summary.writer.record_writer import RecordWriter

    run = small_run(words, tmp_path / "out", "log.report_to=[tensorboard]", "train.save_steps=4")
    write, sizes = RecordWriter.write, []

    def full(writer, data):
        sizes.append(len(data))
        if len(sizes) > 30:
            raise OSError(28, "No space left on device")
        write(writer, data)

    monkeypatch.setattr(RecordWriter, "write", full)
    with pytest.raises(CheckpointError, match=r"cannot write to .*out: No space left .*make room"):
        run_all(run)
    monkeypatch.undo()
    run_all(run)
    straight = run.model_copy(update={"output": tmp_path / "straight"})
    run_all(straight)
    assert by_step(records_of(run)) == by_step(records_of(straight))
