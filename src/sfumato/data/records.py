"""What files with fields hold: records, of which some fields are wanted."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sfumato.data.tally import Tally
from sfumato.errors import DataError

Record = tuple[str, ...]  # the texts of the wanted fields


class Doubled(dict[str, Any]):
    """An object that has a key twice; `keys_twice` says which."""

    keys_twice: frozenset[str] = frozenset()


def fields_of(value: object, fields: Sequence[str], where: str, tally: Tally) -> Record:
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: a JSON {type(value).__name__}; "
            f"expected an object with the field {fields[0]!r}"
        )
    if isinstance(value, Doubled):
        refuse_twice([f for f in fields if f in value.keys_twice], where)
    tally.pass_over(value.keys() - set(fields))
    return tuple(text_of(value, field, where) for field in fields)


def refuse_twice(fields: Sequence[str], where: str) -> None:
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
