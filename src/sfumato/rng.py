"""Random numbers as a pure function of a key.

A `torch.Generator` hands out numbers in the order in which they are asked for, so what a row gets
depends on its neighbours, on the batch size and on the device. Here every row has a key, and row b
of every draw depends on `keys[b]` and the fold path alone: a batch equals its rows one by one, two
ranks equal one, and a resumed run equals an unbroken one, bit for bit, on any device.

The generator is SplitMix64 (Steele, Lea and Flood, 2014), evaluated at a counter.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Ints = TypeVar("Ints", Tensor, np.ndarray)  # int64 whose arithmetic wraps around

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: 2**64 / golden ratio, odd
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_TEXT_STREAM = 0x5F756D61746F


def _shift(x: Ints, bits: int) -> Ints:
    """Logical shift right; int64 shifts are arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Ints) -> Ints:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _folded(keys: Ints, data: Ints) -> Ints:
    return _mix(_mix(keys ^ _GOLDEN) + (data + 1) * _GOLDEN)


@dataclass(frozen=True)
class Rng:
    """One key a row."""

    keys: Tensor  # [B] int64

    @classmethod
    def from_seed(cls, seed: int, rows: int = 1, device: torch.device | str = "cpu") -> "Rng":
        """Rows 0..rows-1 of a seed; row i is the same whatever `rows` is."""
        return cls.for_rows(seed, torch.arange(rows, device=device))

    @classmethod
    def for_rows(cls, seed: int, rows: Tensor) -> "Rng":
        """One key for every row number; any integer is a seed, by its last 64 bits."""
        bits = (seed + 2**63) % 2**64 - 2**63
        start = torch.full_like(rows, bits ^ _TEXT_STREAM, dtype=torch.int64)
        return cls(_mix(_mix(start * _GOLDEN + 1) + (rows.long() + 1) * _GOLDEN))

    def fold(self, data: int | Tensor) -> "Rng":
        """An independent stream for each value of `data`: a step number, a purpose, [B] values."""
        data = torch.as_tensor(data, dtype=torch.int64, device=self.keys.device)
        if self.keys.device.type == "cpu":  # a few numbers: NumPy's calls cost a third of torch's
            keys = _folded(self.keys.numpy(), np.atleast_1d(data.numpy()))
            return Rng(torch.from_numpy(keys))
        return Rng(_folded(self.keys, data))

    def uniform(self, *shape: int) -> Tensor:
        """Draws in the open interval (0, 1), float64 [B, *shape]: 2**52 values, neither end."""
        count = 1
        for size in shape:
            count *= size
        counters = torch.arange(1, count + 1, device=self.keys.device) * _GOLDEN
        bits = _shift(_mix(self.keys[:, None] + counters), 12)
        return ((bits.double() + 0.5) * 2.0**-52).view(len(self.keys), *shape)

    def words(self, count: int) -> Tensor:
        """Integers in [-2**15, 2**15), all equally likely, int16 [B, count]: cheap, for dropout."""
        counters = torch.arange(1, -(-count // 4) + 1, device=self.keys.device) * _GOLDEN
        return _mix(self.keys[:, None] + counters).view(torch.int16)[:, :count]

    def select(self, rows: Tensor) -> "Rng":
        """The keys of some rows only."""
        return Rng(self.keys[rows])
