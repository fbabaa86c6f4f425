"""Where text comes from: local files, folders of them, data sets on the Hugging Face Hub.

A source is read as a stream of pieces. Most documents are one piece; a long one comes in several,
so that a single file of any size passes through bounded memory.
"""

import codecs
import csv
import difflib
import gzip
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol, cast

from sfumato.errors import ConfigError, DataError

PIECE = 2**15  # characters; a longer document comes in several pieces
BLOCK = 2**16  # bytes read at a time; with much larger ones the heap fragments and grows
END_OF_TEXT = "<|endoftext|>"  # what the .txt files of many data sets put between documents


class Piece(NamedTuple):
    """A stretch of a document."""

    text: str
    ends: bool  # the document ends here
    key: str | None = None  # decides the document's split, where its own text does not


class Readable(Protocol):
    """What can be prepared: documents, always the same in the same order."""

    @property
    def name(self) -> str: ...
    def identity(self) -> dict[str, object]: ...
    def num_bytes(self) -> int | None: ...
    def pieces(self, size: int | None = ...) -> Iterator[Piece]: ...
    def sample(self, characters: int) -> Iterator[str]: ...


@dataclass(frozen=True)
class Source:
    """A place to read documents from; the same source always gives the same documents in order.

    name: a file (.txt, .jsonl, .parquet, .csv; .gz of the text formats), a folder of them, or
        the name of a data set on the Hugging Face Hub.
    field: the column or key that holds the text; .txt has none.
    separator: a line of a .txt file that holds this alone ends a document. "" means blank lines,
        a line end means that every line is a document, None that every file is one.
    split, config, streaming: for a data set on the Hub only.
    limit: read this many documents at most.
    """

    name: str
    field: str = "text"
    separator: str | None = END_OF_TEXT
    split: str = "train"
    config: str | None = None
    streaming: bool = True
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit must be at least 1 document, got {self.limit}")

    def files(self) -> list[Path]:
        """The local files, in the order in which they are read; none for a name on the Hub."""
        path = Path(self.name).expanduser()
        if path.is_file():
            if _format(path) is None:
                raise DataError(f"{path}: unknown format; expected one of {', '.join(READERS)}")
            return [path]
        if path.is_dir():
            inside = [p for p in path.rglob("*") if _format(p) is not None and p.is_file()]
            files = [p for p in inside if not re.search(r"(^|/)\.", str(p.relative_to(path)))]
            if not files:
                raise DataError(
                    f"folder {path} holds no file of a known format: {', '.join(READERS)}"
                )
            return sorted(files)
        if _format(path) is not None or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.name):
            raise DataError(f"no file or folder {path}; {_near(path) or 'check the path'}")
        return []

    def identity(self) -> dict[str, object]:
        """What must stay equal for an interrupted preparation to go on."""
        if files := self.files():
            place = {"files": [path.name for path in files], "separator": self.separator}
        else:
            place = {"hub": self.name, "split": self.split, "config": self.config}
        return place | {"field": self.field, "limit": self.limit}

    def num_bytes(self) -> int | None:
        """Bytes of all files on disk; None for the Hub."""
        return sum(path.stat().st_size for path in self.files()) or None

    def pieces(self, size: int | None = PIECE) -> Iterator[Piece]:
        """Every document that is not blank, in pieces of at most `size` characters, or whole."""
        documents = 0
        for piece in cut(self._chunks(), size):
            yield piece
            documents += piece.ends
            if documents == self.limit:
                return

    def records(self) -> Iterator[str]:
        """The text of every record of a format that has fields, blank ones too; no limit."""
        return (chunk.text for chunk in self._chunks())

    def _chunks(self) -> Iterator[Piece]:
        files = self.files()
        return (c for path in files for c in _read(path, self)) if files else _read_hub(self)

    def sample(self, characters: int) -> Iterator[str]:
        """The beginning of every file, about `characters` of text in all.

        Files share evenly; what small ones leave goes to the others. With a limit, and for a data
        set on the Hub, it is the beginning of the whole.
        """
        files = sorted(self.files(), key=lambda path: path.stat().st_size)
        parts = [replace(self, name=str(path)) for path in files]
        if self.limit is not None or not files:
            parts = [self]
        for number, part in enumerate(parts):
            share = characters // (len(parts) - number)
            for piece in part.pieces():
                if share <= 0:
                    break
                yield piece.text
                share -= len(piece.text)
                characters -= len(piece.text)

    def documents(self) -> Iterator[str]:
        """Every document that is not blank, whole."""
        return (piece.text for piece in self.pieces(None))


def _near(path: Path) -> str:
    """'did you mean a, b?' for a misspelt path, or nothing."""
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    close = difflib.get_close_matches(path.name, [p.name for p in siblings])
    return f"did you mean {', '.join(close)}?" if close else ""


def cut(chunks: Iterable[Piece], size: int | None) -> Iterator[Piece]:
    """The same documents in pieces of at most `size` characters; blank documents are dropped.

    A cut goes before a space that follows other text, because byte-level tokenizers start a
    token there anyway: the tokens of the pieces are the tokens of the whole. Where a whole
    piece has no such space it is cut at `size`, and a token there may differ; text never does.
    """
    held, started = "", False
    for text, ends, _ in chunks:
        held += text
        while size is not None and len(held) > size:
            at = _cut_place(held, size)
            yield Piece(held[:at], False)
            held, started = held[at:], True
        if ends:
            if started or held.strip():
                yield Piece(held, True)
            held, started = "", False


def _cut_place(text: str, size: int) -> int:
    at = size
    while (at := text.rfind(" ", 1, at)) > 0:
        if not text[at - 1].isspace():
            return at
    return size


def _read(path: Path, source: Source) -> Iterator[Piece]:
    """The documents of one file; every error names the file, and the line where there is one."""
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty; expected text")
        yield from READERS[_format(path) or ""](path, source)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(
            f"{path} is not a whole gzip file ({error}); fetch or compress it again"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _format(path: Path) -> str | None:
    name = path.name.lower()
    suffix = Path(name.removesuffix(".gz")).suffix
    zipped_parquet = suffix == ".parquet" and name.endswith(".gz")
    return suffix if suffix in READERS and not zipped_parquet else None


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        if b"\0" in file.read(2**13):
            raise DataError(f"{path} is a binary file; expected UTF-8 text")
        file.seek(0)
        yield cast(BinaryIO, file)


def _read_txt(path: Path, source: Source) -> Iterator[Piece]:
    return split_text(_text_blocks(path), source.separator)


def _text_blocks(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    offset = 0
    with _open(path) as file:
        while True:
            block = file.read(BLOCK)
            pending = len(decoder.getstate()[0])
            try:
                yield decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(f"{path}, byte {offset - pending + error.start}", error) from error
            if not block:
                return
            offset += len(block)


def _not_utf8(where: str, error: UnicodeDecodeError) -> DataError:
    return DataError(
        f"{where}: not UTF-8 ({error.reason}); convert the file, "
        "for instance: iconv -f latin1 -t utf-8 OLD > NEW"
    )


def split_text(blocks: Iterable[str], separator: str | None) -> Iterator[Piece]:
    """Documents of a text file at lines that are the separator alone (see `Source`).

    Line ends at the borders of a document belong to the file, not to its text.
    """
    # Patterns begin with a plain line feed, which is found fast; what is left of a "\r\n" before
    # it is stripped with the borders.
    if separator is None:
        border = re.compile(r"(?!)")
    elif separator in ("\n", "\r\n"):
        border = re.compile(r"\n")
    else:
        border = re.compile(rf"\n(?:\r?\n)*{re.escape(separator)}[ \t]*(?=\r?\n)")
    longest = len(separator or "") + PIECE  # a line beyond this is no separator
    # A line end around the file lets its first and last line be separators like any other.
    held, fresh = "", True  # fresh: nothing of the present document has been yielded
    for block in itertools.chain(["\n"], blocks, ["\n"]):
        *done, held = border.split(held + block)
        for text in done:
            text = text.rstrip("\r\n")
            yield Piece(text.lstrip("\r\n") if fresh else text, True)
            fresh = True
        # The last line, and the line ends before it, may turn out to be a separator.
        at = len(held[: held.rfind("\n") + 1].rstrip("\r\n"))
        if len(held) - at > longest:
            at = len(held.rstrip("\r\n"))
        text = held[:at].lstrip("\r\n") if fresh else held[:at]
        if text:
            yield Piece(text, False)
            fresh = False
        held = held[at:]
    held = held.rstrip("\r\n")
    yield Piece(held.lstrip("\r\n") if fresh else held, True)


def _read_jsonl(path: Path, source: Source) -> Iterator[Piece]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                # A byte order mark is no part of the first line.
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                record = json.loads(text) if text.strip() else {source.field: None}
            except UnicodeDecodeError as error:
                raise _not_utf8(where, error) from error
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{where}: broken JSON ({error.msg.removesuffix(' at')} at column "
                    f"{error.colno}); "
                    "expected one object a line"
                ) from error
            if not isinstance(record, dict):
                raise DataError(
                    f"{where}: a JSON {type(record).__name__}; expected an object with the field "
                    f"{source.field!r}, one a line"
                )
            yield _record(record, source.field, where)


def _record(record: Mapping[str, object], field: str, where: str) -> Piece:
    """The text of one record; null, which tables have for nothing, is a blank document."""
    if field not in record:
        raise DataError(_no_field(where, field, record))
    text = record[field]
    if not isinstance(text, str | None):
        raise DataError(f"{where}: expected text in field {field!r}, got {text!r:.40}")
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: half a surrogate pair, which is no character") from error
    return Piece(text or "", True)


def _no_field(where: str, field: str, known: Iterable[str]) -> str:
    names = ", ".join(sorted(map(str, known))) or "none"
    return f"{where}: no field {field!r}; choose one of the fields there are: {names}"


def _read_csv(path: Path, source: Source) -> Iterator[Piece]:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts above 128 KiB
    reader = csv.DictReader(_lines(_text_blocks(path)), strict=True)
    try:
        if source.field not in (reader.fieldnames or ()):
            raise DataError(_no_field(f"{path}, line 1", source.field, reader.fieldnames or ()))
        for row in reader:
            if None in row or None in row.values():
                raise DataError(
                    f"{path}, line {reader.line_num}: expected {len(reader.fieldnames or ())} "
                    "fields as in line 1; quote texts that hold commas or quotes"
                )
            yield _record(row, source.field, f"{path}, line {reader.line_num}")
    except csv.Error as error:
        # The reader counts a line when it is done with it.
        where = f"{path}, line {reader.line_num + 1}"
        raise DataError(
            f"{where}: broken CSV ({error}); quote texts that hold commas or quotes"
        ) from error


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    """Lines with their ends, of text that comes in blocks."""
    held = ""
    for block in blocks:
        *whole, held = (held + block).split("\n")
        yield from (line + "\n" for line in whole)
    if held:
        yield held


def _read_parquet(path: Path, source: Source) -> Iterator[Piece]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # With a buffer a row group, which may be the whole file, is not loaded at once.
        with pq.ParquetFile(path, buffer_size=2**20) as file:
            if source.field not in file.schema_arrow.names:
                raise DataError(_no_field(str(path), source.field, file.schema_arrow.names))
            number = 0
            for batch in file.iter_batches(batch_size=2**10, columns=[source.field]):
                for text in batch.column(0).to_pylist():
                    number += 1
                    yield _record({source.field: text}, source.field, f"{path}, row {number}")
    except pa.ArrowException as error:
        raise DataError(f"{path} is not a whole parquet file: {error}") from error


def _read_hub(source: Source) -> Iterator[Piece]:
    from datasets import load_dataset

    what = f"data set {source.name}"
    try:
        rows = load_dataset(
            source.name, source.config, split=source.split, streaming=source.streaming
        )
        names = rows.column_names
        if names is not None and source.field in names:
            rows = rows.select_columns([source.field])
        for number, row in enumerate(rows, 1):
            yield _record(row, source.field, f"{what}, row {number}")
    except DataError:
        raise
    # The library and the network below it fail in more ways than can be listed.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        near = _near(Path(source.name))
        raise DataError(
            f"no file or folder {source.name} here{near and f' ({near})'}, and cannot read {what}, "
            f"split {source.split!r}, from the Hugging Face Hub: {reason}; check the name, split, "
            "config and connection and run the same command again; without a network give a file"
        ) from error


READERS: dict[str, Callable[[Path, Source], Iterator[Piece]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
