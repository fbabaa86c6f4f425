import math

import pytest
import torch

from sfumato.errors import DataError
from sfumato.likelihood import Estimate, ratio


def test_a_ratio_weighs_rows_by_their_length():
    estimate = ratio(torch.tensor([2.0, 9.0, 5.0]), torch.tensor([1, 3, 0]))
    assert estimate.value == pytest.approx(11 / 4)
    # residuals 2 - 2.75 and 9 - 8.25, two rows: sqrt(2 * (0.75**2 * 2)) / 4
    assert estimate.error == pytest.approx(1.5 / 4)
    assert estimate.high - estimate.value == pytest.approx(1.96 * 1.5 / 4)


def test_the_interval_of_a_ratio_covers_the_truth_as_often_as_it_says():
    draw = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        counts = torch.randint(1, 40, (100,), generator=draw)
        totals = 2 * counts + counts.sqrt() * torch.randn(100, generator=draw)
        estimate = ratio(totals, counts)
        covered += estimate.low <= 2 <= estimate.high
    assert 0.95 * 400 - 20 <= covered <= 0.95 * 400 + 16  # within 4.5 standard deviations


def test_one_row_has_no_error():
    assert math.isnan(ratio(torch.tensor([3.0]), torch.tensor([2])).error)


def test_nothing_to_average_is_an_error():
    with pytest.raises(DataError, match="nothing to average"):
        ratio(torch.zeros(2), torch.zeros(2))


def test_an_estimate_changes_unit_and_leaves_the_logarithm():
    estimate = Estimate.of(1.0, 0.1)
    assert estimate.scaled(2).high == pytest.approx(2 * 1.196)
    assert estimate.exp().error == pytest.approx(0.1 * math.e)
    assert estimate.exp().low == pytest.approx(math.exp(1 - 0.196))
