"""Schemas written out: what `$ref` and `allOf` say stands beside the schema that has them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sfumato.grammar.json_keywords import HONOURED, SAYS_NOTHING
from sfumato.grammar.json_placed import All, Placed

DEPTH = 3  # unfoldings of one reference within itself
MOST_SCHEMAS = 20_000  # that are looked at, with every unfolding


def written_out(every: All, root: Any, judged: bool) -> All | None:
    """Without references and allOf; None where one of them is false."""
    found: list[Placed] = []
    pending = list(every)
    while pending:
        one = pending.pop(0)
        if one.schema is False:
            return None
        if one.schema is True:
            one = replace(one, schema={})
        if not isinstance(one.schema, Mapping):
            raise one.refuse(f"expected an object of keywords, got {str(one.schema)[:60]!r}")
        names = set(one.schema) - SAYS_NOTHING
        odd = [name for name in names if not isinstance(name, str)]
        if odd:
            raise one.refuse(f"keywords are texts, got {odd[0]!r}")
        unknown = sorted(names - HONOURED)
        if unknown:
            raise one.refuse(f"cannot promise '{unknown[0]}'; leave it out, or use --regex")
        one = replace(one, schema={name: one.schema[name] for name in one.schema if name in names})
        if "$ref" in names:
            referred = target(one, root, judged)
            if referred is None:
                return None
            pending.insert(0, referred)
            one = one.without("$ref")
        if "allOf" in names:
            pending = one.listed("allOf") + pending
            one = one.without("allOf")
        found.append(one)
        if len(found) > MOST_SCHEMAS:
            raise one.refuse("it refers to itself without end")
    return tuple(found)


def target(one: Placed, root: Any, judged: bool) -> Placed | None:
    """What a reference refers to; None where it has been unfolded often enough."""
    name = one.schema["$ref"]
    if not isinstance(name, str) or not name.startswith("#"):
        raise one.refuse(f"$ref must start with '#', within the schema, got {name!r}")
    if one.unfolded.count(name) >= DEPTH:
        if judged:
            raise one.refuse(
                f"{name} refers to itself, and stands in a oneOf or not, where every text "
                "counts; use anyOf"
            )
        return None
    found = root
    for part in name.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        elif isinstance(found, Mapping) and part in found:
            found = found[part]
        else:
            raise one.refuse(f"$ref {name!r} leads nowhere; there is no {part!r}")
    return Placed(found, name, (*one.unfolded, name))
