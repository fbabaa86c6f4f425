"""A JSON schema and where it stands; what several that hold together say."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sfumato.errors import ConfigError
from sfumato.grammar.expressions import Alt, Expression
from sfumato.grammar.json_layout import PYTHON

WHAT = "the JSON schema"  # as errors name it


@dataclass(frozen=True)
class Placed:
    """A schema and where it stands."""

    schema: Any
    place: str
    unfolded: tuple[str, ...] = ()

    def at(self, *names: str | int) -> "Placed":
        schema = self.schema
        for name in names:
            schema = schema[name]
        return replace(self, schema=schema, place="/".join((self.place, *map(str, names))))

    def refuse(self, reason: str) -> ConfigError:
        return ConfigError(f"JSON schema at {self.place}: {reason}")

    def without(self, *names: str) -> "Placed":
        return replace(self, schema={k: v for k, v in self.schema.items() if k not in names})

    def listed(self, name: str) -> list["Placed"]:
        branches = self.schema[name]
        if not isinstance(branches, list) or not branches:
            raise self.refuse(f"{name} must be a list of schemas")
        return [self.at(name, number) for number in range(len(branches))]

    def count(self, name: str) -> int | None:
        number = self.schema.get(name)
        if number is None:
            return None
        if not PYTHON["integer"](number) or number < 0:
            raise self.refuse(f"{name} must be a whole number from 0, got {number!r}")
        return int(number)


All = tuple[Placed, ...]  # schemas that hold together


def fields_of(every: All, name: str) -> All:
    """The schemas that the value of a property is under."""
    found = []
    for one in every:
        if name in one.schema.get("properties", {}):
            found.append(one.at("properties", name))
        elif "additionalProperties" in one.schema:
            found.append(one.at("additionalProperties"))
    return tuple(found) or (Placed({}, f"{every[0].place}/properties/{name}"),)


def flag(one: Placed, name: str) -> bool:
    value = one.schema.get(name, False)
    if not isinstance(value, bool):
        raise one.refuse(f"{name} must be true or false, got {value!r}")
    return value


def bounds(every: All, least: str, most: str) -> tuple[int, int | None]:
    """The narrowest of all bounds."""
    lows = [one.count(least) for one in every]
    highs = [one.count(most) for one in every]
    kept = [high for high in highs if high is not None]
    return max((low or 0 for low in lows), default=0), min(kept, default=None)


def both(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """The types that two lists have in common."""
    found = [kind for kind in one if kind in other]
    crossed = "number" in {*one} & {*other} or not {"integer", "number"} <= {*one, *other}
    return found if crossed or "integer" in found else [*found, "integer"]


def either(parts: Sequence[Expression | None]) -> Expression | None:
    found = [part for part in parts if part is not None]
    if len(found) < 2:
        return found[0] if found else None
    return Alt(tuple(found))
