"""Two processes on gloo learn what one learns, with whole weights in each or a part in each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small_runs import SEARCH, of_kind, prepare_words, run_all, small_run
from torch.testing import assert_close

from sfumato.train import training
from sfumato.train.events import Evaluated, Saved, Stepped

HERE = Path(__file__).parents[1]


def launch(folder: Path) -> None:
    """Runs of one process beside those of two; see two_processes.py."""
    words = prepare_words(folder / "words")
    options = {"ema_decay": 0.5, "save_steps": 5}
    sections = {"train": options, "model": {"dropout": 0.2}}
    events = list(training(small_run(words, folder / "alone", **sections)))
    losses = [event.loss for event in of_kind(events, Stepped)]
    run_all(small_run(words, folder / "searched-alone", "train.max_steps=6", *SEARCH))
    begun = training(small_run(words, folder / "begun", **sections))
    while not isinstance(next(begun), Saved):
        pass
    begun.close()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*launcher, HERE / "two_processes.py", words, folder],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{HERE.parent / 'src'}"},
        check=True,
        timeout=240,
    )
    assert losses[0] > losses[-1]
    assert len(of_kind(events, Evaluated)) == 2


def same_weights(folder: Path, name: str) -> None:
    alone = load_file(folder / "alone/checkpoints/step-00000010/training.safetensors")
    together = load_file(folder / name / "checkpoints/step-00000010/training.safetensors")
    assert together.keys() == alone.keys()
    for key, value in alone.items():
        # sums of float32 in another order, then ten steps of Muon
        assert_close(together[key], value, rtol=2e-3, atol=5e-4, msg=f"{key} of {name}")


def same_metrics(folder: Path, name: str, single: str) -> None:
    alone, together = (
        (folder / run / "metrics.csv").read_text().splitlines() for run in (single, name)
    )
    assert len(alone) == len(together) == {"alone": 13, "searched-alone": 10}[single]
    for one, other in zip(alone[1:], together[1:], strict=True):
        found, wanted = (
            [float(x) if x else -1.0 for x in (*line.split(",")[:7], *line.split(",")[9:])]
            for line in (other, one)
        )
        assert found == pytest.approx(wanted, rel=1e-3)


def test_two_processes_learn_and_log_what_one_does(tmp_path, subtests):
    """One test, so that no two workers of pytest-xdist launch the same processes."""
    launch(tmp_path)
    for name in ("replicate-1", "replicate-2", "shard-2", "begun", "stopped"):
        with subtests.test(name):
            same_weights(tmp_path, name)
            same_metrics(tmp_path, name, "alone")
    with subtests.test("searched"):
        same_metrics(tmp_path, "searched", "searched-alone")
    with subtests.test("a run that failed keeps its checkpoint"):
        checkpoints = tmp_path / "poisoned/checkpoints"
        assert [path.name for path in checkpoints.iterdir()] == ["step-00000005"]
