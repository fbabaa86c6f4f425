"""How probable a model finds texts, and how sure we are of the number."""

import math
from dataclasses import dataclass

from torch import Tensor

from sfumato.errors import DataError


@dataclass(frozen=True)
class Estimate:
    """A number measured on a sample."""

    value: float
    error: float  # standard error; nan where one row says nothing about it
    low: float  # 95 % confidence interval, normal approximation
    high: float

    @classmethod
    def of(cls, value: float, error: float) -> "Estimate":
        """The interval that a standard error gives."""
        return cls(value, error, value - 1.96 * error, value + 1.96 * error)

    def scaled(self, factor: float) -> "Estimate":
        """The same in another unit; `factor` is positive."""
        return Estimate(*(factor * x for x in (self.value, self.error, self.low, self.high)))

    def exp(self) -> "Estimate":
        """Its exponential: error by the delta method, interval from that of the logarithm."""
        value = math.exp(self.value)
        return Estimate(value, value * self.error, math.exp(self.low), math.exp(self.high))


def ratio(totals: Tensor, counts: Tensor) -> Estimate:
    """sum(totals) / sum(counts) over independent rows, both [B]; rows of count 0 do not count.

    Error of the ratio estimator (Cochran, Sampling Techniques, 1977, eq. 6.13), which knows that
    long rows weigh more. Whatever noise is in the single totals is in it too.
    """
    kept = counts > 0
    totals, counts = totals[kept].double(), counts[kept].double()
    rows, count = len(counts), float(counts.sum())
    if not rows:
        raise DataError("nothing to average: every text is empty; give at least one with tokens")
    value = float(totals.sum()) / count
    if rows == 1:
        return Estimate.of(value, math.nan)
    squares = float((totals - value * counts).square().sum())
    return Estimate.of(value, math.sqrt(squares * rows / (rows - 1)) / count)
