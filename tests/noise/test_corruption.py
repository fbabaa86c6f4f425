import functools
import math

import numpy as np
import pytest
import torch
from reference import Dense
from worlds import MASK, World, exact_bound, forward_law

from sfumato.errors import ConfigError
from sfumato.noise.corruption import CORRUPTIONS, Hybrid, Masked, Uniform, corruption_from
from sfumato.noise.schedules import Clipped, CosineAlpha, CosineMask, Linear, LogLinear, Power
from sfumato.rng import Rng
from sfumato.testing import check_corruption

SCHEDULES = [Linear(), CosineMask(), CosineAlpha(), LogLinear(), Power(), Clipped()]
ALL = [
    *(make(4, 3, schedule) for make in (Masked, Uniform, Hybrid) for schedule in SCHEDULES),
    # the mask token anywhere, and GIDD's other knobs
    Masked(5, 0),
    Uniform(5, 2),
    Hybrid(5, 1, uniform_share=0.5, gamma=2.0),
    Hybrid(4, 3, CosineMask(), uniform_share=0.01, gamma=0.5),
]
FULL = [each for each in ALL if each.schedule.low == 0 and each.schedule.high == 1]


@pytest.mark.parametrize("corruption", ALL, ids=repr)
def test_every_corruption_keeps_the_contract(corruption):
    check_corruption(corruption)


def dense(corruption) -> Dense:
    """The same process, known to the reference by its numbers only."""

    @functools.cache
    def kernel(t):
        k = corruption.kernel(torch.tensor(t, dtype=torch.float64))
        noise = np.full(corruption.vocab_size, float(k.spread) / (corruption.vocab_size - 1))
        noise[corruption.mask_id] = float(k.mask)
        return float(k.alpha), noise

    return Dense(lambda t: kernel(t)[0], lambda t: kernel(t)[1])


def pairs(corruption, t):
    """All (x_0, x_t) that can occur."""
    possible = forward_law(corruption, t) > 0
    possible[corruption.mask_id] = False
    return possible.nonzero(as_tuple=True)


def guesses(corruption, xt, seed=0):
    """Some p(x_0 | x_t) [N, V] for each x_t, 0 for what cannot be."""
    scores = 4 * Rng.from_seed(seed, len(xt)).uniform(corruption.vocab_size)
    scores[:, corruption.mask_id] = -torch.inf
    if corruption.absorbing:
        here = torch.nn.functional.one_hot(xt, corruption.vocab_size).bool()
        visible = (xt != corruption.mask_id)[:, None]
        scores = scores.masked_fill(visible & ~here, -torch.inf)
    return scores.softmax(-1)


@pytest.mark.parametrize("corruption", ALL, ids=repr)
def test_the_posterior_equals_the_dense_reference(corruption):
    for t, s in ((0.99, 0.5), (0.6, 0.58), (0.2, 0.01)):
        _, xt = pairs(corruption, t)
        p0 = guesses(corruption, xt)
        time = torch.full(xt.shape, t, dtype=torch.float64)
        got = corruption.posterior(p0, xt, time, torch.full_like(time, s))
        process = dense(corruption)
        for row, token in enumerate(xt.tolist()):
            wanted = process.posterior(p0[row].numpy(), token, t, s)
            torch.testing.assert_close(got[row].numpy(), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("corruption", ALL, ids=repr)
def test_the_bound_equals_the_dense_reference(corruption):
    for t in (0.02, 0.3, 0.75, 0.97):
        x0, xt = pairs(corruption, t)
        p0 = guesses(corruption, xt)
        time = torch.full(xt.shape, t, dtype=torch.float64)
        got = corruption.bound(p0.log(), x0, xt, time)
        process = dense(corruption)
        for row, (clean, token) in enumerate(zip(x0.tolist(), xt.tolist(), strict=True)):
            wanted = process.bound(p0[row].numpy(), clean, token, t)
            assert float(got[row]) == pytest.approx(wanted, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("corruption", ALL, ids=repr)
@pytest.mark.parametrize("t", [1e-12, 1e-9, 1e-5, 0.3, 1 - 1e-5, 1 - 1e-9])
def test_the_bound_and_its_gradient_are_finite_at_all_times(corruption, t):
    """In float32, as networks give it: also where alpha or 1 - alpha is hardly a number."""
    x0, xt = pairs(corruption, 0.5)
    logits = guesses(corruption, xt).clamp_min(1e-9).log().float()
    logits = logits.index_fill(-1, torch.tensor([corruption.mask_id]), -torch.inf)
    logits.requires_grad_()
    time = torch.full(xt.shape, t, dtype=torch.float64)
    bound = corruption.bound(logits.log_softmax(-1), x0, xt, time)
    (slope,) = torch.autograd.grad(bound.sum(), logits)
    assert bound.dtype == torch.float32
    assert bool(bound.isfinite().all())
    assert bool((bound >= 0).all())
    assert bool(slope.isfinite().all())


@pytest.mark.parametrize("corruption", ALL, ids=repr)
def test_the_bound_of_the_truth_is_0(corruption):
    """Certain of the clean token, nothing is left to pay."""
    for t in (0.1, 0.5, 0.9):
        x0, xt = pairs(corruption, t)
        logp = torch.nn.functional.one_hot(x0, corruption.vocab_size).double().log()
        bound = corruption.bound(logp, x0, xt, torch.full(xt.shape, t, dtype=torch.float64))
        torch.testing.assert_close(bound, torch.zeros_like(bound), rtol=0, atol=1e-12)


# what Hybrid's square roots at both ends leave of the quadrature's 1e-13, in nats
@pytest.mark.parametrize(
    "corruption",
    [each for each in FULL if each.vocab_size == 4 and each.mask_id == MASK],
    ids=repr,
)
def test_the_bound_of_the_perfect_denoiser_is_the_entropy(corruption):
    world = World.random()
    tolerance = 1e-4 if isinstance(corruption, Hybrid) else 1e-12
    assert exact_bound(world, corruption) == pytest.approx(world.entropy, abs=tolerance)


@pytest.mark.parametrize("make", [Masked, Uniform, Hybrid])
def test_a_wrong_denoiser_pays_more_than_the_entropy(make):
    world, corruption = World.random(), make(4, MASK)
    wrong = world.denoiser(corruption, error=0.5)

    def denoiser(tokens, t):
        return wrong(tokens, t).log_softmax(-1)

    assert exact_bound(world, corruption, denoiser) > world.entropy + 0.05


def test_a_schedule_that_stops_short_leaves_that_much_out():
    world = World.random()
    # from rate 1 - eps on, the bound integrates E[cross-entropy of all] / rate: about eps times it
    missing = world.entropy - exact_bound(world, Masked(4, MASK, LogLinear(0.001)))
    assert 0 < missing < 0.001 * 3 * math.log(3)


@pytest.mark.parametrize("make", [Uniform, Hybrid])
def test_at_the_end_everything_is_clean_also_for_clipped_schedules(make):
    corruption = make(4, MASK, Clipped())
    p0 = torch.tensor([[0.5, 0.3, 0.2, 0.0]], dtype=torch.float64)
    law = corruption.posterior(p0, torch.tensor([1]), torch.tensor([0.1]), torch.tensor([0.0]))
    assert float(law[0, MASK]) == 0


def test_hybrid_has_the_uniform_share_it_says_at_rate_one_half():
    for share in (0.1, 0.4):
        k = Hybrid(6, 5, uniform_share=share, gamma=1.5).kernel(torch.tensor(0.5))
        assert float(k.spread) == pytest.approx(share)


def test_hybrid_approaches_masked_noise():
    masked, hybrid = Masked(4, MASK), Hybrid(4, MASK, uniform_share=1e-9)
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    for one, other in zip(masked.kernel(t), hybrid.kernel(t), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_names_give_corruptions():
    assert set(CORRUPTIONS) == {"masked", "uniform", "hybrid"}
    assert corruption_from({}, 5, 4) == Masked(5, 4)
    assert corruption_from({"name": "uniform", "schedule": "cosine"}, 5, 4) == Uniform(
        5, 4, CosineMask()
    )
    spec = {
        "name": "hybrid",
        "uniform_share": 0.2,
        "schedule": {"name": "power", "exponent": 3},
    }
    assert corruption_from(spec, 5, 4) == Hybrid(5, 4, Power(3), uniform_share=0.2)
    assert spec["name"] == "hybrid"  # left as it was
    spec = {"schedule": {"name": "clipped", "high": 0.7, "schedule": {"name": "cosine_alpha"}}}
    assert corruption_from(spec, 5, 4) == Masked(5, 4, Clipped(CosineAlpha(), high=0.7))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Masked(4, 4), "mask_id must be one of the 4 tokens of the vocabulary, got 4"),
        (lambda: Uniform(4, -1), "mask_id must be one of the 4 tokens of the vocabulary, got -1"),
        (lambda: Hybrid(1, 0), "mask_id must be one of the 1 tokens"),
        (lambda: Hybrid(4, 3, uniform_share=0), "uniform_share must be between 0 and 1, got 0"),
        (lambda: Hybrid(4, 3, uniform_share=1), "uniform_share must be between 0 and 1, got 1"),
        (lambda: Hybrid(4, 3, gamma=0), "gamma must be positive, got 0"),
        (lambda: corruption_from({"name": "maskd"}, 4, 3), "unknown corruption 'maskd'; did you"),
        (
            lambda: corruption_from({"name": "masked", "share": 1}, 4, 3),
            "corruption 'masked': .*unexpected keyword argument 'share'",
        ),
    ],
)
def test_what_cannot_be_a_corruption_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
