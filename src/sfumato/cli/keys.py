"""The keys of a run, told from the fields of its sections: types, defaults and what they mean.

What is said of a key stands below it in `sfumato.train.config`, so that the two cannot part.
"""

import inspect
import math
import textwrap
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic_core import PydanticUndefined

from sfumato.errors import ConfigError, near
from sfumato.train.config import OBJECTIVES, Choice, Run, Section

WORDS = {int: "whole number", float: "number", str: "text", bool: "true or false", Path: "path"}
ENDLESS = 2**20  # nobody asks whether so much is allowed
BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}


@dataclass(frozen=True)
class Key:
    """One key of a run."""

    name: str  # with its sections: train.max_steps
    kind: str
    default: Any  # `...`: it must be given
    meaning: str

    @property
    def value(self) -> str:
        """Its default as YAML, on one line."""
        if self.default is None or self.default is ...:
            return "none" if self.default is None else ""
        line = yaml.safe_dump(self.default, default_flow_style=True, width=math.inf)
        return line.removesuffix("...\n").strip()


def sections() -> dict[str, type[Section]]:
    """Every section of a run by its name; "" holds those of the run itself."""
    found: dict[str, type[Section]] = {"": Run}
    for name, kind in list(_inner(Run)):
        found[name] = kind
        found |= {f"{name}.{inner}": section for inner, section in _inner(kind)}
    return found


def keys_of(name: str) -> list[Key]:
    """The keys of a section, without those of the sections in it."""
    known = sections()
    if name not in known:
        raise ConfigError(f"no section '{name}' in a run{near(name, [s for s in known if s])}")
    section, inside = known[name], {inner for inner, _ in _inner(known[name])}
    prefix = f"{name}." if name else ""
    return [
        Key(
            prefix + key,
            _kind(field.annotation, field.metadata),
            _plain(... if field.default is PydanticUndefined else field.default),
            (field.description or "").rstrip("."),
        )
        for key, field in section.model_fields.items()
        if key not in inside
    ]


def names_of(key: str) -> str:
    """What may stand for a name in some keys, with the options of each; else nothing."""
    from sfumato.models.config import SIZES
    from sfumato.noise.schedules import SCHEDULES
    from sfumato.objectives.selection import SELECTIONS
    from sfumato.objectives.weights import WEIGHTS

    if key in ("model.size", "model.encoder.size"):
        shapes = (f"{name} ({w} wide, {n} layers, {h} heads)" for name, (w, n, h) in SIZES.items())
        return ", ".join(shapes)
    tables: dict[str, Mapping[str, Any]] = {
        "corruption.schedule": SCHEDULES,
        "objective.selection": SELECTIONS,
        "objective.weight": WEIGHTS,
    }
    if key == "objective.name":
        return f"{', '.join(OBJECTIVES)}, or package.module:Name"
    known, said = tables.get(key, {}), []
    for name, rule in known.items():
        own = ", ".join(field.name for field in fields(rule) if field.init)
        said.append(f"{name} ({own})" if own else name)
    return ", ".join(said)


def told(name: str) -> Iterator[str]:
    """A section for a reader, a few lines a key."""
    keys = keys_of(name)
    purpose = " ".join((inspect.getdoc(sections()[name]) or "").split())
    yield textwrap.fill(f"{name}: {purpose}" if name else purpose, 92)
    for key in keys:
        yield f"  {key.name}={key.value}" if key.default is not ... else f"  {key.name}: no default"
        names = names_of(key.name)
        about = ". ".join(part for part in (key.kind, key.meaning, names) if part)
        yield textwrap.fill(about, 92, initial_indent="      ", subsequent_indent="      ")


def _inner(section: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    """The sections within a section."""
    for name, field in section.model_fields.items():
        one = field.annotation
        for kind in () if get_origin(one) is tuple else (one, *get_args(one)):
            if inspect.isclass(kind) and issubclass(kind, Section) and kind is not Choice:
                yield name, kind


def _kind(annotation: Any, bounds: Any = ()) -> str:
    """A type in words."""
    said = " and ".join(
        form.format(getattr(bound, name))
        for bound in _flat(bounds)
        for name, form in BOUNDS.items()
        if getattr(bound, name, None) is not None and getattr(bound, name) < ENDLESS
    )
    origin, inside = get_origin(annotation), get_args(annotation)
    if annotation in WORDS:
        words = WORDS[annotation]
    elif origin is Literal:
        words = " or ".join(map(str, inside))
    elif origin in (Union, types.UnionType):
        words = " or ".join("none" if each is type(None) else _kind(each) for each in inside)
    elif origin is tuple:
        words = f"list: {_kind(inside[0])}"
    elif hasattr(annotation, "__metadata__"):
        return _kind(annotation.__origin__, (*annotation.__metadata__, *bounds))
    elif origin is dict:
        words = "{option: ...}"
    elif annotation is Choice:
        words = "a name, or {name: ..., option: ...}"
    else:
        names = ", ".join(annotation.model_fields)
        words = f"{{{names}}}"
    return f"{words}, {said}" if said else words


def _flat(bounds: Any) -> Iterator[Any]:
    """Bounds, those inside of a pydantic field too."""
    for bound in bounds:
        yield bound
        yield from getattr(bound, "metadata", ())


def _plain(value: Any) -> Any:
    """A default as YAML has it."""
    if isinstance(value, Choice):
        return {"name": value.name, **value.options} if value.options else value.name
    if isinstance(value, tuple):
        return list(value)
    return None if isinstance(value, Section) else value
