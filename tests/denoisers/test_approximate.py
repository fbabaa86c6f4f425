"""Approximate caches: exact where they claim to be, measured where they are not."""

from dataclasses import replace

import pytest
import torch
from reference_models import network
from tiny_lm import tiny_lm
from torch.testing import assert_close

from sfumato.decoding.loops import generate
from sfumato.decoding.page import blank
from sfumato.decoding.rules import STEPS
from sfumato.denoisers.approximate import ApproximateCache, Drift
from sfumato.denoisers.full import Full, autoregressive
from sfumato.errors import ConfigError
from sfumato.noise.corruption import Masked
from sfumato.rng import Rng

VOCAB, MASK, ROWS, LENGTH = 11, 3, 2, 16
MASKED = Masked(VOCAB, MASK)
STEP = STEPS["margin"](MASKED, {})


def pages_of(denoiser, block: int | None = 4, left: bool = False) -> list[torch.Tensor]:
    rng = Rng.from_seed(0, ROWS)
    text = torch.randint(4, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    fixed = torch.zeros_like(text, dtype=torch.bool)
    fixed[:, 13] = True  # given text on the right of most blocks
    if left:
        hidden = torch.tensor([[True, True, False], [False, False, False]])
        denoiser = denoiser.given(left=text[:, :3], left_hidden=hidden)
    canvas = blank(MASKED, text, fixed, rng)
    return [page.tokens for page in generate(denoiser, canvas, STEP, rng, block=block)]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("kind", ["prefix", "dual"])
def test_refreshed_in_every_pass_it_is_exact(kind, left):
    full = Full(network(VOCAB), MASK)
    exact = pages_of(full, left=left)
    assert_close(pages_of(ApproximateCache(full, kind, refresh=1), left=left), exact)
    cached = ApproximateCache(full, kind, refresh=1, probe=1)
    pages_of(cached, left=left)
    assert cached.drift.count == 0  # nothing was reused


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("kind", ["prefix", "dual"])
def test_of_one_layer_what_is_kept_is_right(kind, left):
    """Keys and values of the first layer depend on tokens alone: only the block's own change."""
    full = Full(network(VOCAB, num_hidden_layers=1), MASK)
    cached = ApproximateCache(full, kind, probe=1)
    assert_close(pages_of(cached, left=left), pages_of(full, left=left))
    assert cached.drift.count > 10
    assert cached.drift.mean < 1e-9


def test_one_block_without_text_around_it_is_exact():
    full = Full(network(VOCAB), MASK)
    assert_close(pages_of(ApproximateCache(full), block=None), pages_of(full, block=None))


def test_of_more_layers_the_drift_is_measured():
    full = Full(network(VOCAB), MASK)
    drifts = []
    for kind, refresh in (("dual", None), ("dual", 2), ("prefix", None)):
        cached = ApproximateCache(full, kind, refresh=refresh, probe=1)
        pages_of(cached)
        drifts.append(cached.drift.mean)
        assert cached.drift.worst >= cached.drift.mean > 1e-6
    assert drifts[1] < drifts[0]


def test_drift_is_the_divergence_of_predictions():
    drift = Drift()
    exact, cached = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    drift.add(exact, cached)
    drift.add(exact, exact)
    wanted = 0.5 * torch.tensor(4 / 3).log().item()
    assert (drift.mean, drift.worst) == (pytest.approx(wanted / 2), pytest.approx(wanted))


def test_it_computes_fewer_positions():
    seen = []
    model = network(VOCAB)
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    for kind, wanted in (("dual", {16, 4}), ("prefix", {16, 12, 8, 4})):
        seen.clear()
        pages_of(ApproximateCache(Full(model, MASK), kind))
        assert set(seen) == wanted
        assert seen.count(16) == (4 if kind == "dual" else 4 + 3)


def test_what_has_no_use_for_it_is_refused():
    full = Full(network(VOCAB), MASK)
    with pytest.raises(ConfigError, match="'prefix' or 'dual', got 'suffix'"):
        ApproximateCache(full, "suffix")
    with pytest.raises(ConfigError, match="refresh must be at least 1 pass, got 0"):
        ApproximateCache(full, refresh=0)
    blocks = Full(network(VOCAB, attention="block_causal", block_size=4), MASK)
    for other in (blocks, autoregressive(network(VOCAB, attention="causal"), MASK)):
        with pytest.raises(ConfigError, match="has an exact cache"):
            ApproximateCache(other)


def test_a_model_writes_with_it():
    lm = tiny_lm()
    exact = {"seed": 0, "block": 8, "step": "margin"}
    plain = lm.generate("The fox", **exact)
    assert lm.generate("The fox", **exact, approx_cache="dual", approx_refresh=1) == replace(
        plain, options=replace(plain.options, approx_cache="dual", approx_refresh=1)
    )
    assert lm.generate("The fox", **exact, approx_cache="prefix").num_steps == plain.num_steps


@pytest.mark.parametrize(
    ("lm", "options", "message"),
    [
        ({}, {"approx_cache": "dual"}, "keeps what is around a block; set block"),
        ({}, {"approx_cache": "suffix", "block": 8}, "must be 'prefix' or 'dual', got 'suffix'"),
        ({}, {"approx_refresh": 2, "block": 8}, "is for an approx_cache"),
        (
            {},
            {"approx_cache": "dual", "block": 8, "step": "wino"},
            "'wino' looks at every position",
        ),
        ({"objective": "next_token"}, {"approx_cache": "dual"}, "has an exact cache"),
        (
            {"attention": "block_causal", "block_size": 8},
            {"approx_cache": "dual"},
            "has an exact cache",
        ),
    ],
)
def test_requests_that_have_no_use_for_it_are_refused(lm, options, message):
    with pytest.raises(ConfigError, match=message):
        tiny_lm(**lm).generate("The fox", **options)
