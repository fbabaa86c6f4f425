"""Files that are written whole or not at all, and what a full disk is called."""

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sfumato.errors import CheckpointError, SfumatoError, told

# what another place may cure
ELSEWHERE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
# what to do about an error of the system, by its number
CURES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room"),
    **dict.fromkeys(ELSEWHERE, "choose another place"),
}


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
            hold(lock)
            yield part
            flush(part)
            part.replace(place)
            flush(place.parent)
        except BaseException:
            remove_quietly(part)
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
            settle(part)
            part.rename(place)
            flush(place.parent)
        except BaseException:
            remove_quietly(part)
            raise


def settle(part: Path) -> None:
    """Every file on the disk, and open to those whom the folder is open to: safetensors keeps its
    files to their owner."""
    mode = part.stat().st_mode & 0o666
    for path in sorted(part.rglob("*")):
        if path.is_file() and path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)
        flush(path)
    flush(part)


def hold(lock: int) -> bool:
    """Whether nobody else has it. The system lets go of it when a process ends, however it ends."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # it is another's, or the file system has no locks
        return False
    return True


def remove_quietly(part: Path) -> None:
    """As far as the disk lets us: the error that brought us here is the one to be told."""
    if part.is_dir():
        shutil.rmtree(part, ignore_errors=True)
    else:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def sweep(folder: Path, pattern: re.Pattern[str]) -> None:
    """Remove parts that processes left behind when they died."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if pattern.fullmatch(path.name):
            try:
                lock = os.open(path, os.O_RDONLY)
            except FileNotFoundError:  # another process was faster
                continue
            try:
                if hold(lock):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            finally:
                os.close(lock)
