"""JSON and YAML of files that anyone may have written: checked before they are believed."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sfumato.errors import SfumatoError, told
from sfumato.storage.files import Remedy, brief, read_bytes, read_text

if TYPE_CHECKING:
    pass

DEEPEST = 64  # lists and objects within each other


MOST_VALUES = 2**20  # in one file, aliases written out


def read_json(path: str | Path, remedy: Remedy, *, finite: bool = True) -> Any:
    """The value in a JSON file."""
    return parse_json(read_text(path, remedy), path, remedy, finite=finite)


def read_object(path: str | Path, remedy: Remedy, *, finite: bool = True) -> dict[str, Any]:
    """The object in a JSON file."""
    value = read_json(path, remedy, finite=finite)
    if not isinstance(value, dict):
        raise remedy.fault(path, f"expected a JSON object, got {brief(value)}")
    return value


def parse_json(text: str, where: str | Path, remedy: Remedy, *, finite: bool = True) -> Any:
    """The value of a JSON text from `where`: every key once, numbers as JSON has them.

    With `finite=False` also NaN and Infinity, which Python writes.
    """
    try:
        value = (_FINITE if finite else _ANY_NUMBER).decode(text)
    except json.JSONDecodeError as error:
        place = f"{where}, line {error.lineno}, column {error.colno}"
        problem = f"not JSON: {error.msg[:1].lower()}{error.msg[1:]}".removesuffix(" at")
        raise remedy.fault(place, problem) from None
    except RecursionError:
        raise remedy.fault(where, f"nested deeper than {DEEPEST} levels") from None
    except ValueError as error:  # of the hooks below, or a number of more digits than Python reads
        known = isinstance(error, _OddJsonError)
        raise remedy.fault(where, str(error) if known else "a number of too many digits") from None
    if problem := _tree_problem(value):
        raise remedy.fault(where, problem)
    return value


class _OddJsonError(ValueError):
    """What Python's reader takes and JSON does not have."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _OddJsonError(f"the key {twice!r} stands there twice")
    return found


def _no_constant(name: str) -> Any:
    raise _OddJsonError(f"{name} is no number of JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise _OddJsonError(f"the number {digits:.20} is too large")
    return value


_ANY_NUMBER = json.JSONDecoder(object_pairs_hook=_once)


_FINITE = json.JSONDecoder(
    object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite
)


def read_json_lines(path: str | Path, remedy: Remedy) -> Iterator[Any]:
    """The values of a file of JSON lines, those that can be read.

    What a crash leaves at its end is no value: half a line, a blank one, zeros.
    """
    for line in read_bytes(path, remedy, most=None).split(b"\n")[:-1]:
        try:
            yield parse_json(line.decode("utf-8"), path, remedy, finite=False)
        except (SfumatoError, UnicodeDecodeError):
            continue


def parse_yaml(
    text: str,
    where: str | Path,
    remedy: Remedy,
    loader: type[yaml.SafeLoader] = yaml.SafeLoader,
) -> Any:
    """The value of a YAML text from `where`, every key once."""
    try:
        reader = loader(text)
        node = reader.get_single_node()
        if node is None:
            return None
        twice = _key_twice(node)
        if twice is not None:
            place = f"{where}, line {twice.start_mark.line + 1}"
            raise remedy.fault(place, f"the key {twice.value!r} stands there twice")
        value = reader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, error.problem or error.context or "unreadable"
        place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
        raise remedy.fault(place, f"not YAML: {problem}") from None
    except yaml.YAMLError as error:
        raise remedy.fault(where, f"not YAML: {told(error)}") from None
    except RecursionError:
        raise remedy.fault(where, f"nested deeper than {DEEPEST} levels") from None
    except (ValueError, TypeError, OverflowError) as error:  # of its dates and numbers
        raise remedy.fault(where, f"not YAML: {told(error)}") from None
    if problem := _tree_problem(value):
        raise remedy.fault(where, problem)
    return value


def _key_twice(root: yaml.Node) -> yaml.ScalarNode | None:
    """The second of two keys that are written alike in one mapping."""
    pending, known = [root], {id(root)}
    while pending:
        node = pending.pop()
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            inner = list(node.value)
        elif isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                inner += [key, value]
                if isinstance(key, yaml.ScalarNode):
                    if (key.tag, key.value) in seen:
                        return key
                    seen.add((key.tag, key.value))
        for one in inner:  # an alias is the same node again
            if id(one) not in known:
                known.add(id(one))
                pending.append(one)
    return None


def _tree_problem(value: Any) -> str | None:
    """What makes a value too much to walk through: its depth, a circle, aliases of aliases."""
    pending, number = [(value, 1)], 1
    while pending:
        one, depth = pending.pop()
        if not isinstance(one, dict | list | tuple | set):
            continue
        if depth > DEEPEST:
            return f"nested deeper than {DEEPEST} levels"
        number += len(one)
        if number > MOST_VALUES:
            return f"holds more than {MOST_VALUES:,} values"
        pending += [
            (inner, depth + 1) for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return None


def check_shape(value: Any, shape: Any, where: str | Path, remedy: Remedy, key: str = "") -> None:
    """Raise unless a value of JSON is made as `shape` says.

    `shape`: a type; a tuple of types; a mapping of the keys that must be there; (...,) with one
    shape in it for every value of an object.
    """
    if isinstance(shape, Mapping):
        if not isinstance(value, dict):
            raise remedy.fault(where, f"expected an object{_at(key)}, got {brief(value)}")
        for name, inner in shape.items():
            path = f"{key}.{name}".lstrip(".")
            if name not in value:
                raise remedy.fault(where, f"the key '{path}' is missing")
            check_shape(value[name], inner, where, remedy, path)
        return
    kinds = shape if isinstance(shape, tuple) else (shape,)
    fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if not fits:
        names = " or ".join(_NAMES[kind] for kind in kinds)
        raise remedy.fault(where, f"expected {names}{_at(key)}, got {brief(value)}")


_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    dict: "an object",
    list: "a list",
    bool: "true or false",
    type(None): "null",
}


def _at(key: str) -> str:
    return f" at '{key}'" if key else ""
