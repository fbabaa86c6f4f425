"""A number measured on a sample, and how sure one is of it.

An error is taken over what is independent: texts, not rows or tokens. Where few units stand behind
it, the interval is as much wider as Student's t says.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.errors import DataError


@dataclass(frozen=True)
class Estimate:
    """A number measured on a sample."""

    value: float
    error: float  # standard error; nan where one unit says nothing about it
    low: float  # 95 % confidence interval
    high: float

    @classmethod
    def of(cls, value: float, error: float, freedom: float = math.inf) -> "Estimate":
        """The interval that a standard error gives which has so many degrees of freedom."""
        width = student(freedom) * error
        return cls(value, error, value - width, value + width)

    def scaled(self, factor: float) -> "Estimate":
        """The same in another unit; `factor` is positive."""
        return Estimate(*(factor * x for x in (self.value, self.error, self.low, self.high)))

    def exp(self) -> "Estimate":
        """Its exponential: error by the delta method, interval from that of the logarithm."""
        value = math.exp(self.value)
        return Estimate(value, value * self.error, math.exp(self.low), math.exp(self.high))


def in_words(value: float, error: float, digits: int, sign: str = "") -> str:
    """A number and its standard error as they are printed; one text alone has none."""
    known = "(one text: no error)" if math.isnan(error) else f"+- {error:.{digits}f}"
    return f"{value:{sign}.{digits}f} {known}"


@functools.cache
def student(freedom: float) -> float:
    """Within so many standard errors lies the truth in 95 % of cases: Student's t.

    With t = sqrt(n) tan(angle) its density is that of cos(angle) ** (n - 1), which is summed up.
    """
    if not freedom < 1000:  # nan, too: then the error is nan itself
        return 1.96
    freedom = max(1.0, freedom)
    angle = torch.linspace(0, math.pi / 2, 20_001, dtype=torch.float64)
    mass = torch.cumulative_trapezoid(angle.cos() ** (freedom - 1), angle)
    at = int(torch.searchsorted(mass, 0.95 * mass[-1]))  # mass[i] lies below angle[i + 1]
    below, above = mass[at - 1 : at + 1].tolist()
    part = (0.95 * float(mass[-1]) - below) / (above - below)
    return math.sqrt(freedom) * math.tan(float(angle[at].lerp(angle[at + 1], part)))


def ratio(totals: Tensor, counts: Tensor, *owners: Tensor) -> Estimate:
    """sum(totals) / sum(counts), both [N]; a text whose counts are all 0 does not count.

    Error of the ratio estimator (Cochran, Sampling Techniques, 1977, eq. 6.13), which knows that
    long texts weigh more. Whatever noise is in the single totals is in it too.

    `owners` [N] each: what is of one owner depends on each other, in any of them. One says which
    text a row is of. Two, the text and the row, where a row holds parts of several texts under one
    draw: then the variance is the sum over the pairs of parts that share a text or a row (Cameron,
    Gelbach & Miller, 2011). Without any, all N are independent.
    """
    totals, counts = totals.double(), counts.double()
    single = torch.arange(len(counts), device=counts.device)
    owners = owners or (single,)
    kept = _sums(counts, owners[0]) > 0
    totals, counts = totals[kept], counts[kept]
    count = float(counts.sum())
    if not len(counts):
        raise DataError("nothing to average: every text is empty; give at least one with tokens")
    value = float(totals.sum()) / count
    rest = totals - value * counts
    groups = [owner[kept].unique(return_inverse=True)[1] for owner in owners]
    units = min(int(group.max()) + 1 for group in groups)
    if units == 1:
        return Estimate.of(value, math.nan)
    squares = [_squares(rest, group) for group in groups]
    both = 0.0
    if len(groups) == 2:
        pair = groups[0] * (int(groups[1].max()) + 1) + groups[1]
        both = _squares(rest, pair.unique(return_inverse=True)[1], correct=False)
    variance = max(*squares, sum(squares) - both, 0.0)
    return Estimate.of(value, math.sqrt(variance) / count, units - 1)


def _sums(counts: Tensor, owner: Tensor) -> Tensor:
    """[N]: the count of all that the owner of each has."""
    group = owner.unique(return_inverse=True)[1]
    return counts.new_zeros(len(counts)).index_add_(0, group, counts)[group]


def _squares(rest: Tensor, group: Tensor, correct: bool = True) -> float:
    """Sum of the squared residuals of groups, for as many as there are less the mean's one."""
    number = int(group.max()) + 1
    sums = rest.new_zeros(number).index_add_(0, group, rest)
    return float(sums.square().sum()) * (number / (number - 1) if correct else 1)
