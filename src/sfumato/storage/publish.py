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

from sfumato.errors import CheckpointError, SfumatoError, told

PART, READY = re.compile(r"\.sfumato\.[0-9a-f]{8}\.part"), ".sfumato.ready"
NAMES = ".names"  # in what is ready: all that it held
KEYS = ("config.json", "tokenizer.json")  # without it nobody takes the folder for what it is

# What belongs to a model: of an older one, nothing stays where one of its kind is new.
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
TOKENIZER = re.compile(
    r"(tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template)\.json"
    r"|merges\.txt|vocab\.txt|(tokenizer|spiece|sentencepiece\.bpe)\.model|chat_template\.jinja"
)
ELSEWHERE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
TRIES = 5  # of reading a folder that others write at the same time
# what to do about an error of the system, by its number
CURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys(ELSEWHERE, "choose another place"),
}

T = TypeVar("T")


@contextmanager
def writing(
    place: str | Path,
    error: type[SfumatoError] = CheckpointError,
    then: str = "give the same command again",
    kept: str = "what was complete before is still there",
) -> Iterator[None]:
    """Say what could not be written, that nothing is lost, and what to do."""
    try:
        yield
    except SfumatoError:
        raise
    except Exception as failure:
        found = _system_error(failure)
        if found is None:
            raise
        number, words = found
        raise error(
            f"cannot write to {place}: {words}; {kept}; {CURES.get(number, 'mend this')} and {then}"
        ) from failure


def _system_error(failure: Exception) -> tuple[int, str] | None:
    """The system's number and words, if the failure is one of files: libraries in Rust quote it."""
    if isinstance(failure, OSError):
        return failure.errno or 0, told(failure)
    quoted = re.search(r"\(os error (\d+)\)", str(failure))
    if quoted:
        return int(quoted[1]), os.strerror(int(quoted[1]))
    nul = isinstance(failure, ValueError) and "embedded null" in str(failure)
    return (0, told(failure)) if nul or type(failure).__name__ == "SafetensorError" else None


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replaced(place: str | Path, error: type[SfumatoError] = CheckpointError) -> Iterator[Path]:
    """Where to write a file that takes the place of an older one when it is whole."""
    place = Path(os.path.realpath(place))  # a link to a file stays a link
    if place.exists() and not place.is_file():  # a pipe, a device: nothing can take its place
        with writing(place, error):
            yield place
        return
    with writing(place, error):
        place.parent.mkdir(parents=True, exist_ok=True)
        sweep(place.parent, re.compile(re.escape(f".{place.name}.") + r"[0-9a-f]{8}\.part"))
        part = place.with_name(f".{place.name}.{secrets.token_hex(4)}.part")
        lock = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _hold(lock)
            yield part
            flush(part)
            part.replace(place)
            flush(place.parent)
        except BaseException:
            _remove(part)
            raise
        finally:
            os.close(lock)


def write_text(place: str | Path, text: str, error: type[SfumatoError] = CheckpointError) -> None:
    """Replace a text file as a whole: never half of it."""
    with replaced(place, error) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def created(place: Path, error: type[SfumatoError] = CheckpointError) -> Iterator[Path]:
    """An empty folder to write into, which is `place` when it is whole."""
    part = place.with_name(f".{place.name}.part")
    with writing(place, error):
        if part.exists():
            shutil.rmtree(part)
        try:
            part.mkdir(parents=True)
            yield part
            _settle(part)
            part.rename(place)
            flush(place.parent)
        except BaseException:
            _remove(part)
            raise


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
                _hold(lock)
                yield part
                _commit(folder, part, error)
            finally:
                os.close(lock)
        except BaseException:
            _remove(part)
            if is_new:
                with suppress(OSError):  # it is not empty
                    folder.rmdir()
            raise


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


def _commit(folder: Path, part: Path, error: type[SfumatoError]) -> None:
    names = sorted(path.name for path in part.iterdir())
    for name in names:
        if (folder / name).is_dir() and not (part / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, f"{name} is a folder there")
    (part / NAMES).write_text(json.dumps(names), encoding="utf-8")
    _settle(part)
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


def _settle(part: Path) -> None:
    """Every file on the disk, and open to those whom the folder is open to: safetensors keeps its
    files to their owner."""
    mode = part.stat().st_mode & 0o666
    for path in sorted(part.rglob("*")):
        if path.is_file() and path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)
        flush(path)
    flush(part)


def sweep(folder: Path, pattern: re.Pattern[str]) -> None:
    """Remove parts that processes left behind when they died."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if pattern.fullmatch(path.name):
            try:
                lock = os.open(path, os.O_RDONLY)
            except FileNotFoundError:  # another process was faster
                continue
            try:
                if _hold(lock):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            finally:
                os.close(lock)


def _hold(lock: int) -> bool:
    """Whether nobody else has it. The system lets go of it when a process ends, however it ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is another's, or the file system has no locks
        return False
    return True


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


def _remove(part: Path) -> None:
    """As far as the disk lets us: the error that brought us here is the one to be told."""
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        with suppress(OSError):
            part.unlink(missing_ok=True)
