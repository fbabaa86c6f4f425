"""Files that this process did not write, or wrote and something damaged: opened here alone.

Whatever is wrong with one is an error of the caller's kind, which names the file, the place in it
where there is one, and what to do. Nothing here waits: a pipe or a device is no file.
"""

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.errors import SfumatoError, told

if TYPE_CHECKING:
    from torch import Tensor


LARGEST = 2**28  # bytes of a file that is read as a whole; the largest tokenizers have 2**25


KINDS: dict[str, Callable[[int], bool]] = {
    "a folder": stat.S_ISDIR,
    "a pipe": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
}


@dataclass(frozen=True)
class Remedy:
    """The kind of error that a file's fault is, and what to do about it."""

    error: type[SfumatoError]
    mend: str

    def fault(self, where: str | Path, what: str) -> SfumatoError:
        """The error: 'where: what; what to do'."""
        return self.error(f"{where}: {what}; {self.mend}")


@contextmanager
def foreign(where: str | Path, remedy: Remedy) -> Iterator[None]:
    """Turn whatever another library raises inside into the error of `remedy`.

    Errors of this package pass. What Rust calls a panic is no `Exception`, and caught too.
    """
    try:
        yield
    except (SfumatoError, MemoryError):
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or type(error).__name__ == "PanicException"):
            raise
        raise remedy.fault(where, told(error)) from error


def check_path(path: str | Path, remedy: Remedy) -> None:
    """Raise if there can be nothing to read there: a name too long, a circle of links, no access.

    Where there merely is nothing, nothing is raised.
    """
    try:
        Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, ValueError) as error:
        shown = f"{path!s:.100}{'...' if len(str(path)) > 100 else ''}"
        raise remedy.fault(shown, f"cannot be read: {told(error)}") from None


def check_file(path: str | Path, remedy: Remedy, most: int | None = LARGEST) -> int:
    """The size of a file, which must be a real one of at most `most` bytes."""
    try:
        found = Path(path).stat()
    except FileNotFoundError:
        raise remedy.fault(path, "there is no such file") from None
    except (OSError, ValueError) as error:
        raise remedy.fault(path, f"cannot be read: {told(error)}") from None
    if not stat.S_ISREG(found.st_mode):
        kind = next((kind for kind, is_it in KINDS.items() if is_it(found.st_mode)), "no file")
        raise remedy.fault(path, f"expected a file, got {kind}")
    if most is not None and found.st_size > most:
        raise remedy.fault(path, f"has {found.st_size:,} bytes; expected at most {most:,}")
    return found.st_size


def read_bytes(path: str | Path, remedy: Remedy, most: int | None = LARGEST) -> bytes:
    """The whole of a file."""
    check_file(path, remedy, most)
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise remedy.fault(path, f"cannot be read: {told(error)}") from None


def read_text(path: str | Path, remedy: Remedy) -> str:
    """The whole of a UTF-8 file; a byte order mark is no part of it."""
    data = read_bytes(path, remedy)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise remedy.fault(f"{path}, line {line}", f"not UTF-8 ({error.reason})") from None


def brief(value: Any) -> str:
    """A value as it is shown in a message: by its repr, but not all of a long one."""
    if isinstance(value, dict | list | tuple | set) and len(value) > 8:
        return f"a {type(value).__name__} of {len(value)} values"
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 200:
        return "a number of very many digits"
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:76]}..."


def read_tensors(path: str | Path, remedy: Remedy) -> "dict[str, Tensor]":
    """All tensors of a safetensors file, on the CPU."""
    from safetensors.torch import load_file

    check_file(path, remedy, most=None)
    with foreign(path, remedy):
        return load_file(path)


def check_folder(folder: Path, remedy: Remedy) -> None:
    """Raise if what libraries would read in a folder of a model or tokenizer is no file."""
    inside = [*folder.iterdir(), *folder.glob("additional_chat_templates/*")]
    for path in sorted(inside):
        if path.suffix in (".json", ".jinja", ".txt", ".model"):
            check_file(path, remedy)
        elif path.suffix == ".safetensors":
            check_file(path, remedy, most=None)
