"""The launchers themselves, each with two processes on CPUs: what their users type."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_runs import prepare_words, small_run

from sfumato.train import dump_run, train

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
TORCHRUN = [BIN / "torchrun", "--standalone", "--nproc-per-node=2"]
ACCELERATE = [BIN / "accelerate", "launch", "--num_processes=2", "--main_process_port=0"]
CONFIG = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
machine_rank: 0
num_machines: 1
num_processes: 2
main_process_port: 0
mixed_precision: 'no'
fsdp_config:
  fsdp_version: 2
  fsdp_reshard_after_forward: true
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_state_dict_type: FULL_STATE_DICT
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """A run of one process."""
    folder = tmp_path_factory.mktemp("runs")
    run = small_run(prepare_words(folder / "words"), folder / "alone")
    (folder / "run.yaml").write_text(dump_run(run))
    (folder / "accelerate.yaml").write_text(CONFIG)
    train(run)
    return folder


def start(launcher, folder, *overrides, **options):
    words = [*launcher, "-m", "sfumato", "train", folder / "run.yaml", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        list(map(str, words)), env=environment, stdout=subprocess.PIPE, text=True, **options
    )


def numbers(folder: Path) -> list[list[float]]:
    """Of every record what does not tell time."""
    lines = (folder / "metrics.csv").read_text().splitlines()[1:]
    return [
        [float(x or -1) for x in (*line.split(",")[:7], *line.split(",")[9:])] for line in lines
    ]


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        (TORCHRUN, "parallel: replicate"),
        ([*ACCELERATE, "--multi_gpu"], "parallel: replicate"),  # on CPUs, too
        ([*ACCELERATE, "--use_fsdp", "--fsdp_version=2"], "parallel: shard"),
        ([BIN / "accelerate", "launch", "--config_file=accelerate.yaml"], "parallel: shard"),
    ],
    ids=["torchrun", "accelerate", "fsdp", "config"],
)
def test_two_launched_processes_train_what_one_trains(alone, tmp_path, launcher, expected):
    process = start(launcher, alone, f"output={tmp_path / 'out'}", cwd=alone)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    assert said.count("2 x cpu") == 1
    assert [line.split(":")[0] for line in said.splitlines() if ": loss" in line] == [
        f"step {step}" for step in range(1, 11)
    ]
    assert said.splitlines()[-1].startswith("done after 10 steps")
    assert expected in (tmp_path / "out/run.yaml").read_text()
    for one, other in zip(numbers(alone / "alone"), numbers(tmp_path / "out"), strict=True):
        assert other == pytest.approx(one, rel=1e-3)


def test_two_nodes_meet_at_the_address_of_the_first(alone, tmp_path):
    nodes = [
        start(
            [
                *(BIN / "torchrun", "--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=1"),
                *("--master-addr=127.0.0.1", f"--master-port={20_000 + os.getpid() % 10_000}"),
            ],
            alone,
            f"output={tmp_path / 'out'}",
        )
        for rank in range(2)
    ]
    said = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert "2 x cpu" in said[0]
    assert said[1] == ""
    for one, other in zip(numbers(alone / "alone"), numbers(tmp_path / "out"), strict=True):
        assert other == pytest.approx(one, rel=1e-3)


def test_accelerate_that_starts_one_process_of_two_is_refused(alone, tmp_path):
    process = start([*ACCELERATE, "--cpu"], alone, f"output={tmp_path}", stderr=subprocess.STDOUT)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "asked for several processes and started one" in said


@pytest.mark.parametrize("launcher", [[sys.executable], TORCHRUN], ids=["one", "two"])
def test_a_scheduler_that_ends_a_run_lets_it_save(alone, tmp_path, launcher):
    """SIGTERM to all processes of a job, as schedulers send it: data workers get it, too."""
    out = tmp_path / "out"
    words = [f"output={out}", "train.max_steps=1000000", "train.save_steps=1000000"]
    words += ["train.dataloader_num_workers=1", "evaluate.eval_steps=1000"]
    process = start(launcher, alone, *words, start_new_session=True)
    while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").stat().st_size < 2000:
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == (143 if launcher is not TORCHRUN else 1)  # torchrun has its own
    (saved,) = (out / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    assert said.count(f"stopped and saved after step {step};") == 1
    process = start(launcher, alone, *words, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline().endswith(f"going on after step {step}\n")
    os.killpg(process.pid, signal.SIGKILL if launcher is not TORCHRUN else signal.SIGTERM)
    process.communicate(timeout=60)
