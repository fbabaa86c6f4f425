"""What a clean prompt is to a perfect denoiser that is told one time for the whole canvas.

By enumeration: the law that `generate` samples at given positions, in small steps, against the
conditional law of the world. docs/conventions.md says what follows.
"""

from itertools import pairwise

import pytest
import torch
from worlds import MASK, VOCAB, World, forward_law

from sfumato.decoding.loops import generate
from sfumato.decoding.page import blank
from sfumato.decoding.unmask import Ancestral
from sfumato.noise.corruption import Hybrid, Masked, Uniform
from sfumato.rng import Rng

WORLD = World.random(length=2)
ENDS = torch.arange(VOCAB + 1)[:, None]  # every state of the position that is written
NUM_STEPS = 64


def written(corruption, first: int, reading: str) -> torch.Tensor:
    """[VOCAB]: the law of token 1 after token 0, given clean, through every step of `Ancestral`.

    What the denoiser makes of token 0: `clean` text, `noise` at time t, or the same `renoised`.
    """
    denoiser = WORLD.denoiser(corruption)
    law = forward_law(corruption, 1.0)[0]
    times = torch.linspace(1, 0, NUM_STEPS + 1, dtype=torch.float64)

    def step(seen: torch.Tensor, t: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        lead, now = seen.expand(ENDS.shape), t.expand(len(ENDS))
        if reading == "clean":
            logits = denoiser.given(left=lead)(ENDS, now)
        else:
            logits = denoiser(torch.cat((lead, ENDS), 1), now)[:, 1:]
        p0 = logits[..., :VOCAB].nan_to_num(0).softmax(-1)  # anything, in states that cannot occur
        p0 = torch.nn.functional.pad(p0, (0, 1))
        at, to = t.expand(ENDS.shape), s.expand(ENDS.shape)
        return corruption.posterior(p0, ENDS, at, to).nan_to_num(0)[:, 0]  # [from, to]

    for t, s in pairwise(times):
        noised = forward_law(corruption, float(t))[first]
        if reading == "renoised":
            each = [p * step(seen, t, s) for seen, p in zip(ENDS, noised, strict=True) if p > 0]
            law = law @ torch.stack(each).sum(0)
        else:
            law = law @ step(ENDS[first], t, s)
    return law[:VOCAB]


def conditional(first: int) -> torch.Tensor:
    law = WORLD.law.view(VOCAB, VOCAB)[first]
    return law / law.sum()


def missed(corruption, reading: str) -> float:
    """Total variation from the conditional law, mean over prompts."""
    apart = [written(corruption, n, reading) - conditional(n) for n in range(VOCAB)]
    each = torch.stack(apart).abs().sum(1) / 2
    return float(WORLD.law.view(VOCAB, VOCAB).sum(1) @ each)


NOISES = {
    "masked": Masked(VOCAB + 1, MASK),
    "hybrid": Hybrid(VOCAB + 1, MASK),
    "uniform": Uniform(VOCAB + 1, MASK),
}


@pytest.mark.parametrize("name", NOISES)
def test_a_denoiser_that_knows_what_is_clean_writes_the_conditional_law(name):
    assert missed(NOISES[name], "clean") < 1e-6


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("masked", 0, 1e-6), ("hybrid", 0.03, 0.05), ("uniform", 0.06, 0.09)],
)
def test_one_that_takes_given_text_for_noise_writes_another_law(name, least, most):
    """Masks say themselves what is noise; another noisy token may be any text."""
    assert least <= missed(NOISES[name], "noise") <= most
    unaware = torch.stack([WORLD.law.view(VOCAB, VOCAB).sum(0) - conditional(n) for n in range(3)])
    without = float(WORLD.law.view(VOCAB, VOCAB).sum(1) @ unaware.abs().sum(1) / 2)
    assert missed(NOISES[name], "noise") < without / 2, "still far better than no prompt"


@pytest.mark.parametrize("name", NOISES)
def test_noising_the_prompt_anew_for_every_step_is_worse(name):
    assert missed(NOISES[name], "renoised") > missed(NOISES[name], "noise") + 0.02


@pytest.mark.parametrize("name", ["masked", "uniform"])
def test_that_law_is_what_generate_samples(name):
    corruption, first, count = NOISES[name], 0, 8000
    rng = Rng.from_seed(3, count)
    template = torch.tensor([[first, 0]]).expand(count, 2)
    fixed = torch.tensor([[True, False]]).expand(count, 2)
    canvas = blank(corruption, template, fixed, rng.fold(0))
    step = Ancestral(corruption)
    *_, last = generate(WORLD.denoiser(corruption), canvas, step, rng.fold(1), num_steps=NUM_STEPS)
    found = torch.bincount(last.tokens[:, 1], minlength=VOCAB) / count
    law = written(corruption, first, "noise")
    error = (law * (1 - law) / count).sqrt()
    assert bool(((found - law).abs() < 4 * error).all())
