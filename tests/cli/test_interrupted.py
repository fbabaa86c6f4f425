"""Work that is killed, or whose disk fails, at one of its operations on files: given again, it ends
as if nothing had been, to the byte.

By default at a sample of the operations; at every one of them in the slow tests.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import FAILURES, HALVES, KILLS, Server
from small_runs import prepare_words
from tiny_lm import tiny_lm

from sfumato.lm.model import DiffusionLM

KINDS = (*KILLS, *FAILURES)
# where each kind is tried: two errors of a disk, which are one to our code, take turns
EVERYWHERE = {"half": (0, 1), "before": (0, 1), "ENOSPC": (0, 2), "EIO": (1, 2)}
STORY = "Tom saw {} red balls. He ran home, and the {} cats sat in the sun."


@pytest.fixture
def root(tmp_path):
    lines = [json.dumps({"text": STORY.format(n, 40 - n)}) + "\n" for n in range(20)]
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    return tmp_path


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return prepare_words(tmp_path_factory.mktemp("data") / "words")


def files(folder: Path) -> dict[str, Any]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def without_clocks(folder: Path) -> dict[str, Any]:
    """The files of a run, but for how long it took and whose process it was."""
    found = files(folder)
    found.pop(".lock")
    records = [json.loads(line) for line in found["metrics.jsonl"].splitlines()]
    found["metrics.jsonl"] = [
        {key: value for key, value in record.items() if "second" not in key} for record in records
    ]
    found["metrics.csv"] = len(found["metrics.csv"].splitlines())
    for name in [name for name in found if name.endswith("state.json")]:
        state = json.loads(found[name])
        del state["progress"]["seconds"]
        found[name] = state
    return found


def interrupt(
    server: Server,
    job: str,
    root: Path,
    kind: str,
    where: tuple[int, int],
    state: Callable[[Path], dict[str, Any]] = files,
) -> None:
    """Meet a fault at every so many operations from the first given, and do the work again."""
    out = root / "out"
    whole = server.trial(job, root)
    assert whole.ended == "done", whole.told
    expected = state(out)
    for at in range(where[0], len(whole.operations), where[1]):
        if kind == "before" and whole.operations[at].split()[0] not in HALVES:
            continue  # the same as "half"
        shutil.rmtree(out)
        trial = server.trial(job, root, kind, at)
        place = f"{kind} at {at}: {whole.operations[at]}: {trial.told}"
        if kind in KILLS:
            assert trial.ended == "killed", place
        elif trial.ended != "done":  # as a mkdir of what was there is
            assert trial.ended == "error", place
            assert "Error: cannot write to " in trial.told, place
            assert str(out) in trial.told, place
            assert "give the same command again" in trial.told, place
        again = server.trial(job, root)
        assert again.ended == "done", f"{place} {again.told}"
        assert state(out) == expected, place


@pytest.mark.parametrize(
    ("kind", "where"), [("half", (30, 61)), ("before", (13, 27)), ("ENOSPC", (35, 71))]
)
def test_a_run_goes_on_from_a_sample_of_moments(server, words, root, kind, where):
    (root / "words").symlink_to(words)
    interrupt(server, "train", root, kind, where, without_clocks)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_any_moment(server, words, root, kind):
    (root / "words").symlink_to(words)
    interrupt(server, "train", root, kind, EVERYWHERE[kind], without_clocks)


@pytest.mark.parametrize("job", ["prepare", "pairs", "tokenizer"])
def test_other_work_goes_on_from_a_sample_of_moments(server, root, job):
    interrupt(server, job, root, "half", (11, 23))
    shutil.rmtree(root / "out")
    interrupt(server, job, root, "EIO", (14, 29))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("job", ["prepare", "pairs", "tokenizer"])
@pytest.mark.parametrize("kind", KINDS)
def test_other_work_goes_on_from_any_moment(server, root, job, kind):
    interrupt(server, job, root, kind, EVERYWHERE[kind])


# --- a calibration: its record and what it makes of the model's options ---


def calibrated(folder: Path) -> tuple[bool, bool]:
    """Whether the options, and the record, are the new ones."""
    DiffusionLM.from_pretrained(folder)
    options = (folder / "generation_config.json").read_text()
    return "threshold" in options, "threshold" in (folder / "calibration.json").read_text()


def interrupt_calibration(server: Server, root: Path, kind: str, where: tuple[int, int]) -> None:
    tiny_lm().save(root / "before")
    old = {
        "settings": {
            "options": {"tolerance": 0.1},
            "generation": {"canvas": None, "lookahead": True},
        },
        "models": {"model": {"sha256": "1" * 64}},
        "results": {"chosen": None, "settings": []},
    }
    (root / "before" / "calibration.json").write_text(json.dumps(old))
    shutil.copytree(root / "before", root / "out")
    whole = server.trial("calibrate", root)
    assert whole.ended == "done", whole.told
    assert calibrated(root / "out") == (True, True)
    expected = files(root / "out")
    for at in range(where[0], len(whole.operations), where[1]):
        shutil.rmtree(root / "out")
        shutil.copytree(root / "before", root / "out")
        trial = server.trial("calibrate", root, kind, at)
        assert trial.ended in ("done", "error", "killed"), trial
        assert calibrated(root / "out") in ((False, False), (True, True)), whole.operations[at]
        assert server.trial("calibrate", root).ended == "done"
        assert files(root / "out") == expected


def test_a_record_and_the_options_that_it_chose_are_published_together(server, root):
    interrupt_calibration(server, root, "half", (0, 9))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_calibration_may_end_at_any_operation(server, root, kind):
    interrupt_calibration(server, root, kind, EVERYWHERE[kind])


def test_a_preparation_killed_between_its_last_removals_leaves_nothing(server, root):
    whole = server.trial("prepare", root)
    expected = files(root / "out")
    shutil.rmtree(root / "out")
    last = len(whole.operations) - 1
    assert whole.operations[last].startswith("unlink")
    assert server.trial("prepare", root, "half", last).ended == "killed"
    assert server.trial("prepare", root).ended == "done"
    assert files(root / "out") == expected
