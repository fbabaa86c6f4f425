"""Records of JSON, one a line or all in one list."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from sfumato.data.encoded import is_binary, lines_of, not_text, opened, text_blocks
from sfumato.data.records import Doubled, Record, fields_of
from sfumato.data.tally import BLANK_LINES, Tally
from sfumato.errors import DataError


def read_json_lines(path: Path, fields: Sequence[str], tally: Tally) -> Iterator[Record]:
    with opened(path) as (file, encoding):
        lines: Iterable[bytes] = file
        if encoding != "utf-8-sig":
            lines = (line.encode() for line in lines_of(text_blocks(path, tally)))
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            try:
                # A byte order mark is no part of the first line.
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip()
            except UnicodeDecodeError as error:
                raise not_text(where, error) from error
            if "\0" in text:
                raise is_binary(path, f" in line {number}")
            if not text:
                tally.leave_out(BLANK_LINES)
                continue
            yield fields_of(_line_value(text, where), fields, where, tally)


def _line_value(text: str, where: str) -> object:
    try:
        return parse(text, where)
    except json.JSONDecodeError as error:
        goes_on = error.pos >= len(text) or error.msg.startswith("Unterminated")
        more = "; JSON over several lines is read from a file named .json" if goes_on else ""
        raise DataError(
            f"{where}: broken JSON ({said(error)} at column {error.colno}); "
            f"expected one object a line{more}"
        ) from error


def said(error: json.JSONDecodeError) -> str:
    return error.msg.removesuffix(" at")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    doubled = Doubled(found)
    keys = [key for key, _ in pairs]
    doubled.keys_twice = frozenset(key for key in found if keys.count(key) > 1)
    return doubled


_JSON = json.JSONDecoder(object_pairs_hook=_object)


def parse(text: str, where: str) -> object:
    """The value of a JSON text; where it is broken, the library's own error."""
    try:
        return _JSON.decode(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise DataError(f"{where}: JSON nested too deeply; expected an object of texts") from None
    except ValueError:  # Python reads numbers of at most 4,300 digits
        raise DataError(f"{where}: a number of too many digits; leave it out") from None


def read_json(path: Path, fields: Sequence[str], tally: Tally) -> Iterator[Record]:
    """An array of objects, read as a whole; or JSON lines, which many files of this name hold."""
    text = "".join(text_blocks(path, tally))
    try:
        value = parse(text, str(path))
    except json.JSONDecodeError as error:
        several = error.msg == "Extra data" and text[: error.pos].rstrip(" \t\r").endswith("\n")
        if several:
            tally.note(f"{path.name}: read as JSON lines")
            yield from read_json_lines(path, fields, tally)
            return
        raise DataError(
            f"{path}, line {error.lineno}: broken JSON ({said(error)} at column {error.colno}); "
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
        yield fields_of(item, fields, f"{path}, item {number}", tally)
