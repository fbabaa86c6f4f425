"""Values that no argument expects, and which of them are good for what."""

from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st

from sfumato.arguments import MOST
from sfumato.noise.schedules import Linear


class Hostile:
    """An object that answers nothing."""

    def __repr__(self):
        raise RuntimeError

    def __len__(self):
        raise RuntimeError


NUMBERS = st.one_of(
    st.booleans(),
    st.integers(-3, 30),
    st.sampled_from([10**30, -(10**30), 10**400, 2**31, 2**63, 2**64]),
    st.floats(),
    st.sampled_from([1e30, 1e300, 1.0, 0.5, 0.0, -0.0, 5e-324]),
)
SHAPED = st.builds(
    lambda make, value: make(value),
    st.sampled_from([np.array, torch.tensor, np.float32, np.int64, np.bool_, np.complex64]),
    st.sampled_from([0, 1, 3, 0.25]),
)
HOSTILE = st.one_of(
    st.none(),
    NUMBERS,
    SHAPED,
    st.sampled_from(["", "auto", "3", "margin", "packed", "fp32", "prefix", "\ud800", "a" * 99]),
    st.binary(max_size=3),
    st.lists(st.one_of(st.none(), NUMBERS, st.text(max_size=2)), max_size=3),
    st.tuples(st.integers(0, 9)),
    st.dictionaries(st.sampled_from(["level", "by", "a"]), NUMBERS, max_size=2),
    st.sets(st.integers(0, 3), max_size=2),
    st.builds(object),
    st.builds(Hostile),
    st.sampled_from([Path("a"), len, int, Linear, np.zeros(2), torch.zeros(2), torch.ones(1, 1)]),
    st.just(torch.empty((), device="meta")),
)


# --- which values are good, by the words of the documentation ---


def number(value) -> float | int | None:
    """What is plainly a number, as Python's own."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.item() if value.ndim == 0 and value.dtype.kind in "iuf" else None
    if isinstance(value, torch.Tensor):
        plain = value.ndim == 0 and not value.is_meta and value.dtype != torch.bool
        value = value.item() if plain else None
    return value if type(value) in (int, float) else None


def whole(low, high=MOST):
    return lambda v: type(number(v)) is int and low <= number(v) <= high


def real(low, high, *, above=False, below=False):
    def good(v):
        n = number(v)
        if n is None or not (low <= n <= high) or (type(n) is int and abs(n) > 1e300):
            return False
        return not (above and n == low) and not (below and n == high)

    return good


def flag(v):
    return type(v) in (bool, np.bool_) or (
        isinstance(v, torch.Tensor | np.ndarray) and v.ndim == 0 and str(v.dtype).endswith("bool")
    )


def text(v):
    return isinstance(v, str)


def either(*words):
    return lambda v: isinstance(v, str) and v in words


def several(good):
    return lambda v: isinstance(v, list | tuple) and all(map(good, v))


def optional(good):
    return lambda v: v is None or good(v)


def options_of(goods):
    return lambda v: isinstance(v, dict) and all(k in goods and goods[k](n) for k, n in v.items())
