"""When: one number in (0, 1) a row, spread over the global batch."""

import math
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

from pydantic import Field
from torch import Tensor

from sfumato.arguments import Amount, check_fields
from sfumato.rng import Rng

Slot = Annotated[int, Field(ge=0, lt=2**63)]  # the place of a row in a run's order


@runtime_checkable
class Times(Protocol):
    def __call__(self, slots: Tensor, rng: Rng) -> Tensor:
        """[B] slots -> [B] float64 in [0, 1), each uniform by itself."""
        ...


@dataclass(frozen=True)
class Independent:
    """Every row draws its own."""

    def __call__(self, slots: Tensor, rng: Rng) -> Tensor:
        return rng.fold(slots).uniform(1)[:, 0]


def _strata(slots: Tensor, size: int) -> Tensor:
    """A stratum 0..size-1 for each slot of a global batch; neighbours get distant ones, so that
    every micro-batch of it is spread out too."""
    stride = max(1, round(size * 0.6180339887))
    while math.gcd(stride, size) != 1:
        stride += 1
    return slots % size * stride % size


@dataclass(frozen=True)
class Stratified:
    """One draw in each of G equal parts of (0, 1), G the rows of a global batch (MDLM)."""

    global_batch: Amount
    __post_init__ = check_fields

    def __call__(self, slots: Tensor, rng: Rng) -> Tensor:
        u = rng.fold(slots).uniform(1)[:, 0]
        turn = rng.fold(slots // self.global_batch).fold(0).uniform(1)[:, 0]
        part = _strata(slots, self.global_batch) + (turn * self.global_batch).floor()
        return (part + u) / self.global_batch % 1


@dataclass(frozen=True)
class Systematic:
    """G equidistant times with one common random offset (GIDD; VDM, arXiv 2107.00630)."""

    global_batch: Amount
    __post_init__ = check_fields

    def __call__(self, slots: Tensor, rng: Rng) -> Tensor:
        offset = rng.fold(slots // self.global_batch).uniform(1)[:, 0]
        return (_strata(slots, self.global_batch) / self.global_batch + offset) % 1


TIMES = {"independent": Independent, "stratified": Stratified, "systematic": Systematic}
