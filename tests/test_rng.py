import math

import pytest
import torch

from sfumato.rng import Rng


def test_draws_are_uniform_in_the_open_interval():
    u = Rng.from_seed(0, 200).uniform(1000)
    assert u.dtype == torch.float64
    assert float(u.min()) > 0
    assert float(u.max()) < 1
    counts = torch.histc(u.flatten(), bins=100, min=0, max=1)
    chi = ((counts - 2000) ** 2 / 2000).sum()  # 99 degrees of freedom: 99 +- 14
    assert 99 - 60 < float(chi) < 99 + 60


def test_every_bit_of_a_draw_is_a_fair_coin():
    bits = (Rng.from_seed(1, 100).uniform(1000) * 2**52).long().flatten()
    for place in range(52):
        heads = float(((bits >> place) & 1).double().mean())
        assert heads == pytest.approx(0.5, abs=5 * 0.5 / math.sqrt(len(bits)))


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])


@pytest.mark.parametrize(
    "pair",
    [
        lambda rng: (rng.uniform(5000)[:-1], rng.uniform(5000)[1:]),  # neighbouring rows
        lambda rng: (rng.uniform(5001)[:, :-1], rng.uniform(5001)[:, 1:]),  # neighbouring draws
        lambda rng: (rng.fold(0).uniform(5000), rng.fold(1).uniform(5000)),
        lambda rng: (rng.uniform(5000), rng.fold(0).uniform(5000)),
        lambda rng: (rng.fold(0).fold(1).uniform(5000), rng.fold(1).fold(0).uniform(5000)),
        lambda rng: (rng.uniform(5000), Rng.from_seed(3, 8).uniform(5000)),  # neighbouring seeds
    ],
    ids=["rows", "draws", "folds", "parent and child", "order of folds", "seeds"],
)
def test_streams_are_independent(pair):
    a, b = pair(Rng.from_seed(2, 8))
    assert abs(correlation(a, b)) < 5 / math.sqrt(a.numel())
    assert not torch.equal(a, b)


def test_any_integer_is_a_seed():
    seeds = [0, -1, 2**62, 2**63 - 1, 2**63, 2**64 - 2, 3**80]
    keys = torch.cat([Rng.from_seed(seed).keys for seed in seeds])
    assert len(keys.unique()) == len(seeds)
    assert torch.equal(Rng.from_seed(2**64 - 1).keys, Rng.from_seed(-1).keys)


def test_no_two_keys_of_many_rows_and_folds_are_equal():
    rng = Rng.from_seed(0, 1000)
    keys = torch.cat([rng.fold(number).keys for number in range(1000)])
    assert len(keys.unique()) == len(keys)


def test_a_batch_equals_its_rows_one_by_one():
    together = Rng.from_seed(5, 7).fold(3).uniform(4, 2)
    for row in range(7):
        alone = Rng.for_rows(5, torch.tensor([row])).fold(3).uniform(4, 2)
        assert torch.equal(alone[0], together[row])
    chosen = torch.tensor([6, 2])
    assert torch.equal(Rng.from_seed(5, 7).select(chosen).fold(3).uniform(4, 2), together[chosen])


def test_a_fold_for_every_row_equals_single_folds():
    rng, data = Rng.from_seed(0, 3), torch.tensor([4, 0, 9])
    for row, number in enumerate(data.tolist()):
        assert torch.equal(rng.fold(data).keys[row], rng.fold(number).keys[row])


def test_one_key_folds_into_one_key_for_every_slot():
    run = Rng.from_seed(0)
    together = run.fold(torch.tensor([10, 11, 12])).uniform(3)
    assert torch.equal(run.fold(11).uniform(3)[0], together[1])


def test_longer_draws_begin_with_shorter_ones():
    rng = Rng.from_seed(0, 2)
    assert torch.equal(rng.uniform(9)[:, :4], rng.uniform(4))


def splitmix(state: int) -> int:
    """SplitMix64's output function, in Python's integers."""
    z = state % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_draws_are_splitmix64_at_a_counter():
    rng = Rng.from_seed(7, 3).fold(2)
    draws = rng.uniform(4)
    for row, key in enumerate(rng.keys.tolist()):
        for place in range(4):
            bits = splitmix(key + (place + 1) * 0x9E3779B97F4A7C15) >> 12
            assert float(draws[row, place]) == (bits + 0.5) / 2**52


def test_numbers_never_change():
    """Runs that were saved resume with these very draws."""
    u = Rng.from_seed(123, 2).fold(45).uniform(2)
    assert u.tolist() == [
        [0.9197823171246305, 0.0977974496711641],
        [0.4826009817717033, 0.2681524209278642],
    ]


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    Rng.from_seed(0, 3).fold(1).uniform(5)
    assert torch.equal(before, torch.get_rng_state())
