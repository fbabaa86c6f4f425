"""Checkpoints that are whole or absent, and the lock that keeps a folder to one run.

A checkpoint is a model folder with two more files: `training.safetensors`, the tensors that only
training needs, and `state.json`. It is written beside its place and renamed when every byte is on
the disk, so a folder called `step-...` is complete, whatever was killed when.
"""

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from safetensors.torch import save_file
from torch import Tensor

from sfumato.errors import CheckpointError, TrainingError
from sfumato.storage.files import Remedy, check_file, read_tensors
from sfumato.storage.replace import created, sweep, writing
from sfumato.storage.structured import check_shape, read_object

STATE, TRAINING = "state.json", "training.safetensors"
DAMAGED = Remedy(
    CheckpointError, "the checkpoint is damaged: remove it to go on from the one before it"
)
SHAPE = {  # of the state of a training run
    "progress": {"step": int},
    "run": dict,
    "identity": {"data": str, "tokenizer": str},
    "sizes": dict,
}


class Checkpoints:
    """The checkpoints of one run, `folder/step-00000500` and so on."""

    def __init__(self, folder: Path, keep: int):
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, oldest first."""
        if not self.folder.is_dir():
            return []
        folders = (path.name for path in self.folder.iterdir() if path.is_dir())
        names = (re.fullmatch(r"step-(\d{8,})", name) for name in folders)
        return sorted(int(name[1]) for name in names if name)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        write_model: Callable[[Path], None],
    ) -> None:
        """Write a checkpoint, put it in place and remove what is too old."""
        place = self.path(step)
        with created(place) as folder:
            write_model(folder)
            save_file(dict(tensors), folder / TRAINING)
            sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
            text = json.dumps({**state, "sizes": sizes}, indent=1)
            (folder / STATE).write_text(text, encoding="utf-8")
        self.prune()

    def prune(self) -> None:
        """Remove what is too old."""
        for old in self.steps()[: -self.keep]:
            remove(self.path(old))

    def load(self, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """State and training tensors of a checkpoint, checked against the sizes it recorded."""
        place = self.path(step)
        state = read_object(place / STATE, DAMAGED, finite=False)
        check_shape(state, {"sizes": dict}, place / STATE, DAMAGED)
        for name, size in state["sizes"].items():
            found = check_file(place / name, DAMAGED, most=None)
            if found != size:
                raise DAMAGED.fault(place / name, f"has {found} bytes instead of {size}")
        return state, read_tensors(place / TRAINING, DAMAGED)

    def clear(self) -> None:
        """Remove every checkpoint."""
        for step in self.steps():
            remove(self.path(step))

    def sweep(self) -> None:
        """Remove what writes and removals that were interrupted left behind."""
        with writing(self.folder):
            sweep(self.folder, re.compile(r"\.step-\d+(\.old)?\.part"))


def remove(place: Path) -> None:
    """Remove a folder; killed midway, it leaves nothing that looks like a checkpoint."""
    doomed = place.with_name(f".{place.name}.old.part")
    with writing(place):
        place.rename(doomed)
        shutil.rmtree(doomed)


@contextmanager
def locked(folder: Path, patience: float = 10.0) -> Iterator[None]:
    """Keep other runs out of a folder; the kernel lets go when the process ends, however it ends.

    Data workers outlive a killed run by some seconds and still hold its lock: if the process named
    in the file is gone, wait up to `patience` seconds.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a+", encoding="utf-8")
    with file:
        deadline = time.monotonic() + patience
        while not _try_lock(file):
            file.seek(0)
            owner = file.read().strip()
            if _alive(owner) or time.monotonic() > deadline:
                raise TrainingError(
                    f"{folder} is in use by another run (process {owner}); "
                    "wait for it, stop it, or choose another output"
                )
            time.sleep(0.2)
        with writing(folder):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        yield


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _alive(owner: str) -> bool:
    try:
        os.kill(int(owner), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
