"""What a source is: the digest of its content. A name, a size and a date say nothing of it.

Digests are not kept for later: a file may change within one tick of its clock, or get its old date
back. XXH3 is as fast as memory, so that all files are read again each time (128 bits, against
accidents; nobody is kept from forging it).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import xxhash

from sfumato.errors import DataError

BLOCK = 2**20  # bytes


def digest_file(path: Path) -> str:
    """The digest of every byte of a file."""
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()


def digest_texts(texts: Iterable[str]) -> str:
    """The digest of texts, each with its length, so that their borders count."""
    digest = xxhash.xxh3_128()
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def stamps(files: Sequence[Path]) -> list[tuple[int, int, int]]:
    """What tells that a file was written while one worked with it."""
    try:
        found = [path.stat() for path in files]
    except OSError as error:
        raise DataError(f"cannot read {error.filename}: {error.strerror or error}") from error
    return [(each.st_size, each.st_mtime_ns, each.st_ino) for each in found]


def changed_names(old: dict[str, str], new: dict[str, str]) -> str:
    """Which parts of two contents differ, for messages."""
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
