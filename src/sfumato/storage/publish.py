"""Files and folders that are whole or not there, whatever is killed when, however full the disk.

A file is written beside its place and renamed (`replaced`); so is a folder that is new (`created`).
A folder that is there, with files of its user, an open shell or a mount on it, stays the folder
that it is, and gets all its new files at once (`published`):

.sfumato.<random>.part      what is being written; its process holds a lock on it
.sfumato.ready              the same, complete and on the disk: renamed, so that from this moment on
                            its files are the folder's, and all that is left to do is to move them

`recover` moves what a process that died has not moved. Whoever knows nothing of this finds, all the
time until then, no config.json: the old model, none, or the new one, and never parts of both.
"""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from sfumato.errors import CheckpointError, SfumatoError
from sfumato.storage.replace import flush, hold, remove_quietly, settle, sweep, writing

PART, READY = re.compile(r"\.sfumato\.[0-9a-f]{8}\.part"), ".sfumato.ready"


NAMES = ".names"  # in what is ready: all that it held


KEYS = ("config.json", "tokenizer.json")  # without it nobody takes the folder for what it is


# What belongs to a model: of an older one, nothing stays where one of its kind is new.
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")


TOKENIZER = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|merges\.txt|vocab\.txt|(tokenizer|spiece|sentencepiece\.bpe)\.model|chat_template\.jinja"
)


TRIES = 5  # of reading a folder that others write at the same time


T = TypeVar("T")


@contextmanager
def published(folder: str | Path, error: type[SfumatoError] = CheckpointError) -> Iterator[Path]:
    """An empty folder to write into, all of whose files `folder` has in the end.

    Until they are whole, `folder` is what it was. Files of its user stay; older weights and
    tokenizers go where there are new ones.
    """
    folder = Path(folder)
    with writing(folder, error):
        is_new = not folder.is_dir()
        folder.mkdir(parents=True, exist_ok=True)
        sweep_parts(folder, error)
        part = folder / f".sfumato.{secrets.token_hex(4)}.part"
        try:
            part.mkdir()
            lock = os.open(part, os.O_RDONLY)
            try:
                hold(lock)
                yield part
                _commit(folder, part, error)
            finally:
                os.close(lock)
        except BaseException:
            remove_quietly(part)
            if is_new:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()
            raise


def _commit(folder: Path, part: Path, error: type[SfumatoError]) -> None:
    names = sorted(path.name for path in part.iterdir())
    for name in names:
        if (folder / name).is_dir() and not (part / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{name} is a folder there")
    (part / NAMES).write_text(json.dumps(names), encoding="utf-8")
    settle(part)
    with _alone(folder):
        _finish(folder)
        part.rename(folder / READY)
        try:
            _hide(folder, names)
        except OSError:  # nobody may remove it: nothing has changed yet, and nothing will
            (folder / READY).rename(part)
            raise
        with _moving(folder, error):
            _finish(folder)


def recover(folder: str | Path, error: type[SfumatoError] = CheckpointError) -> None:
    """Put in place what a process had made ready for a folder when it died.

    Of a living one, wait until it has done so itself. To be called before a folder is read.
    """
    folder = Path(folder)
    if not os.path.lexists(folder / READY):
        return
    with _moving(folder, error), _alone(folder):
        _finish(folder)


def read_whole(folder: Path, read: Callable[[], T]) -> T:
    """What `read` makes of a folder's files, all of one moment: a living process may replace them
    while they are read."""
    for _ in range(TRIES):
        recover(folder)
        before = _stamp(folder)
        try:
            value = read()
        except SfumatoError:
            if _stamp(folder) == before:
                raise
        else:
            if _stamp(folder) == before:
                return value
    raise CheckpointError(
        f"{folder} was replaced {TRIES} times while it was read; try again when that has ended"
    )


def _stamp(folder: Path) -> tuple[int, int] | None:
    """Another one after every change: the key is a new file each time."""
    try:
        found = (folder / KEYS[0]).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _moving(folder: Path, error: type[SfumatoError]) -> AbstractContextManager[None]:
    """What to say when the old files are on their way out already."""
    kept = f"its new files are whole, but not all of them in place yet (the rest: {READY})"
    return writing(folder, error, "give the same command again where it can be written", kept)


def _finish(folder: Path) -> None:
    """Move what is ready; killed anywhere in it, it goes on from there."""
    ready = folder / READY
    if not ready.exists():
        return
    left = {path.name for path in ready.iterdir()} - {NAMES}
    if (ready / NAMES).exists():
        try:
            names = json.loads((ready / NAMES).read_text(encoding="utf-8"))
        except ValueError:
            raise OSError(errno.EIO, f"{ready / NAMES} is damaged") from None
        key = _key(names)
        if key in left:
            _hide(folder, names)
        for name in _stale(folder, names):
            (folder / name).unlink()
        for name in sorted(left, key=lambda name: (name == key, name)):
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            (ready / name).replace(folder / name)
        flush(folder)
        (ready / NAMES).unlink()
    ready.rmdir()


def _key(names: Sequence[str]) -> str | None:
    return next((name for name in KEYS if name in names), None)


def _hide(folder: Path, names: Sequence[str]) -> None:
    """From others than us, until all is in its place."""
    if key := _key(names):
        (folder / key).unlink(missing_ok=True)


def _stale(folder: Path, names: Sequence[str]) -> list[str]:
    """Files of an older model that would be read along with the new ones."""
    kinds = [kind for kind in (WEIGHTS, TOKENIZER) if any(map(kind.fullmatch, names))]
    there = sorted({path.name for path in folder.iterdir()} - set(names))
    return [name for name in there if any(kind.fullmatch(name) for kind in kinds)]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time moves files in a folder; it takes milliseconds."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def check_free(folder: Path, error: type[SfumatoError]) -> None:
    """Raise unless a folder is new or empty, but for what processes that died left there."""
    if folder.is_dir():
        recover(folder, error)
    if folder.exists() and not (folder.is_dir() and all(is_part(p.name) for p in folder.iterdir())):
        raise error(f"{folder} is there already; give a new or an empty folder")


def is_part(name: str) -> bool:
    """Whether a file was being written when its process died, or is being written now."""
    return name == READY or re.fullmatch(r"\..+\.[0-9a-f]{8}\.part", name) is not None


def sweep_parts(folder: Path, error: type[SfumatoError] = CheckpointError) -> None:
    """Finish or remove what processes that died left in a folder; living ones keep theirs."""
    recover(folder, error)
    with writing(folder, error):
        sweep(folder, PART)
