"""Where text comes from: local files, folders of them, data sets on the Hugging Face Hub.

A source is read as a stream of pieces. Most documents are one piece; a long one comes in several,
so that a single file of any size passes through bounded memory.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

from pydantic import Field

from sfumato.arguments import check_fields
from sfumato.data.documents import END_OF_TEXT, PIECE, Piece, count_borders, cut, split_text
from sfumato.data.encoded import TEXT
from sfumato.data.formats import kind_of, known_kinds, read_records, read_text
from sfumato.data.hub_data import read_hub
from sfumato.data.identity import digest_file, digest_texts, stamps
from sfumato.data.local_files import files_inside, near_names
from sfumato.data.records import Record
from sfumato.data.tally import WITHOUT_TEXT, Tally
from sfumato.errors import ConfigError, DataError

AUTO = "auto"  # documents end where the text shows it
Documents = Annotated[int, Field(ge=1, lt=2**63, title="at least 1 document")]
MANY = 100  # blank lines: enough documents that some are held out


@runtime_checkable
class Readable(Protocol):
    """What can be prepared: documents, always the same in the same order."""

    @property
    def name(self) -> str: ...
    def identity(self) -> dict[str, object]: ...
    def content(self) -> dict[str, str]: ...
    def stamps(self) -> list[tuple[int, int, int]]: ...
    def one_text(self) -> int | None: ...
    def num_bytes(self) -> int | None: ...
    def pieces(self, size: int | None = ..., tally: Tally | None = ...) -> Iterator[Piece]: ...
    def sample(self, characters: int) -> Iterator[str]: ...


@dataclass(frozen=True)
class Source:
    """A place to read documents from; the same source always gives the same documents in order.

    name: a file (.txt, .jsonl or .ndjson, .json, .parquet, .csv, .tsv; .gz of all but Parquet), a
        folder of them, or the name of a data set on the Hugging Face Hub.
    field: the column or key that holds the text; .txt has none.
    separator: a line of a .txt file that holds this alone ends a document. "" means blank lines,
        a line end means that every line is a document, None that every file is one. "auto" is
        `<|endoftext|>`; but a source of one text file without such lines is cut at its blank
        lines if it has at least 100, else it is one document.
    split, config, streaming: for a data set on the Hub only.
    limit: read this many documents at most.
    """

    name: str
    field: str = "text"
    separator: str | None = AUTO
    split: str = "train"
    config: str | None = None
    streaming: bool = True
    limit: Documents | None = None

    def __post_init__(self) -> None:
        check_fields(self, "{} of a source")
        if not self.name or "\0" in self.name:
            raise ConfigError(
                f"a source is a file, a folder or a data set's name; got {self.name!r}"
            )

    def files(self) -> list[Path]:
        """The local files, in the order in which they are read; none for a name on the Hub."""
        return self._found(Tally())

    def _found(self, tally: Tally) -> list[Path]:
        path = Path(self.name).expanduser()
        if path.is_file():
            if kind_of(path) is None:
                raise DataError(f"{path}: unknown format; expected one of {known_kinds()}")
            return [path]
        if path.is_dir():
            return files_inside(path, tally)
        if kind_of(path) is not None or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", self.name):
            raise DataError(f"no file or folder {path}; {near_names(path) or 'check the path'}")
        return []

    def identity(self) -> dict[str, object]:
        """What was asked for: it must stay equal for an interrupted preparation to go on."""
        if files := self.files():
            names: list[str] = [self._short(path) for path in files]
            place = {"files": names, "separator": self.separator}
        else:
            place = {"hub": self.name, "split": self.split, "config": self.config}
        return place | {"field": self.field, "limit": self.limit}

    def content(self) -> dict[str, str]:
        """Digests of what the text is read from; reads all of it. None of a data set on the Hub.

        With a limit, of the documents themselves, so that large files are not read for a few.
        """
        files = self.files()
        if files and self.limit is not None:
            return {"documents": digest_texts(self.documents())}
        return {self._short(path): digest_file(path) for path in files}

    def _short(self, path: Path) -> str:
        """A file's name within the source."""
        folder = Path(self.name).expanduser()
        return path.relative_to(folder).as_posix() if folder.is_dir() else path.name

    def stamps(self) -> list[tuple[int, int, int]]:
        """What changes when a file is written."""
        return stamps(self.files())

    def one_text(self) -> int | None:
        """The characters of a source that is one text file and one document; else None."""
        files = self.files()
        if len(files) != 1 or kind_of(files[0]) != TEXT:
            return None
        if self._separator(files[0], alone=True, tally=Tally()) is not None:
            return None
        return sum(len(piece.text) for piece in split_text(read_text(files[0], Tally()), None))

    def _separator(self, path: Path, *, alone: bool, tally: Tally) -> str | None:
        """What ends the documents of a text file."""
        if self.separator != AUTO:
            return self.separator
        if not alone or count_borders(read_text(path, Tally()), END_OF_TEXT, most=1):
            return END_OF_TEXT
        found = None
        if count_borders(read_text(path, Tally()), "", most=MANY) == MANY:
            found = ""
        how = "cut at its blank lines" if found == "" else "one document"
        tally.note(f"{path.name} has no line that is {END_OF_TEXT}: {how} (see --separator)")
        return found

    def num_bytes(self) -> int | None:
        """Bytes of all files on disk; None for the Hub."""
        return sum(path.stat().st_size for path in self.files()) or None

    def pieces(self, size: int | None = PIECE, tally: Tally | None = None) -> Iterator[Piece]:
        """Every document that is not blank, in pieces of at most `size` characters, or whole.

        `tally` counts what is left out on the way.
        """
        documents = 0
        tally = Tally() if tally is None else tally
        for piece in cut(self._chunks(tally), size, tally):
            yield piece
            documents += piece.ends
            if documents == self.limit:
                return

    def records(self, wanted: Sequence[str], tally: Tally) -> Iterator[tuple[str, Record]]:
        """The wanted fields of every record and its place, blank ones too; no limit."""
        files = self._found(tally)
        for number, record in enumerate(() if files else self._of_hub(wanted, tally), 1):
            yield f"{self.name}, record {number}", record
        for path in files:
            if kind_of(path) == TEXT:
                raise DataError(f"{path} has no fields; expected JSON lines, CSV or Parquet")
            tally.files[kind_of(path) or ""] += 1
            for number, record in enumerate(read_records(path, wanted, tally), 1):
                yield f"{path}, record {number}", record

    def _chunks(self, tally: Tally) -> Iterator[Piece]:
        files = self._found(tally)
        if not files:
            for [text] in self._of_hub([self.field], tally):
                yield Piece(text, True)
        for path in files:
            tally.files[kind_of(path) or ""] += 1
            there = False
            for piece in self._read(path, tally, alone=len(files) == 1):
                there = there or bool(piece.text and not piece.text.isspace())
                yield piece
            if not there:
                tally.leave_out(WITHOUT_TEXT)

    def _read(self, path: Path, tally: Tally, *, alone: bool) -> Iterator[Piece]:
        if kind_of(path) == TEXT:
            separator = self._separator(path, alone=alone, tally=tally)
            return split_text(read_text(path, tally), separator)
        return (Piece(text, True) for [text] in read_records(path, [self.field], tally))

    def _of_hub(self, wanted: Sequence[str], tally: Tally) -> Iterator[Record]:
        return read_hub(self.name, self.config, self.split, self.streaming, wanted, tally)

    def sample(self, characters: int) -> Iterator[str]:
        """The beginning of every file, about `characters` of text in all.

        Files share evenly; what small ones leave goes to the others. With a limit, and for a data
        set on the Hub, it is the beginning of the whole.
        """
        files = sorted(self.files(), key=lambda path: path.stat().st_size)
        several = self.separator == AUTO and len(files) > 1
        separator = END_OF_TEXT if several else self.separator
        parts = [replace(self, name=str(path), separator=separator) for path in files]
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
