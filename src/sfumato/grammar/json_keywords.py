"""The keywords of a JSON schema that are honoured, and what they say of a value's type."""

from sfumato.grammar.json_placed import All, both

SAYS_NOTHING = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
    | {"$schema", "$id", "$comment", "$defs", "definitions", "discriminator"}
)
OWN = {  # the keywords of each type that are honoured
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "boolean": set(),
    "null": set(),
    "array": {"items", "minItems", "maxItems", "uniqueItems"},
    "object": {"properties", "required", "additionalProperties"},
}
JOINED = {"$ref", "allOf", "anyOf", "oneOf", "not", "enum", "const", "type"}
HONOURED = frozenset(JOINED.union(*OWN.values()))
SCALARS = ("string", "number", "boolean", "null")


def types_of(every: All) -> list[str] | None:
    """The types that all allow; None: they say nothing of it."""
    found: list[str] | None = None
    for one in every:
        if "type" not in one.schema:
            continue
        own = one.schema["type"]
        own = [own] if isinstance(own, str) else own
        if not isinstance(own, list) or not all(isinstance(kind, str) for kind in own):
            raise one.refuse(f"unknown type {own!r}; known: {', '.join(OWN)}")
        if not own or not set(own) <= set(OWN):
            raise one.refuse(f"unknown type {own!r}; known: {', '.join(OWN)}")
        found = own if found is None else both(found, own)
    return found
