"""Files of text, one function a format; every error names the file, and the place in it.

Text files come as blocks of characters, all others as records: the wanted fields' texts, in order.
"""

import codecs
import csv
import gzip
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from sfumato.data.tally import BLANK_LINES, Tally
from sfumato.errors import DataError

BLOCK = 2**16  # bytes read at a time; with much larger ones the heap fragments and grows
TEXT = ".txt"
DELIMITERS = {".csv": ",", ".tsv": "\t"}  # and what else a header may show: ; and |

Record = tuple[str, ...]  # the texts of the wanted fields

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


def kind_of(path: Path) -> str | None:
    """The format that a name's ending says, without .gz; None for one that is not read."""
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    known = suffix == TEXT or suffix in READERS
    return suffix if known and not (suffix == ".parquet" and name.endswith(".gz")) else None


def known_kinds() -> str:
    """All formats, for messages."""
    return ", ".join((TEXT, *READERS))


def read_records(path: Path, fields: Sequence[str], tally: Tally) -> Iterator[Record]:
    """The wanted fields of every record of a file that has fields, blank ones too."""
    with _reading(path):
        yield from READERS[kind_of(path) or ""](path, fields, tally)


def read_text(path: Path, tally: Tally) -> Iterator[str]:
    """The text of a file in blocks."""
    with _reading(path):
        yield from _text_blocks(path, tally)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; expected text")
        yield
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(
            f"{path} is not a whole gzip file ({error}); fetch or compress it again"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


@contextmanager
def _open(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """The file's bytes, and how they spell text."""
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        start = file.read(2**13)
        for at, magic, what in PACKED:
            if start.startswith(magic, at):
                raise DataError(f"{path} is {what}")
        encoding = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
        if encoding is None and b"\0" in start:
            raise _binary(path)
        file.seek(0)
        yield cast(BinaryIO, file), encoding or "utf-8-sig"


def _binary(path: Path, place: str = "") -> DataError:
    return DataError(
        f"{path} is a binary file (a zero byte{place}), or UTF-16 without a byte order mark; "
        "expected UTF-8 text"
    )


def _text_blocks(path: Path, tally: Tally) -> Iterator[str]:
    offset = 0
    with _open(path) as (file, encoding):
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
                raise _not_text(place, error) from error
            if "\0" in text:
                raise _binary(path, f" after byte {offset}")
            yield text
            if not block:
                return
            offset += len(block)


def _not_text(where: str, error: UnicodeDecodeError) -> DataError:
    """Of old Western files Windows-1252 is the encoding that also has the quotation marks."""
    what = "UTF-8" if error.encoding.startswith("utf-8") else error.encoding.upper()
    return DataError(
        f"{where}: not {what} ({error.reason}); convert the file, "
        "for instance: iconv -f cp1252 -t utf-8 OLD > NEW"
    )


def _read_json_lines(path: Path, fields: Sequence[str], tally: Tally) -> Iterator[Record]:
    with _open(path) as (file, encoding):
        lines: Iterable[bytes] = file
        if encoding != "utf-8-sig":
            lines = (line.encode() for line in _lines(_text_blocks(path, tally)))
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            try:
                # A byte order mark is no part of the first line.
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip()
            except UnicodeDecodeError as error:
                raise _not_text(where, error) from error
            if "\0" in text:
                raise _binary(path, f" in line {number}")
            if not text:
                tally.leave_out(BLANK_LINES)
                continue
            yield _fields_of(_line_value(text, where), fields, where, tally)


def _line_value(text: str, where: str) -> object:
    try:
        return _parse(text, where)
    except json.JSONDecodeError as error:
        goes_on = error.pos >= len(text) or error.msg.startswith("Unterminated")
        more = "; JSON over several lines is read from a file named .json" if goes_on else ""
        raise DataError(
            f"{where}: broken JSON ({_said(error)} at column {error.colno}); "
            f"expected one object a line{more}"
        ) from error


def _said(error: json.JSONDecodeError) -> str:
    return error.msg.removesuffix(" at")


class _Doubled(dict[str, Any]):
    """An object that has a key twice; `keys_twice` says which."""

    keys_twice: frozenset[str] = frozenset()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    doubled = _Doubled(found)
    keys = [key for key, _ in pairs]
    doubled.keys_twice = frozenset(key for key in found if keys.count(key) > 1)
    return doubled


_JSON = json.JSONDecoder(object_pairs_hook=_object)


def _parse(text: str, where: str) -> object:
    """The value of a JSON text; where it is broken, the library's own error."""
    try:
        return _JSON.decode(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise DataError(f"{where}: JSON nested too deeply; expected an object of texts") from None
    except ValueError:  # Python reads numbers of at most 4,300 digits
        raise DataError(f"{where}: a number of too many digits; leave it out") from None


def _fields_of(value: object, fields: Sequence[str], where: str, tally: Tally) -> Record:
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: a JSON {type(value).__name__}; "
            f"expected an object with the field {fields[0]!r}"
        )
    if isinstance(value, _Doubled):
        _refuse_twice([f for f in fields if f in value.keys_twice], where)
    tally.pass_over(value.keys() - set(fields))
    return tuple(text_of(value, field, where) for field in fields)


def _refuse_twice(fields: Sequence[str], where: str) -> None:
    if fields:
        raise DataError(
            f"{where}: the field {fields[0]!r} stands there twice; which one is meant cannot be "
            "known: rename or remove one"
        )


def text_of(record: Mapping[str, object], field: str, where: str) -> str:
    """The text of one field; null, which tables have for nothing, is a blank document."""
    if field not in record:
        raise DataError(no_field(where, field, record))
    text = record[field]
    if not isinstance(text, str | None):
        raise DataError(f"{where}: expected text in field {field!r}, got {text!r:.40}")
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: half a surrogate pair, which is no character") from error
    return text or ""


def no_field(where: str, field: str, known: Iterable[str]) -> str:
    """The message for a field that is not there."""
    names = ", ".join(sorted(map(str, known))) or "none"
    return f"{where}: no field {field!r}; choose one of the fields there are: {names}"


def _read_json(path: Path, fields: Sequence[str], tally: Tally) -> Iterator[Record]:
    """An array of objects, read as a whole; or JSON lines, which many files of this name hold."""
    text = "".join(_text_blocks(path, tally))
    try:
        value = _parse(text, str(path))
    except json.JSONDecodeError as error:
        several = error.msg == "Extra data" and text[: error.pos].rstrip(" \t\r").endswith("\n")
        if several:
            tally.note(f"{path.name}: read as JSON lines")
            yield from _read_json_lines(path, fields, tally)
            return
        raise DataError(
            f"{path}, line {error.lineno}: broken JSON ({_said(error)} at column {error.colno}); "
            "expected an array of objects, or one object a line"
        ) from error
    del text
    if isinstance(value, dict) and not set(fields) <= value.keys():
        lists = [key for key, inner in value.items() if isinstance(inner, list)]
        raise DataError(
            f"{path}: a JSON object without the field {fields[0]!r}; expected an array of objects"
            + (f"; take out the one under {lists[0]!r}" if lists else "")
        )
    items = value if isinstance(value, list) else [value]
    for number, item in enumerate(items, 1):
        yield _fields_of(item, fields, f"{path}, item {number}", tally)


def _read_csv(path: Path, fields: Sequence[str], tally: Tally) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts above 128 KiB
    lines = _lines(_text_blocks(path, tally))
    header = next(lines, "")
    delimiter = _delimiter(path, header, fields, tally)
    reader = csv.reader(itertools.chain([header], lines), delimiter=delimiter, strict=True)
    done = 0  # lines
    try:
        names = next(reader, [])
        for field in fields:
            if field not in names:
                raise DataError(no_field(f"{path}, line 1", field, names))
        _refuse_twice([f for f in fields if names.count(f) > 1], f"{path}, line 1")
        done = reader.line_num
        tally.pass_over(set(names) - set(fields))
        places = [names.index(field) for field in fields]
        for row in reader:
            done = reader.line_num
            if not row:
                tally.leave_out(BLANK_LINES)
                continue
            if len(row) != len(names):
                raise DataError(
                    f"{path}, line {reader.line_num}: expected {len(names)} fields as in line 1, "
                    f"got {len(row)}; quote texts that hold {delimiter!r} or quotes"
                )
            yield tuple(row[place] for place in places)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {done + 1}: broken CSV ({error}); "
            f"quote texts that hold {delimiter!r} or quotes"
        ) from error


def _delimiter(path: Path, header: str, fields: Sequence[str], tally: Tally) -> str:
    """What is between the columns: what the name says, unless only another gives the fields."""
    own = DELIMITERS[kind_of(path) or ""]

    def fits(delimiter: str) -> bool:
        return set(fields) <= set(next(csv.reader([header], delimiter=delimiter), []))

    others = [each for each in (",", ";", "\t", "|") if each != own and fits(each)]
    if fits(own) or not others:
        return own
    tally.note(f"{path.name}: columns are apart by {others[0]!r}")
    return others[0]


def _lines(blocks: Iterable[str]) -> Iterator[str]:
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


def _read_parquet(path: Path, fields: Sequence[str], tally: Tally) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # With a buffer a row group, which may be the whole file, is not loaded at once.
        with pq.ParquetFile(path, buffer_size=2**20) as file:
            names = file.schema_arrow.names
            for field in fields:
                if field not in names:
                    raise DataError(no_field(str(path), field, names))
            _refuse_twice([f for f in fields if names.count(f) > 1], str(path))
            tally.pass_over(set(names) - set(fields))
            number = 0
            for batch in file.iter_batches(batch_size=2**10, columns=list(dict.fromkeys(fields))):
                columns = [batch.column(field).to_pylist() for field in fields]
                for texts in zip(*columns, strict=True):
                    number += 1
                    record = dict(zip(fields, texts, strict=True))
                    where = f"{path}, row {number}"
                    yield tuple(text_of(record, field, where) for field in fields)
    except pa.ArrowException as error:
        raise DataError(f"{path} is not a whole parquet file: {error}") from error


READERS: dict[str, Callable[[Path, Sequence[str], Tally], Iterator[Record]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}
