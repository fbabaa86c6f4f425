"""What an argument may be: its type and its range, checked in one place and told in one sentence.

A dataclass says it beside each field, `length: Count | None`, and its `__post_init__` begins with
`check_fields(self)`; a function says `COUNT.check("num_samples", num_samples)`.

What is plainly a number is taken for one and becomes Python's: NumPy's numbers, and arrays and
tensors without dimensions. True is no number, 3.0 no whole one, and a list does for a tuple.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache, cached_property
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Protocol, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from sfumato.errors import ConfigError, SfumatoError

MOST = 2**20  # tokens of a text, steps, rows of a batch: more is a slip of the pen

Count = Annotated[int, Field(ge=1, le=MOST)]
Amount = Annotated[int, Field(ge=1, lt=2**63)]  # a count of what is not laid out at once
Seed = Annotated[int, Field(ge=0, lt=2**63)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Place = Annotated[str | Path, Field(title="a path")]

_CONFIG = ConfigDict(arbitrary_types_allowed=True, strict=True, allow_inf_nan=False)
_WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "True or False",
    "tuple_type": "a tuple or a list",
    "dict_type": "a mapping of names to values",
    "callable_type": "callable",
}


def _named(value: Any) -> dict[str, Any]:
    if not (isinstance(value, Mapping) and all(isinstance(key, str) for key in value)):
        raise PydanticCustomError("dict_type", "no mapping of names")
    return dict(value)


Numbers = Annotated[Mapping[str, float], PlainValidator(_named)]  # `numbers` looks at the values


Named = Annotated[Mapping[str, Any], PlainValidator(_named)]


class Kind:
    """A kind of argument, from its annotation. A Field's title says what is expected where the type
    and the range do not; its description is the remedy."""

    def __init__(self, hint: Any):
        self.hint = hint

    def check(self, name: str, value: Any, error: type[SfumatoError] = ConfigError) -> Any:
        """The value as Python's own; raises where it is of another kind."""
        try:
            return self._adapter.validate_python(as_python(value))
        except ValidationError as found:
            problem: Mapping[str, Any] = found.errors(include_url=False, include_input=False)[0]  # type: ignore[assignment]
        except Exception:  # an object that does not even let itself be looked at
            problem = {"type": ""}
        remedy = f"; {self._told.description}" if self._told.description else ""
        raise error(f"{name} must be {self._expected(problem)}, got {shown(value)}{remedy}")

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(_made(self.hint), config=_CONFIG)

    @cached_property
    def _told(self) -> FieldInfo:
        """What stands beside the type: of `Count | None`, beside `int`."""
        for hint in (self.hint, *get_args(self.hint)):
            for each in getattr(hint, "__metadata__", ()):
                if isinstance(each, FieldInfo):
                    return each
        return FieldInfo()

    def _expected(self, problem: Mapping[str, Any]) -> str:
        if self._told.title:
            return self._told.title
        kind, context = problem["type"], problem.get("ctx", {})
        if kind == "literal_error":
            return str(context["expected"])
        if kind == "made":
            return f"a {context['name']}"
        if kind.startswith(("greater_than", "less_than")):
            return self._range(kind.startswith("greater"))
        if kind == "finite_number" and self._told.metadata:
            return self._range(True)
        return _WORDS.get(kind, "of another type") + " each" * bool(problem.get("loc"))

    def _range(self, low_end: bool) -> str:
        """The range of shares and the like; of others the end that was passed."""
        bounds = {type(bound).__name__.lower(): bound for bound in self._told.metadata}
        ends = {name: getattr(bound, name) for name, bound in bounds.items()}
        low, high = ends.get("ge", ends.get("gt")), ends.get("le", ends.get("lt"))
        if low is not None and high is not None and high <= 1:
            return f"in {'[' if 'ge' in ends else '('}{low}, {high}{']' if 'le' in ends else ')'}"
        if low_end and low == 0 and "lt" not in ends:
            return "0 or more" if "ge" in ends else "positive"
        if low_end:
            return f"at least {low}" if "ge" in ends else f"above {low}"
        return f"at most {high}" if "le" in ends else f"below {high}"


_SHAPED = object()
COUNT, AMOUNT, SEED = Kind(Count), Kind(Amount), Kind(Seed)
FLAG, TEXT, PATH, OPTIONS = Kind(bool), Kind(str), Kind(Place), Kind(Named)
_NUMBER = Kind(Annotated[int | float, Field(title="a number")])


def numbers(told: str, given: Mapping[str, float]) -> dict[str, float]:
    """Options that are numbers, as Python's own; an error says `told` and the option's name."""
    return {name: _NUMBER.check(f"{told} '{name}'", value) for name, value in given.items()}


def check_fields(given: Any, told: str = "{}", **names: str) -> None:
    """Check a dataclass of arguments as its annotations say, and make their values Python's own.

    An error names the field, or what `names` calls it, in the words of `told`.
    """
    for name, kind in _kinds(type(given)).items():
        value = kind.check(told.format(names.get(name, name)), getattr(given, name))
        object.__setattr__(given, name, value)


@cache
def _kinds(cls: type) -> dict[str, Kind]:
    """Those of this package's fields; what a subclass of a user's own adds is the user's."""
    ours = next((base for base in cls.__mro__ if base.__module__.startswith("sfumato.")), cls)
    hints = get_type_hints(ours, include_extras=True)
    return {each.name: Kind(hints[each.name]) for each in fields(ours)}


def _made(hint: Any) -> Any:
    """The annotation with dataclasses and protocols taken as they come, and never as classes."""
    if isinstance(hint, type) and (is_dataclass(hint) or Protocol in hint.__mro__):
        met: set[type] = set()  # to look at a protocol takes far longer than all else here

        def check(value: Any) -> Any:
            if type(value) not in met:
                if isinstance(value, type) or not isinstance(value, hint):
                    raise PydanticCustomError("made", "no {name}", {"name": hint.__name__})
                met.add(type(value))
            return value

        return Annotated[Any, PlainValidator(check)]
    if get_origin(hint) is Annotated:
        plain, *beside = get_args(hint)
        return Annotated[(_made(plain), *beside)]  # type: ignore[return-value]
    inner = tuple(map(_made, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return Union[inner]  # noqa: UP007 (of as many as there are)
    return tuple[inner] if get_origin(hint) is tuple else hint


def as_python(value: Any) -> Any:
    """NumPy's numbers, and arrays and tensors without dimensions, as numbers; lists as tuples."""
    if isinstance(value, list | tuple):
        return tuple(map(_number, value))
    return _number(value)


def _number(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        plain = value.ndim == 0 and not (value.is_complex() or value.is_meta)
    elif isinstance(value, np.generic | np.ndarray) and not isinstance(value, str):
        plain = value.ndim == 0 and value.dtype.kind in "iufb"
    else:
        return value
    return value.item() if plain else _SHAPED  # an array of one can be made a number, but is none


def shown(value: Any) -> str:
    """What came, on one short line."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"a {type(value).__name__} of shape {tuple(value.shape)}"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # an object that cannot say what it is
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:50]}... ({type(value).__name__})"
