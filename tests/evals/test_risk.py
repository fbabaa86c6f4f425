"""Safe settings are safe as often as is said."""

import math
from fractions import Fraction

import pytest
import torch
from torch.testing import assert_close

from sfumato.errors import ConfigError
from sfumato.evals.risk import (
    TESTS,
    betting,
    binomial_tail,
    fixed_sequence,
    hoeffding_bentkus,
    safe,
    texts_needed,
)


def slow_tail(number: int, k: int, share: Fraction) -> Fraction:
    terms = (math.comb(number, j) * share**j * (1 - share) ** (number - j) for j in range(k + 1))
    return sum(terms, Fraction(0))


@pytest.mark.parametrize("number", [1, 7, 60])
@pytest.mark.parametrize("share", [Fraction(1, 20), Fraction(1, 2), Fraction(9, 10)], ids=str)
def test_binomial_tails_are_those_of_exact_sums(number, share):
    expected = [float(slow_tail(number, k, share)) for k in range(number + 1)]
    assert_close(binomial_tail(number, float(share)).tolist(), expected, rtol=1e-10, atol=0)


def test_hoeffding_bentkus_is_what_the_formula_says():
    number, limit = 40, Fraction(1, 10)
    for hits in (0, 1, 2, 3, 8):
        losses = (torch.arange(number) < hits).double()
        a, b = hits / number, float(limit)
        divergence = (1 - a) * math.log((1 - a) / (1 - b)) + (a * math.log(a / b) if a else 0)
        hoeffding = math.exp(-number * divergence) if a < b else 1.0
        bentkus = math.e * float(slow_tail(number, hits, limit))
        expected = min(hoeffding, bentkus, 1.0)
        assert float(hoeffding_bentkus(losses, b)) == pytest.approx(expected, rel=1e-10)
    # at no loss at all Hoeffding's form is the probability itself
    assert float(hoeffding_bentkus(torch.zeros(number), 0.1)) == pytest.approx(0.9**number)


def test_a_p_value_at_the_limit_is_rarely_small():
    """P(p <= u) <= u where the mean is the limit: for coins by exact enumeration of the sums."""
    number, limit = 30, 0.2
    losses = (torch.arange(number) < torch.arange(number + 1)[:, None]).double()
    p = hoeffding_bentkus(losses, limit)
    tail = binomial_tail(number, limit)
    mass = tail.diff(prepend=torch.zeros(1, dtype=torch.float64))
    for u in (0.01, 0.05, 0.1, 0.3):
        assert float(mass[p <= u].sum()) <= u
        assert float(mass[p <= u].sum()) > 0


LAWS = {
    "coins": lambda shape, mean, draw: (torch.rand(shape, generator=draw) < mean).double(),
    "even": lambda shape, mean, draw: 2 * mean * torch.rand(shape, generator=draw).double(),
    "seldom large": lambda shape, mean, draw: (
        0.5 * mean
        + (1 - 0.5 * mean) * (torch.rand(shape, generator=draw) < mean / (2 - mean)).double()
    ).clamp_max(1),
}


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("test", TESTS)
def test_what_is_picked_is_safe_as_often_as_promised(law, test):
    """2,000 calibrations of ten settings, whose true risks rise through the limit, at 90 %."""
    runs, texts, limit, delta = 2000, 120, 0.1, 0.1
    draw = torch.Generator().manual_seed(0)
    means = torch.tensor([0.01, 0.03, 0.06, 0.09, 0.1001, 0.1002, 0.105, 0.12, 0.2, 0.4])
    losses = LAWS[law]((runs, len(means), texts), means[:, None], draw)
    p = TESTS[test](losses, limit)
    counts = torch.tensor([fixed_sequence(row, delta) for row in p.tolist()])
    wrong = (counts > 4).double().mean()  # the last of those called safe is above the limit
    assert float(wrong) <= delta + 3 * math.sqrt(delta * (1 - delta) / runs)
    assert float((counts >= 1).double().mean()) > 0.9  # and it is not for want of trying


def test_settings_that_are_tested_out_of_order_are_not():
    """What the fixed sequence is for: the best of many bad settings often looks good."""
    draw = torch.Generator().manual_seed(0)
    losses = LAWS["coins"]((500, 40, 120), torch.tensor(0.105), draw)
    any_small = (hoeffding_bentkus(losses, 0.1) <= 0.1).any(1).double().mean()
    assert float(any_small) > 0.2


def test_families_share_the_doubt():
    draw = torch.Generator().manual_seed(0)
    runs, families = 1000, 6
    losses = LAWS["coins"]((runs, families, 120), torch.tensor(0.1001), draw)
    p = hoeffding_bentkus(losses, 0.1)
    assert float((p <= 0.3 / families).any(1).double().mean()) <= 0.3
    good, bad = torch.zeros(60), torch.ones(60)
    found = safe([[good, good, bad, good], [bad, good], [good]], 0.1, 0.1, "hoeffding_bentkus")
    assert [count for count, _ in found] == [2, 0, 1]
    assert [len(p_values) for _, p_values in found] == [4, 2, 1]
    # 0.9 ** 30 is enough for one family, and not for three
    few = torch.zeros(30)
    assert safe([[few]], 0.1, 0.1, "hoeffding_bentkus")[0][0] == 1
    assert safe([[few], [few], [few]], 0.1, 0.1, "hoeffding_bentkus")[0][0] == 0


def test_betting_needs_fewer_texts_where_losses_differ_little():
    draw = torch.Generator().manual_seed(0)
    losses = 0.05 + 0.02 * torch.rand(128, generator=draw).double()
    assert float(betting(losses, 0.1)) < 0.02 < 0.1 < float(hoeffding_bentkus(losses, 0.1))


def test_betting_knows_nothing_of_what_comes_later():
    losses = torch.rand(50, generator=torch.Generator().manual_seed(0)).double() * 0.1
    good = torch.cat((losses, torch.zeros(50)))
    assert float(betting(good, 0.2)) <= float(betting(losses, 0.2))
    bad = torch.cat((losses, torch.ones(50)))
    assert float(betting(bad, 0.2)) == float(betting(losses, 0.2))


def test_too_few_texts_are_known_before():
    for delta in (0.1, 0.02):
        for name, test in TESTS.items():
            need = texts_needed(0.1, delta, name)
            assert float(test(torch.zeros(need), 0.1)) <= delta
            assert float(test(torch.zeros(need - 1), 0.1)) > delta
        # (1 - limit) ** texts is the chance that coins of the limit never lose
        by_hand = math.ceil(math.log(delta) / math.log(0.9))
        assert texts_needed(0.1, delta, "hoeffding_bentkus") == by_hand


def test_bad_losses_and_limits_are_refused():
    for test in TESTS.values():
        with pytest.raises(ConfigError, match=r"limit of a risk must be in \(0, 1\)"):
            test(torch.zeros(5), 1.0)
        with pytest.raises(ConfigError, match="got none"):
            test(torch.zeros(0), 0.1)
        with pytest.raises(ConfigError, match="clip them"):
            test(torch.tensor([0.5, 1.5]), 0.1)


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("limit", [0.1, 0.3, 0.6])
def test_p_values_keep_their_promise_over_all_that_coins_may_do(test, limit):
    """Exactly: every sequence of 12 coins whose mean is the limit, weighed by its chance."""
    coins = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 12).double()
    chance = (coins * limit + (1 - coins) * (1 - limit)).prod(-1)
    p, order = TESTS[test](coins, limit).sort()
    assert bool((chance[order].cumsum(0)[:-1] <= p[1:] + 1e-9).all())
