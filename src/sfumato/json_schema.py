"""From a JSON schema to a regular expression whose every match is valid under it.

A part of JSON Schema that is regular: whatever else a schema asks for is refused by name, because
a keyword that is passed over would make texts that only look valid. Properties come in the
schema's order, whitespace is one space after a comma or a colon at most, numbers have bounded
lengths, and a reference unfolds `DEPTH` times.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sfumato.errors import ConfigError
from sfumato.files import Remedy, parse_json

DEPTH = 3  # unfoldings of one reference within itself
MOST_INTEGERS = 1000  # alternatives of an integer range
GAP = " ?"  # whitespace where there may be some
CHARACTER = r'(?:[^"\\\x00-\x1f\x7f]|\\["\\/bfnrt])'  # one character of a JSON string, as written
INTEGER = "-?(?:0|[1-9][0-9]{0,14})"  # exact as a double
NUMBER = INTEGER + r"(?:\.[0-9]{1,8})?"
CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:Z|[+-](?:0[0-9]|1[0-4]):[0-5][0-9])"
DATE = (
    "[1-9][0-9]{3}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
FORMATS = {
    "date": DATE,
    "time": CLOCK,
    "date-time": f"{DATE}T{CLOCK}",
    "uuid": "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
}
SAYS_NOTHING = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
    | {"$schema", "$id", "$comment", "$defs", "definitions", "discriminator"}
)
OWN = {  # the keywords of each type that are honoured
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum"},
    "number": set(),
    "boolean": set(),
    "null": set(),
    "array": {"items", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties"},
}
PYTHON: dict[str, Callable[[Any], bool]] = {
    "string": lambda v: isinstance(v, str),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
    "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict),
}


def literal(text: str) -> str:
    """A regular expression of this text alone, in any dialect that knows \\x{...}."""
    return "".join(c if c.isascii() and c.isalnum() else f"\\x{{{ord(c):x}}}" for c in text)


def schema_regex(
    schema: Mapping[str, Any] | str, fits: Callable[[str, str], bool] = lambda inner, outer: True
) -> str:
    """The regular expression; `fits(inner, outer)` says whether all of one's matches are
    among the other's, which a string's `pattern` is asked for."""
    if isinstance(schema, str):
        schema = parse_json(schema, "the JSON schema", Remedy(ConfigError, "mend it"))
    found = _Compiler(schema, fits).value(schema)
    if found is None:
        raise ConfigError(
            f"the JSON schema refers to itself without end, or no value fits it; make a property "
            f"optional: references unfold {DEPTH} times"
        )
    return found


def _any_of(parts: Sequence[str]) -> str | None:
    return "(?:" + "|".join(dict.fromkeys(parts)) + ")" if parts else None


def _written(value: Any) -> str:
    return literal(json.dumps(value, ensure_ascii=False))


@dataclass(frozen=True)
class _Compiler:
    """Schemas to expressions; None where no text of bounded depth fits."""

    root: Any
    fits: Callable[[str, str], bool]
    place: str = "#"
    unfolded: tuple[str, ...] = ()

    def refuse(self, reason: str) -> ConfigError:
        return ConfigError(f"JSON schema at {self.place}: {reason}")

    def at(self, *names: str | int) -> "_Compiler":
        return replace(self, place="/".join((self.place, *map(str, names))))

    def value(self, schema: Any) -> str | None:
        if not isinstance(schema, Mapping):
            raise self.refuse(f"expected an object of keywords, got {schema!r}")
        keys = set(schema) - SAYS_NOTHING
        for name, make in (("$ref", self.reference), ("anyOf", self.choice), ("allOf", self.only)):
            if name in keys:
                self.alone(keys, {name}, name)
                return make(schema[name])
        listed = bool(keys & {"enum", "const"})
        kinds = schema.get("type", list(OWN) if listed else [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if not isinstance(kinds, list) or not set(map(str, kinds)) <= set(OWN):
            raise self.refuse(f"unknown type {kinds!r}; known: {', '.join(OWN)}")
        if listed:
            return self.listed(schema, keys, kinds)
        if not kinds:
            self.alone(keys, set(), "no type")
            raise self.refuse(
                "no type; say one of " + ", ".join(OWN) + ", or use anyOf, enum, $ref"
            )
        self.alone(keys, {"type"}.union(*(OWN[kind] for kind in kinds)), "/".join(kinds))
        makers = {
            "string": self.string,
            "integer": self.integer,
            "number": lambda _: NUMBER,
            "boolean": lambda _: "(?:true|false)",
            "null": lambda _: "null",
            "array": self.array,
            "object": self.object,
        }
        made = [makers[kind](schema) for kind in kinds]
        return _any_of([part for part in made if part is not None])

    def alone(self, keys: set[str], known: set[str], beside: str) -> None:
        others = sorted(keys - known)
        if others:
            raise self.refuse(
                f"cannot promise '{others[0]}' beside {beside}; leave it out, or use --regex"
            )

    def count(self, schema: Mapping, name: str) -> int | None:
        number = schema.get(name)
        if number is not None and (not PYTHON["integer"](number) or number < 0):
            raise self.refuse(f"{name} must be a whole number from 0, got {number!r}")
        return number

    def reference(self, name: Any) -> str | None:
        if not isinstance(name, str) or not name.startswith("#"):
            raise self.refuse(f"$ref must start with '#', within the schema, got {name!r}")
        if self.unfolded.count(name) >= DEPTH:
            return None
        target = self.root
        for part in name.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or part not in target:
                raise self.refuse(f"$ref {name!r} leads nowhere; there is no {part!r}")
            target = target[part]
        return replace(self, place=name, unfolded=(*self.unfolded, name)).value(target)

    def choice(self, branches: Any) -> str | None:
        if not isinstance(branches, list) or not branches:
            raise self.refuse("anyOf must be a list of schemas")
        made = [self.at("anyOf", n).value(branch) for n, branch in enumerate(branches)]
        return _any_of([part for part in made if part is not None])

    def only(self, branches: Any) -> str | None:
        if not isinstance(branches, list) or len(branches) != 1:
            raise self.refuse("allOf of several schemas is not regular; write them as one")
        return self.at("allOf", 0).value(branches[0])

    def listed(self, schema: Mapping, keys: set[str], kinds: Sequence[str]) -> str | None:
        self.alone(keys, {"enum", "const", "type"}, "enum or const")
        values = schema.get("enum", [schema.get("const")])
        if not isinstance(values, list) or not values:
            raise self.refuse("enum must be a list of values")
        of_type = [v for v in values if any(PYTHON[kind](v) for kind in kinds)]
        if "const" in schema:
            of_type = [v for v in of_type if v == schema["const"]]
        return _any_of([_written(value) for value in of_type])

    def string(self, schema: Mapping) -> str:
        inner = {"pattern", "format"} & set(schema)
        low, high = self.count(schema, "minLength") or 0, self.count(schema, "maxLength")
        if len(inner) + bool({"minLength", "maxLength"} & set(schema)) > 1:
            raise self.refuse("pattern, format and lengths exclude each other; keep one of them")
        if "format" in schema:
            if schema["format"] not in FORMATS:
                raise self.refuse(
                    f"unknown format {schema['format']!r}; known: {', '.join(FORMATS)}"
                )
            return f'"{FORMATS[schema["format"]]}"'
        if "pattern" in schema:
            pattern = f"(?:{unanchored(str(schema['pattern']))})"
            if not self.fits(pattern, CHARACTER.replace(r'|\\["\\/bfnrt]', "") + "*"):
                raise self.refuse(
                    f"pattern {schema['pattern']!r} allows quotes, backslashes or control "
                    "characters, which JSON writes in another way; exclude them"
                )
            return f'"{pattern}"'
        return f'"{CHARACTER}{_times(low, high)}"' if high != 0 else '""'

    def integer(self, schema: Mapping) -> str | None:
        low, high = schema.get("minimum"), schema.get("maximum")
        if low is None and high is None:
            return INTEGER
        for bound in (low, high):
            if bound is not None and not PYTHON["integer"](bound):
                raise self.refuse(f"bounds of an integer must be whole numbers, got {bound!r}")
        if low is not None and high is not None and high - low < MOST_INTEGERS:
            return _any_of([literal(str(number)) for number in range(low, high + 1)])
        if high is None and low in (0, 1):
            return "[1-9][0-9]{0,14}" if low else INTEGER[2:]
        raise self.refuse(
            f"cannot promise integers from {low} to {high}; give both bounds, at most "
            f"{MOST_INTEGERS} apart, or minimum 0 or 1 alone"
        )

    def array(self, schema: Mapping) -> str | None:
        low, high = self.count(schema, "minItems") or 0, self.count(schema, "maxItems")
        if "items" not in schema and high != 0:
            raise self.refuse("no items; say what the array holds")
        item = self.at("items").value(schema["items"]) if high != 0 else None
        if high is not None and low > high:
            return None
        if item is None:
            return r"\[\]" if low == 0 else None
        more = f"(?:,{GAP}{item}){_times(max(low - 1, 0), None if high is None else high - 1)}"
        whole = f"{item}{more}"
        return rf"\[{whole}\]" if low else rf"\[(?:{whole})?\]"

    def object(self, schema: Mapping) -> str | None:
        fields, required = schema.get("properties"), schema.get("required", [])
        if not isinstance(fields, Mapping):
            raise self.refuse("no properties; say what the object holds")
        missing = [name for name in required if name not in fields]
        if missing:
            raise self.refuse(f"required property {missing[0]!r} is not among the properties")
        made: list[tuple[str, bool]] = []
        for name, inner in fields.items():
            value = self.at("properties", name).value(inner)
            if value is not None:
                made.append((f"{_written(name)}:{GAP}{value}", name in required))
            elif name in required:
                return None
        return rf"\{{{_sequence(made)}\}}"


def _times(low: int, high: int | None) -> str:
    return f"{{{low},{'' if high is None else high}}}"


def _sequence(parts: Sequence[tuple[str, bool]]) -> str:
    """Parts in their order with commas between; those that are not required may be absent."""

    def after(later: Sequence[tuple[str, bool]]) -> str:
        return "".join(f"(?:,{GAP}{p}){'' if needed else '?'}" for p, needed in later)

    first = next((n for n, (_, needed) in enumerate(parts) if needed), None)
    if first is not None:
        before = "".join(f"(?:{part},{GAP})?" for part, _ in parts[:first])
        return before + parts[first][0] + after(parts[first + 1 :])
    alternatives = [part + after(parts[n + 1 :]) for n, (part, _) in enumerate(parts)]
    return f"(?:{'|'.join(alternatives)})?" if parts else ""


def unanchored(pattern: str) -> str:
    """Without ^ at its start and $ at its end: all of a text has to match anyway."""
    pattern = pattern.removeprefix("^")
    slashes = len(pattern) - 1 - len(pattern[:-1].rstrip("\\"))
    return pattern[:-1] if pattern.endswith("$") and slashes % 2 == 0 else pattern
