"""Files of text, one function a format; every error names the file, and the place in it.

Text files come as blocks of characters, all others as records: the wanted fields' texts, in order.
"""

import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sfumato.data.csv_files import read_csv
from sfumato.data.encoded import TEXT, suffix_of, text_blocks
from sfumato.data.json_files import read_json, read_json_lines
from sfumato.data.parquet_files import read_parquet
from sfumato.data.records import Record
from sfumato.data.tally import Tally
from sfumato.errors import DataError


def kind_of(path: Path) -> str | None:
    """The format that a name's ending says, without .gz; None for one that is not read."""
    suffix = suffix_of(path)
    known = suffix == TEXT or suffix in READERS
    packed = path.name.lower().endswith(".gz")
    return suffix if known and not (suffix == ".parquet" and packed) else None


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
        yield from text_blocks(path, tally)


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


READERS: dict[str, Callable[[Path, Sequence[str], Tally], Iterator[Record]]] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}
