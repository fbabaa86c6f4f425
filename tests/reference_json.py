"""JSON Schema as its specification reads, slowly: what automata of schemas are compared with.

Written apart from them: values, not texts. Keywords of draft 2020-12 that the package honours.
"""

import re
from datetime import date, time
from fractions import Fraction
from typing import Any


def valid(value: Any, schema: Any, root: Any = None) -> bool:
    root = schema if root is None else root
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].split("/")[1:]:
            target = target[part]
        if not valid(value, target, root):
            return False
    kinds = schema.get("type", None)
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds is not None and not any(of_type(value, kind) for kind in kinds):
        return False
    if "enum" in schema and not any(same(value, one) for one in schema["enum"]):
        return False
    if "const" in schema and not same(value, schema["const"]):
        return False
    if not all(valid(value, one, root) for one in schema.get("allOf", [])):
        return False
    if "anyOf" in schema and not any(valid(value, one, root) for one in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(valid(value, one, root) for one in schema["oneOf"]) != 1:
        return False
    if "not" in schema and valid(value, schema["not"], root):
        return False
    if of_type(value, "number"):
        return number(Fraction(str(value)), schema)
    if isinstance(value, str):
        return string(value, schema)
    if isinstance(value, list):
        least, most = schema.get("minItems", 0), schema.get("maxItems", len(value))
        if not least <= len(value) <= most:
            return False
        pairs = [(a, b) for n, a in enumerate(value) for b in value[:n]]
        if schema.get("uniqueItems") and any(same(a, b) for a, b in pairs):
            return False
        return all(valid(one, schema.get("items", True), root) for one in value)
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        if not set(schema.get("required", [])) <= set(value):
            return False
        return all(valid(one, known.get(name, others), root) for name, one in value.items())
    return True


def of_type(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value == int(value))
    python = {"number": (int, float), "string": str, "array": list, "object": dict}
    return value is None if kind == "null" else isinstance(value, python.get(kind, ()))


def number(value: Fraction, schema: dict) -> bool:
    def bound(name: str) -> Fraction | None:
        return Fraction(str(schema[name])) if name in schema else None

    low, high, above, below, of = map(
        bound, ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
    )
    return (
        (low is None or value >= low)
        and (high is None or value <= high)
        and (above is None or value > above)
        and (below is None or value < below)
        and (of is None or (value / of).denominator == 1)
    )


def string(value: str, schema: dict) -> bool:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return False
    if "pattern" in schema and not ecma(schema["pattern"]).search(value):
        return False
    return "format" not in schema or of_format(value, schema["format"])


def ecma(pattern: str) -> "re.Pattern[str]":
    """For patterns without sets that hold a dot, a dollar or a dash."""
    pattern = re.sub(r"(?<!\\)\$", r"\\Z", pattern)
    return re.compile(re.sub(r"(?<!\\)\.", "[^\n\r\u2028\u2029]", pattern), re.ASCII)


def of_format(value: str, name: str) -> bool:
    try:
        if name == "date":
            return bool(date.fromisoformat(value)) and len(value) == 10
        if name == "time":
            return time.fromisoformat(value).tzinfo is not None
        if name == "date-time":
            day, clock = value.split("T")
            return of_format(day, "date") and of_format(clock, "time")
    except ValueError:
        return False
    return re.fullmatch("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value) is not None


def same(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return one == other
