"""Runs as YAML or JSON, and keys on top of them: what is read, what is written, what is wrong."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin

import pydantic
import yaml
from pydantic.fields import FieldInfo

from sfumato.errors import ConfigError, near
from sfumato.storage.files import Remedy, brief, read_text
from sfumato.storage.structured import parse_json, parse_yaml
from sfumato.train.config import Choice, Run, Section, kinds

REMEDY = Remedy(ConfigError, "expected keys and values such as 'output: out'")


def load_run(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Run:
    """The run of a YAML or JSON file, or of a mapping, with `a.b=c` or `--a.b c` on top."""
    keys = dict(source) if isinstance(source, Mapping) else _read(Path(source))
    for path, value in _parse(overrides):
        keys = _put(keys, path.split("."), value, path)
    try:
        return Run.model_validate(keys)
    except pydantic.ValidationError as error:
        raise ConfigError("\n".join(map(_explain, error.errors()))) from None


def dump_run(run: Run) -> str:
    """The run as YAML, every default written out; a key that is left out is none."""
    keys = run.model_dump(mode="json", exclude_none=True)
    return yaml.dump(keys, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


# --- YAML as one expects it: that of 1.2, with 3e-4 and 1_000 as numbers ---

# By YAML 1.1, which PyYAML reads, 010 is 8, 1:30 is 90, no is false and 2026-11-30 a date.
_SCALARS = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+(_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
)
_BASES = {"0o": 8, "0x": 16}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list] = {}  # noqa: RUF012 (the base class's form)


class _Dumper(yaml.SafeDumper):
    """Quotes what either reading of YAML takes for something else than text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the base class's form)
        first: list(rules) for first, rules in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _kind, _pattern, _firsts in _SCALARS:
    for _reader in (_Loader, _Dumper):
        _reader.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}",
            re.compile(rf"^(?:{_pattern})$"),
            ["" if first == "\0" else first for first in _firsts],
        )


def _whole_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, _BASES.get(text[:2], 10))


_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


# --- keys ---


def _read(path: Path) -> dict[str, Any]:
    text = read_text(path, REMEDY)
    if path.suffix == ".json":
        keys = parse_json(text, path, REMEDY)
    else:
        keys = parse_yaml(text, path, REMEDY, _Loader)
    if not isinstance(keys, dict):
        raise REMEDY.fault(path, f"got {brief(keys)}")
    return keys


def _parse(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """('train.max_steps', 100) of 'train.max_steps=100', '--train.max_steps 100' or '...=100'."""
    found, words = [], list(overrides)
    while words:
        word = words.pop(0)
        path, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--") or not words:
                raise ConfigError(
                    f"expected key=value, got '{word}'; for instance train.max_steps=1000"
                )
            value = words.pop(0)
        remedy = Remedy(ConfigError, f"give one value, quoted where it is text: {path}='...'")
        found.append((path, parse_yaml(value, f"the value of '{path}'", remedy, _Loader)))
    return found


def _put(keys: Mapping[str, Any], path: list[str], value: Any, name: str) -> dict[str, Any]:
    """A copy of nested `keys` with `value` at `path`."""
    if len(path) == 1:
        return {**keys, path[0]: value}
    inner = keys.get(path[0]) or {}
    if not isinstance(inner, Mapping):
        raise ConfigError(f"'{name}': {path[0]} is {brief(inner)}, not a section of keys")
    return {**keys, path[0]: _put(inner, path[1:], value, name)}


# --- what is wrong ---


def _explain(problem: Mapping[str, Any]) -> str:
    """One line for one of pydantic's errors, in our words."""
    place = [str(part) for part in problem["loc"]]
    name = ".".join(place)
    if problem["type"] == "extra_forbidden":
        return f"unknown key '{name}'{_hint(place)}"
    if problem["type"] == "value_error":
        return f"{name}: {problem['ctx']['error']}" if place else str(problem["ctx"]["error"])
    if problem["type"] == "missing":
        return f"'{name}' is missing; add it to the run file or say {name}=..."
    message = problem["msg"][0].lower() + problem["msg"][1:]
    return f"{name}: {message}, got {brief(problem['input'])}"


def _hint(place: Sequence[str]) -> str:
    """Where the key belongs, if it is one of another section, or the near ones of this section."""
    section, _ = _section(place[:-1])
    elsewhere = [key for key, _ in all_keys() if key.rpartition(".")[2] == place[-1]]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return near(place[-1], section.model_fields)


def _section(place: Sequence[str]) -> tuple[type[Section], str]:
    """The section at a place, and the place without the numbers of lists."""
    section: type[Section] = Run
    names = []
    for key in place:
        if key in section.model_fields:
            section, names = _inner(section, key) or section, [*names, key]
    return section, ".".join(names)


def _inner(section: type[Section], key: str) -> type[Section] | None:
    """The section that a key holds, if it holds one."""
    found = kinds(section.model_fields[key].annotation)
    return next((k for k in found if isinstance(k, type) and issubclass(k, Section)), None)


def all_keys(section: type[Section] = Run, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a run by its whole name, with what is known of it."""
    for name, field in section.model_fields.items():
        inner = _inner(section, name)
        if inner in (None, Choice) or get_origin(field.annotation) is tuple:
            yield prefix + name, field
        elif inner is not None:
            yield from all_keys(inner, f"{prefix}{name}.")
