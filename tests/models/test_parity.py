"""Our mathematics beside that of the papers' authors, whose code made the tensors in golden/."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from golden.official import LENGTH, MASK, VOCAB, logits
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

from sfumato.decoding.filters import Temperature
from sfumato.decoding.loops import generate
from sfumato.decoding.page import blank
from sfumato.decoding.remask import Cap, Remasking, Rescale, loop
from sfumato.decoding.rules import STEPS
from sfumato.decoding.times import even_times
from sfumato.decoding.unmask import TopConfidence, quota
from sfumato.denoisers.full import Full
from sfumato.likelihood.bounds import _StepOf
from sfumato.models.output_loss import score_hidden
from sfumato.noise.corruption import Hybrid, Masked
from sfumato.noise.schedules import Clipped, CosineMask, Linear, LogLinear
from sfumato.objectives.masked import MaskedDiffusion
from sfumato.objectives.selection import Bernoulli, Draw, ExactK
from sfumato.rng import Rng
from sfumato.testing.claims import forward_law
from sfumato.types import Batch, Canvas

LINEAR = Linear()


def golden(name: str) -> dict[str, Tensor]:
    return load_file(Path(__file__).parents[1] / "golden" / name / "tensors.safetensors")


class Network(nn.Module):
    """The network of the golden tensors, as `Full` calls one: its head is the identity."""

    block_size, shift, reads_source = None, False, False

    def __init__(self, table: Tensor):
        super().__init__()
        self.table = table

    def forward(self, tokens, *, t, segments, where, attend, **scored):
        hidden = logits(self.table, tokens)[where]
        if not scored:
            return SimpleNamespace(logits=hidden)
        labels, weights = scored["labels"], scored["weights"]
        value, nll, correct = score_hidden(hidden, torch.eye(VOCAB), labels, weights, (MASK,))
        return SimpleNamespace(loss=value, nll=nll, correct=correct)


@dataclass(frozen=True)
class Given:
    """A selection whose masked positions are known; the weight is that of `rule`."""

    rule: Callable[..., Draw]
    noisy: Tensor
    whole = True

    def __call__(self, batch: Batch, u: Tensor, rng: Rng) -> Draw:
        return self.rule(batch, u, rng)._replace(noisy=self.noisy)


def loss_of(table: Tensor, clean: Tensor, noisy: Tensor, rule, times=None, prompt: int = 0):
    """[B, L]: what a masked objective reports of each token, for given masks."""
    where = noisy == MASK
    trainable = (torch.arange(clean.shape[1]) >= prompt).expand(clean.shape)
    batch = Batch(clean, trainable, torch.zeros_like(clean), torch.arange(len(clean)))
    objective = MaskedDiffusion(MASK, lambda slots, rng: times, Given(rule, where))
    return objective(Full(Network(table), MASK), batch, Rng.from_seed(0)).nll


def log_probs(table: Tensor, tokens: Tensor) -> Tensor:
    masked = logits(table, tokens).index_fill(-1, torch.tensor([MASK]), -torch.inf)
    return masked.double().log_softmax(-1)


# --- MDLM ---


@pytest.mark.parametrize(
    ("name", "schedule"),
    # their cosine keeps a share of 1e-3 clean, too
    [("loglinear", LogLinear(1e-3)), ("cosine", Clipped(CosineMask(), 0.0, 1 - 1e-3))],
)
def test_the_masked_loss_is_mdlm_s(name, schedule):
    kept = golden("mdlm")
    table, clean, noisy, times = (kept[key] for key in ("table", "clean", "noisy", "times"))
    wanted = kept[f"{name}.loss"].where(noisy == MASK, 0.0)
    found = loss_of(table, clean, noisy, Bernoulli(schedule), times.double())
    assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    wide = times.double()[:, None].expand(clean.shape)
    found = Masked(VOCAB, MASK, schedule).bound(log_probs(table, noisy), clean, noisy, wide)
    assert_close(found.float(), wanted, rtol=1e-5, atol=1e-6)


def test_the_discrete_bound_is_mdlm_s():
    kept = golden("mdlm")

    def rule(batch: Batch, u: Tensor, rng: Rng) -> Draw:
        """Theirs does not mask one token for certain, so that no draw comes too often."""
        draw = _StepOf(LINEAR, 8)(batch, u, rng)
        often = draw.noisy.sum(1) / (batch.trainable.sum(1) * draw.t)
        return draw._replace(weight=draw.weight * often)

    found = loss_of(kept["table"], kept["clean"], kept["noisy"], rule, kept["times"].double())
    # theirs is 0 / 0 in the last step, and at t = 1 cut to 1 - 1e-4
    assert_close(found[1:-1], kept["discrete.loss"][1:-1], rtol=1e-5, atol=1e-6)
    assert_close(found[-1], kept["discrete.loss"][-1], rtol=2e-4, atol=0)


def test_the_reverse_step_is_mdlm_s():
    kept = golden("mdlm")
    noisy, t = kept["noisy"], kept["times"].double()[:, None].expand(kept["noisy"].shape)
    p0 = log_probs(kept["table"], noisy).exp()
    found = Masked(VOCAB, MASK, LogLinear(1e-3)).posterior(p0, noisy, t, t - 0.04)
    masked = noisy == MASK
    assert_close(found[masked].float(), kept["step.law"][masked], rtol=1e-5, atol=1e-5)


# --- ReMDM ---


@pytest.mark.parametrize(
    ("name", "step", "times"),
    [
        ("cap", Remasking(LINEAR, MASK, Cap(0.05)), (0.9, 0.5, 0.06)),
        ("rescale", Remasking(LINEAR, MASK, Rescale(0.3)), (0.9, 0.5, 0.06)),
        # theirs is the largest sigma, shared out; our default is less
        ("conf", STEPS["remask_confidence"](Masked(VOCAB, MASK), {"eta": 1}), (0.9, 0.5, 0.06)),
        ("loop", loop(LINEAR, MASK), (0.8, 0.3, 0.05)),
    ],
)
def test_remasking_is_remdm_s(name, step, times):
    kept = golden("remdm")
    noisy, masked = kept["noisy"], kept["noisy"] == MASK
    memory = {"confidence": -kept["confidence"].where(~masked, 0.0)}
    canvas = Canvas(noisy, masked, torch.zeros_like(masked), memory)
    p0 = log_probs(kept["table"], noisy).exp()
    for time in times:
        t = torch.full((len(noisy),), time, dtype=torch.float64)
        s = t - kept["gap"].double()
        theirs = kept[f"remdm-{name}.{time}"].double()
        again, reveal = step.sigma(canvas, t, s), step.law(t, s)[1]
        assert_close(again[~masked], theirs[..., MASK][~masked], rtol=1e-5, atol=1e-6)
        found = reveal[:, None, None] * p0
        found[..., MASK] = 1 - reveal[:, None]
        assert_close(found[masked], theirs[masked], rtol=1e-5, atol=1e-6)


# --- LLaDA ---


@pytest.mark.parametrize("steps", [1, 3, 7, 16])
def test_the_quota_is_llada_s(steps):
    wanted = golden("llada")[f"split.{steps}"]
    left = torch.arange(len(wanted))
    for number in range(steps):
        noisy = torch.arange(16) < left[:, None]
        canvas = Canvas(noisy.long(), noisy, torch.zeros_like(noisy))
        t, s = even_times(steps)[number : number + 2, None]
        count = quota(canvas, LINEAR, t, s)
        assert torch.equal(count, wanted[:, number])
        left = left - count


@pytest.mark.parametrize(
    ("prompt", "steps", "block"),
    [(1, 4, 4), (1, 2, 4), (1, 2, 2), (1, 4, 2), (0, 3, 5), (3, 2, 1)],
)
def test_what_is_written_is_what_llada_writes(prompt, steps, block):
    kept = golden("llada")
    written = kept[f"written.{prompt}.{steps}.{block}"]
    for table, wanted in zip(kept["tables"], written, strict=True):
        shape = (len(wanted), LENGTH - prompt)
        nothing = torch.zeros(shape, dtype=torch.bool)
        canvas = blank(Masked(VOCAB, MASK), nothing.long(), nothing, Rng.from_seed(0))
        denoiser = Full(Network(table), MASK).given(left=wanted[:, :prompt])
        *_, last = generate(
            denoiser, canvas, TopConfidence(LINEAR), Rng.from_seed(0, len(wanted)),
            num_steps=steps, block=block, filters=[Temperature(0)],
        )  # fmt: skip
        assert torch.equal(last.tokens, wanted[:, prompt:])


def test_the_likelihood_is_llada_s():
    """For the masks that it drew: n / k at each of k masked tokens of n, summed over the row."""
    kept = golden("llada")

    def rule(batch: Batch, u: Tensor, rng: Rng) -> Draw:
        rest = batch.trainable & (noisy != MASK)
        return ExactK().complement(batch, Draw(rest, torch.empty(0), torch.empty(0)))

    for row, clean in enumerate(kept["clean"]):
        noisy = kept[f"noisy.{row}"]
        each = loss_of(kept["tables"][0], clean.expand(noisy.shape), noisy, rule, prompt=1)
        assert_close(each.sum(1).mean(), kept[f"nats.{row}"], rtol=1e-5, atol=1e-5)


# --- GIDD ---


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_hybrid_noise_is_gidd_s(share):
    """Its networks predict a token from all others; ours see x_t there, too: times q(x_t | x_0)."""
    kept = golden("gidd")
    corruption = Hybrid(VOCAB, MASK, LINEAR, uniform_share=share)
    clean, noisy, times = kept["clean"], kept["noisy"], kept["times"]
    law = forward_law(corruption, times)
    assert_close(law, kept[f"{share}.forward"], rtol=1e-6, atol=1e-7)
    seen = torch.stack([row[:, tokens].T for row, tokens in zip(law, noisy, strict=True)])
    logp = (log_probs(kept["table"], noisy) + seen.log()).log_softmax(-1)
    t = times[:, None].expand(clean.shape)
    found = corruption.bound(logp, clean, noisy, t)
    assert_close(found, kept[f"{share}.bound"], rtol=1e-5, atol=1e-6)
    found = corruption.posterior(logp.exp(), noisy, t, t - kept["gap"].double())
    assert_close(found, kept[f"{share}.law"], rtol=1e-5, atol=1e-6)
