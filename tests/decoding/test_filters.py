import pytest
import reference
import torch

from sfumato.decoding.filters import (
    Allowed,
    Forced,
    MinP,
    Repetition,
    Suppress,
    Temperature,
    TopK,
    TopP,
)
from sfumato.errors import ConfigError
from sfumato.rng import Rng
from sfumato.types import Canvas

INF = torch.inf


@pytest.fixture
def canvas() -> Canvas:
    """Two rows of four: token 1 stands in the first, tokens 2 and 3 in the second."""
    tokens = torch.tensor([[5, 1, 5, 5], [2, 5, 3, 5]])
    noisy = tokens == 5
    return Canvas(tokens, noisy, fixed=~noisy)


@pytest.fixture
def logits(canvas) -> torch.Tensor:
    draws = 6 * Rng.from_seed(0).uniform(int(canvas.noisy.sum()), 6)[0] - 3
    return draws.float().index_fill(-1, torch.tensor([5]), -INF)


ALL = [
    Temperature(0.0),
    Temperature(0.7),
    TopK(2),
    TopP(0.6),
    MinP(0.3),
    Repetition(1.5),
    Suppress((0, 4)),
    Forced(((2, 3),)),
]


@pytest.mark.parametrize("change", ALL, ids=repr)
def test_filters_return_new_logits_and_leave_the_old_ones(change, canvas, logits):
    before = logits.clone()
    after = change(logits, canvas, canvas.noisy)
    assert torch.equal(logits, before)
    assert after.data_ptr() != logits.data_ptr()
    assert after.shape == logits.shape
    assert bool((after.softmax(-1).sum(-1) - 1 < 1e-6).all())  # something is left everywhere


@pytest.mark.parametrize("change", ALL, ids=repr)
def test_filters_bear_that_nothing_is_wanted(change, canvas):
    none = torch.zeros_like(canvas.noisy)
    assert change(torch.zeros(0, 6), canvas, none).shape == (0, 6)


@pytest.mark.parametrize("change", ALL, ids=repr)
def test_the_mask_token_keeps_probability_0(change, canvas, logits):
    assert bool((change(logits, canvas, canvas.noisy)[:, 5] == -INF).all())


@pytest.mark.parametrize("change", ALL, ids=repr)
def test_a_batch_equals_its_rows_one_by_one(change, canvas, logits):
    together = change(logits, canvas, canvas.noisy)
    start = 0
    for row in range(2):
        part = slice(row, row + 1)
        one = Canvas(canvas.tokens[part], canvas.noisy[part], canvas.fixed[part])
        stop = start + int(one.noisy.sum())
        assert torch.equal(change(logits[start:stop], one, one.noisy), together[start:stop])
        start = stop


def test_temperature_divides(canvas, logits):
    torch.testing.assert_close(Temperature(0.5)(logits, canvas, canvas.noisy), logits * 2)


def test_temperature_0_leaves_the_first_of_the_most_likely(canvas):
    logits = torch.tensor([[1.0, 3.0, 3.0, -INF]]).expand(5, 4)
    after = Temperature(0)(logits, canvas, canvas.noisy)
    assert torch.equal(after.softmax(-1), torch.tensor([[0.0, 1, 0, 0]]).expand(5, 4))


def kept(logits: torch.Tensor) -> list[list[int]]:
    return [(row > -INF).nonzero()[:, 0].tolist() for row in logits]


ROW = torch.tensor([[0.5, 0.2, 0.2, 0.07, 0.03, 0.0]]).log()


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (TopK(1), [0]),
        (TopK(2), [0, 1]),  # of equals the lower id
        (TopK(9), [0, 1, 2, 3, 4]),
        (TopP(0.4), [0]),  # at least one, also if it alone is more
        (TopP(0.6), [0, 1]),
        (TopP(0.95), [0, 1, 2, 3]),
        (TopP(1), [0, 1, 2, 3, 4]),
        (MinP(0.3), [0, 1, 2]),
        (MinP(0), [0, 1, 2, 3, 4]),
        (MinP(1), [0]),
        (Suppress((0, 2)), [1, 3, 4]),
        (Suppress(()), [0, 1, 2, 3, 4]),
    ],
    ids=str,
)
def test_what_is_left(change, left, canvas):
    after = change(ROW, canvas, canvas.noisy)
    assert kept(after) == [left]
    torch.testing.assert_close(after[0, left], ROW[0, left])  # and not changed


LAWS = {
    "peaked": lambda draws: 6 * draws,
    "flat": lambda draws: 0.01 * draws,
    "of few values": lambda draws: draws.round(),  # as logits in half precision are
    "all alike": lambda draws: 0 * draws,
    "half forbidden": lambda draws: draws.masked_fill(draws > 0, -INF),
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("size", [5, 65, 1500])
def test_top_k_and_top_p_keep_what_a_sorted_vocabulary_would(law, size):
    rows, seed = 2, torch.Generator().manual_seed(size)
    logits = law(torch.randn(rows, size, generator=seed)).float()
    assert bool((logits > -INF).any(-1).all())
    blank = torch.zeros(1, rows, dtype=torch.long)
    canvas = Canvas(blank, blank == 0, blank > 0)
    changes = [(TopK(k), reference.top_k, k) for k in (1, 40, 64, 65, 1024)]
    changes += [(TopP(p), reference.top_p, p) for p in (1e-9, 0.1, 0.55, 0.9, 0.999)]
    for change, slow, value in changes:
        after = change(logits, canvas, canvas.noisy)
        for row, wanted in zip(after, logits, strict=True):
            left = [i for i in slow(wanted.double().numpy(), value) if wanted[i] > -INF]
            assert (row > -INF).nonzero()[:, 0].tolist() == left, (change, value)
            assert torch.equal(row[left], wanted[left])


def test_a_vocabulary_is_sorted_only_where_a_law_is_all_but_flat(monkeypatch, canvas):
    looked = []
    topk, sort = torch.Tensor.topk, torch.Tensor.sort
    monkeypatch.setattr(
        torch.Tensor, "topk", lambda x, k, **own: looked.append((len(x), k)) or topk(x, k, **own)
    )
    monkeypatch.setattr(
        torch.Tensor, "sort", lambda x, **own: looked.append(tuple(x.shape)) or sort(x, **own)
    )
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0))
    logits *= torch.tensor([[9.0], [3.0], [0.01]])
    TopP(0.9)(logits, canvas, canvas.noisy)
    assert looked == [(2, 64), (1, 1024), (1, 5000)]
    TopK(50)(logits, canvas, canvas.noisy)
    assert looked[3:] == [(3, 51)]


def test_repetition_makes_shown_tokens_of_the_same_row_less_likely(canvas, logits):
    after = Repetition(2.0)(logits, canvas, canvas.noisy)
    wanted = logits.clone()
    for place, row in enumerate(canvas.noisy.nonzero()[:, 0].tolist()):
        for token in ([1], [2, 3])[row]:
            value = wanted[place, token]
            wanted[place, token] = value / 2 if value > 0 else value * 2
    torch.testing.assert_close(after, wanted)


def test_forced_tokens_are_all_that_is_left_at_their_position(canvas, logits):
    after = Forced(((2, 3), (3, 0)))(logits, canvas, canvas.noisy)
    for place, (_, column) in enumerate(canvas.noisy.nonzero().tolist()):
        if column in (2, 3):
            assert kept(after[place, None]) == [[3 if column == 2 else 0]]
        else:
            assert torch.equal(after[place], logits[place])


def test_allowed_tokens_are_all_that_is_left_at_their_positions(canvas, logits):
    at = torch.tensor([[False, False, True, False], [False, True, False, False]])
    after = Allowed(at, torch.tensor([1, 0, 0, 1, 0, 0]).bool())(logits, canvas, canvas.noisy)
    for place, (row, column) in enumerate(canvas.noisy.nonzero().tolist()):
        if at[row, column]:
            assert kept(after[place, None]) == [[0, 3]]
            assert torch.equal(after[place, [0, 3]], logits[place, [0, 3]])
        else:
            assert torch.equal(after[place], logits[place])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Temperature(-1), "temperature must be 0 or more, got -1"),
        (lambda: Temperature(float("nan")), "temperature must be 0 or more, got nan"),
        (lambda: TopK(0), "top_k must be at least 1, got 0"),
        (lambda: TopP(0), r"top_p must be in \(0, 1\], got 0"),
        (lambda: TopP(1.1), r"top_p must be in \(0, 1\], got 1.1"),
        (lambda: MinP(-0.1), r"min_p must be in \[0, 1\], got -0.1"),
        (lambda: Repetition(0), "repetition_penalty must be positive, got 0"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
