import math

import pytest
import reference
import torch

from sfumato.decoding import logits as logits_module
from sfumato.decoding.logits import (
    confidences,
    draw_tokens,
    entropies,
    lead_odds,
    log_odds,
    most_likely,
    probability_of,
)
from sfumato.errors import ConfigError
from sfumato.rng import Rng


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = torch.tensor([0.5, -torch.inf, 2.0, -1.0, 0.0])
    u = Rng.from_seed(0, 40000).uniform()
    drawn = draw_tokens(logits.expand(40000, 5), u)
    law = logits.softmax(0).double()
    seen = torch.bincount(drawn, minlength=5) / 40000
    assert float(seen[1]) == 0
    assert bool(((seen - law).abs() <= 4 * (law / 40000).sqrt()).all())


def test_tails_are_drawn_in_full():
    """float32 noise would never draw what has a chance of 1e-9."""
    logits = torch.tensor([0.0, math.log(1e-9)])
    u = torch.tensor([1 - 2e-9, 1 - 0.5e-9], dtype=torch.float64)
    assert draw_tokens(logits.expand(2, 2), u).tolist() == [0, 1]


def test_the_ends_of_u_give_the_first_and_the_last_possible_token():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(2, 4)
    u = torch.tensor([2.0**-53, 1 - 2.0**-53], dtype=torch.float64)
    assert draw_tokens(logits, u).tolist() == [1, 2]


def test_one_possible_token_is_drawn_whatever_u():
    logits = torch.full((100, 7), -torch.inf)
    logits[:, 3] = -50.0
    assert draw_tokens(logits, Rng.from_seed(0, 100).uniform()).unique().tolist() == [3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drawing_by_groups_is_plain_inversion(dtype, monkeypatch):
    """Sizes around a group's, impossible tokens, rows in several chunks."""
    monkeypatch.setattr(logits_module, "CHUNK", 1000)
    for size in (2, 63, 64, 65, 300):
        rng = Rng.from_seed(size, 200)
        logits = (8 * rng.fold(0).uniform(size)).to(dtype)
        logits[rng.fold(1).uniform(size) < 0.5] = -torch.inf
        logits[:, 1] = 0.0
        u = rng.fold(2).uniform()
        sums = logits.double().softmax(-1).cumsum(-1)
        assert (
            draw_tokens(logits, u).tolist() == (u[:, None] * sums[:, -1:] >= sums).sum(-1).tolist()
        )


def test_confidences_and_odds_are_those_of_the_softmax(monkeypatch):
    monkeypatch.setattr(logits_module, "CHUNK", 100)
    monkeypatch.setattr(logits_module, "NARROW", 100)
    logits = (6 * Rng.from_seed(0, 50).uniform(30)).float()
    best = logits.softmax(-1).topk(2).values
    ids = logits.argsort(-1)[:, 7]
    own = logits.softmax(-1).gather(-1, ids[:, None])[:, 0]
    torch.testing.assert_close(confidences(logits), best[:, 0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(probability_of(ids, logits), own, rtol=1e-5, atol=1e-7)
    likely = (log_odds(logits), best[:, 0]), (log_odds(logits, ids), own)
    for odds, wanted in (*likely, (lead_odds(logits), best[:, 0] - best[:, 1])):
        torch.testing.assert_close(odds.sigmoid().float(), wanted, rtol=1e-4, atol=1e-6)


def laws(seed: int, rows: int = 40, size: int = 6) -> torch.Tensor:
    """Logits of all degrees of sureness, up to one of 1 - 1e-150."""
    draw = torch.Generator().manual_seed(seed)
    scale = 10 ** (3.5 * torch.rand(rows, 1, generator=draw) - 1)
    return scale.clamp_max(350) * torch.rand(rows, size, generator=draw)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_exact_arithmetic_and_never_saturate(seed):
    logits = laws(seed)
    tokens = torch.arange(len(logits)) % logits.shape[1]
    plain, given = [()] * len(logits), [(token,) for token in tokens.tolist()]
    for fast, slow, own in (
        (log_odds(logits), reference.log_odds, plain),
        (log_odds(logits, tokens), reference.log_odds, given),
        (lead_odds(logits), reference.lead_odds, plain),
        (entropies(logits).log(), lambda row: reference.entropy(row).ln(), plain),
    ):
        wanted = [float(slow(row, *of)) for row, of in zip(logits.tolist(), own, strict=True)]
        torch.testing.assert_close(fast.tolist(), wanted, rtol=2**-18, atol=2**-18)
        assert len(set(fast.tolist())) == len(logits)


SCORES = {
    "log odds": log_odds,
    "odds of a token": lambda logits: log_odds(logits, logits.argmin(-1)),
    "lead": lead_odds,
    "entropy": entropies,
}


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_scores_are_of_the_law_not_of_how_it_is_written(score):
    """To the bit: in any order of the vocabulary, from any origin, among any other rows."""
    exact = (laws(7, 60, 50) * 64).round() / 64  # so that adding 32 rounds nothing
    wanted = score(exact)
    assert torch.equal(score(exact + 32), wanted)
    assert torch.equal(score(exact.double()), wanted)
    assert torch.equal(score(exact.flip(0)), wanted.flip(0))
    assert torch.equal(torch.cat([score(row[None]) for row in exact]), wanted)
    for seed in range(3):
        other = torch.randperm(50, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(score(exact[:, other]), wanted)
    before = exact.clone()
    score(exact.double())
    assert torch.equal(exact, before)


def test_entropy_is_the_formula():
    probs = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0]])
    wanted = torch.tensor([1.5 * math.log(2), 0.0])
    torch.testing.assert_close(entropies(probs.log()), wanted.double(), rtol=2**-18, atol=1e-7)


def test_the_most_likely_token_is_the_first_of_equals():
    assert most_likely(torch.tensor([[0.0, 2.0, 2.0], [1.0, 0.0, -1.0]])).tolist() == [1, 0]


@pytest.mark.parametrize("bad", [-math.inf, math.nan])
@pytest.mark.parametrize(
    "draw", [most_likely, lambda logits: draw_tokens(logits, Rng.from_seed(0, 2).uniform())]
)
def test_a_position_where_nothing_may_stand_is_an_error(draw, bad):
    with pytest.raises(ConfigError, match="no token may stand at some position"):
        draw(torch.stack((torch.zeros(4), torch.full((4,), bad))))
