"""Numbers measured on a sample, their errors and intervals."""

import math

import pytest
import torch

from sfumato.errors import DataError
from sfumato.estimates import Estimate, ratio, student


@pytest.mark.parametrize(
    ("freedom", "width"),
    [(1, 12.706), (2, 4.3027), (3, 3.1824), (5, 2.5706), (10, 2.2281), (30, 2.0423), (300, 1.9679)],
)
def test_the_interval_is_that_of_student(freedom, width):
    assert student(freedom) == pytest.approx(width, rel=1e-4)
    assert Estimate.of(1.0, 0.5, freedom).high == pytest.approx(1 + width / 2, rel=1e-3)


def test_many_units_make_it_normal():
    assert student(math.inf) == student(10_000) == 1.96
    assert student(2.5) < student(2.4)


def test_rows_of_one_text_are_one_unit():
    """As many rows as one likes say no more than their texts do."""
    draw = torch.Generator().manual_seed(0)
    totals = torch.randn(40, generator=draw, dtype=torch.float64) + 3
    counts = torch.full((40,), 2)
    texts = torch.arange(40)
    alone = ratio(totals, counts, texts)
    assert alone == ratio(totals, counts)
    cut = ratio(totals.repeat(3) / 3, counts.repeat(3), texts.repeat(3))
    assert cut.value == pytest.approx(alone.value / 3)
    assert cut.error == pytest.approx(alone.error / 3)
    by_row = ratio(totals.repeat(3) / 3, counts.repeat(3))
    assert by_row.error == pytest.approx(cut.error / math.sqrt(3), rel=0.02)


def test_parts_that_share_a_text_or_a_row_depend_on_each_other():
    """Texts go on in the next row, and rows have noise of their own: the error has both."""
    draw = torch.Generator().manual_seed(0)
    found, said, by_text, by_row = [], [], [], []
    row = torch.arange(120).repeat_interleave(2)
    text = torch.arange(1, 241) // 2  # half of each in a row, half in the next
    for _ in range(300):
        own = torch.randn(121, generator=draw)[text]
        noise = torch.randn(120, generator=draw)[row]
        totals, counts = 5 + own + noise, torch.ones(240)
        both = ratio(totals, counts, text, row)
        found.append(both.value)
        said.append(both.error)
        by_text.append(ratio(totals, counts, text).error)
        by_row.append(ratio(totals, counts, row).error)
    real = float(torch.tensor(found).std())
    assert sum(said) / 300 == pytest.approx(real, rel=0.1)
    assert sum(by_text) / 300 < 0.92 * real
    assert sum(by_row) / 300 < 0.92 * real


@pytest.mark.parametrize("texts", [3, 8, 100])
def test_the_interval_over_texts_covers_the_truth_as_often_as_it_says(texts):
    """Rows of a text share what it is like; 1,000 samples, 4.5 standard deviations of a count."""
    draw = torch.Generator().manual_seed(texts)
    rows = torch.arange(texts).repeat_interleave(4)
    covered = 0
    for _ in range(1000):
        own = torch.randn(texts, generator=draw)[rows]
        totals = 2 * 10 + 3 * own + torch.randn(len(rows), generator=draw)
        estimate = ratio(totals, torch.full((len(rows),), 10), rows)
        covered += estimate.low <= 2 <= estimate.high
    assert abs(covered - 950) < 4.5 * math.sqrt(1000 * 0.95 * 0.05)


def test_a_ratio_weighs_rows_by_their_length():
    estimate = ratio(torch.tensor([2.0, 9.0, 5.0]), torch.tensor([1, 3, 0]))
    assert estimate.value == pytest.approx(11 / 4)
    # residuals 2 - 2.75 and 9 - 8.25, two rows: sqrt(2 * (0.75**2 * 2)) / 4
    assert estimate.error == pytest.approx(1.5 / 4)
    # Student's t of one degree of freedom
    assert estimate.high - estimate.value == pytest.approx(12.706 * 1.5 / 4, rel=1e-3)


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
