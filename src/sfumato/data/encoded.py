"""Bytes of a file to text: packed or plain, UTF-8 or not, in blocks and lines."""

import codecs
import gzip
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from sfumato.data.tally import Tally
from sfumato.errors import DataError

BLOCK = 2**16  # bytes read at a time; with much larger ones the heap fragments and grows


TEXT = ".txt"


# Unicode texts by their first bytes; the longer mark begins with a shorter one.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


PACKED = (  # place and bytes that say so
    (0, b"\x1f\x8b", "gzip data; name it as such: .gz at the end"),
    (0, b"PK\x03\x04", "a zip archive; unpack it"),
    (4, b"1AY&SY", "packed by bzip2; unpack it"),
    (0, b"\xfd7zXZ\x00", "packed by xz; unpack it"),
    (0, b"\x28\xb5\x2f\xfd", "packed by zstandard; unpack it"),
)


def suffix_of(path: Path) -> str:
    """The ending of a file's name, in small letters, without .gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """The file's bytes, and how they spell text."""
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        start = file.read(2**13)
        for at, magic, what in PACKED:
            if start.startswith(magic, at):
                raise DataError(f"{path} is {what}")
        encoding = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
        if encoding is None and b"\0" in start:
            raise is_binary(path)
        file.seek(0)
        yield cast(BinaryIO, file), encoding or "utf-8-sig"


def is_binary(path: Path, place: str = "") -> DataError:
    return DataError(
        f"{path} is a binary file (a zero byte{place}), or UTF-16 without a byte order mark; "
        "expected UTF-8 text"
    )


def text_blocks(path: Path, tally: Tally) -> Iterator[str]:
    offset = 0
    with opened(path) as (file, encoding):
        decoder = codecs.getincrementaldecoder(encoding)()
        if encoding != "utf-8-sig":
            tally.note(f"{path.name}: read as {encoding.upper()}, as its byte order mark says")
        while True:
            block = file.read(BLOCK)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                place = f"{path}, byte {offset - pending + error.start}"
                raise not_text(place, error) from error
            if "\0" in text:
                raise is_binary(path, f" after byte {offset}")
            yield text
            if not block:
                return
            offset += len(block)


def not_text(where: str, error: UnicodeDecodeError) -> DataError:
    """Of old Western files Windows-1252 is the encoding that also has the quotation marks."""
    what = "UTF-8" if error.encoding.startswith("utf-8") else error.encoding.upper()
    return DataError(
        f"{where}: not {what} ({error.reason}); convert the file, "
        "for instance: iconv -f cp1252 -t utf-8 OLD > NEW"
    )


def lines_of(blocks: Iterable[str]) -> Iterator[str]:
    """Lines with their ends, of text that comes in blocks."""
    held: list[str] = []  # of the line that is not whole yet
    for block in blocks:
        first, *others = block.split("\n")
        held.append(first)
        if others:
            yield "".join(held) + "\n"
            yield from (line + "\n" for line in others[:-1])
            held = [others[-1]]
    if last := "".join(held):
        yield last
