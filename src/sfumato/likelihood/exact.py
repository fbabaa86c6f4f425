"""Likelihoods that are exact for one way of writing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.arguments import COUNT
from sfumato.decoding.loops import generate
from sfumato.decoding.page import blank
from sfumato.decoding.step import Around, Chooser, Prediction, Step, commit
from sfumato.decoding.unmask import spread
from sfumato.errors import ConfigError
from sfumato.likelihood.result import Likelihood
from sfumato.models.attention import positions_from
from sfumato.noise.corruption import Corruption
from sfumato.objectives.loss import reading
from sfumato.objectives.next_token import NextToken
from sfumato.rng import Rng
from sfumato.types import Batch, Canvas, Denoiser, Filter, Trainable


@torch.no_grad()
def left_to_right(denoiser: Trainable, batch: Batch) -> Likelihood:
    """Exact, of an autoregressive model: give it `denoisers.autoregressive(model, mask_id)`."""
    unused = Rng.from_seed(0, device=batch.tokens.device)
    loss = NextToken()(denoiser, batch, unused)
    return _exact("left_to_right()", loss.nll, batch, float(loss.correct), float(loss.corrupted))


@torch.no_grad()
def by_order(
    denoiser: Trainable, corruption: Corruption, batch: Batch, order: Tensor
) -> Likelihood:
    """Exact, for writing one token at a time in a given order: n forward passes.

    order [B, L]: trainable positions are written from the lowest value to the highest.
    """
    check_masked("by_order", corruption)
    denoiser = reading(denoiser, batch)
    rank = order.masked_fill(~batch.trainable, order.max() + 1).argsort(1).argsort(1)
    n = batch.trainable.sum(1)
    nats = torch.zeros(batch.tokens.shape, dtype=torch.float64, device=batch.tokens.device)
    right = 0.0
    for number in range(int(n.max())):
        noisy = batch.trainable & (rank >= number)
        where = noisy & (rank == number)
        share = (n - number).clamp_min(0) / n.clamp_min(1)
        targets = batch.tokens[where]
        _, nll, correct = denoiser.score(
            batch.tokens.masked_fill(noisy, corruption.mask_id),
            corruption.schedule.time(1 - share.double()).float(),
            where,
            targets,
            torch.ones_like(targets, dtype=torch.float32),
            segments=batch.segments,
        )
        nats[where] = nll.double()
        right += float(correct.sum())
    return _exact("by_order()", nats, batch, right, float(n.sum()))


@torch.no_grad()
def any_order(
    denoiser: Trainable, corruption: Corruption, batch: Batch, rng: Rng, *, samples: int = 1
) -> Likelihood:
    """Mean over random orders of `by_order`: the exact-k bound again, n forward passes a draw."""
    samples = COUNT.check("samples", samples)
    length = batch.tokens.shape[1]
    orders = [rng.fold(number).fold(batch.slots).uniform(length) for number in range(samples)]
    if size := getattr(denoiser, "block_size", None):  # one block is written after another
        orders = [order + positions_from(batch.segments) // size for order in orders]
    each = [by_order(denoiser, corruption, batch, order) for order in orders]
    draws = torch.stack([likelihood.nats for likelihood in each])
    noise = torch.full_like(draws[0], math.nan) if samples == 1 else draws.std(0)
    return mean(
        f"any_order(samples={samples})",
        [likelihood.each for likelihood in each],
        noise / math.sqrt(samples),
        torch.full_like(noise, samples - 1),
        batch,
        sum(likelihood.correct for likelihood in each),
        sum(likelihood.predicted for likelihood in each),
    )


@torch.no_grad()
def by_decoder(
    denoiser: Denoiser,
    corruption: Corruption,
    batch: Batch,
    step: Step,
    *,
    num_steps: int | None = None,
    block: int | None = None,
    lookahead: bool = True,
    filters: Sequence[Filter] = (),
) -> Likelihood:
    """Exact, for the decoder that `generate` is with the same arguments (DUEL, arXiv 2603.01367).

    The step rule chooses positions as it would, the true tokens are written there, and their
    log-probabilities add up. So the choice must not depend on chance or on the drawn tokens.
    """
    check_masked("by_decoder", corruption)
    if not isinstance(step, Chooser):
        raise ConfigError(
            f"{type(step).__name__} chooses positions by chance, by the drawn tokens or by what it "
            "remembers, so its texts have no exact likelihood; use a rule that looks at the state "
            "and the logits alone, as TopProbability, Margin, LowEntropy, Threshold, LeftToRight"
        )
    if block is not None and bool((batch.segments != batch.segments[:, :1]).any()):
        raise ConfigError("by_decoder with blocks needs rows of one document without padding")
    denoiser = reading(denoiser, batch)  # type: ignore[arg-type]
    unused = Rng.from_seed(0, len(batch.tokens), batch.tokens.device)
    page = blank(corruption, batch.tokens, ~batch.trainable, unused)
    nothing = torch.zeros(batch.tokens.shape, dtype=torch.float64, device=batch.tokens.device)
    page = replace(page, memory={"truth": batch.tokens, "nats": nothing, "correct": nothing})
    for later in generate(
        denoiser if block else _Apart(denoiser, batch.segments),
        page,
        _TeacherForced(step),
        unused,
        num_steps=num_steps,
        block=block,
        lookahead=lookahead,
        filters=filters,
    ):
        page = later
    return _exact(
        f"by_decoder({step}, num_steps={num_steps}, block={block}, lookahead={lookahead}, "
        f"filters={list(filters)})",
        page.memory["nats"],
        batch,
        float(page.memory["correct"].sum()),
        float(batch.trainable.sum()),
    )


@dataclass(frozen=True)
class _TeacherForced(Around):
    """Decides where `step` would, but writes the truth, and remembers how probable it was."""

    step: Chooser
    exact = True

    def __call__(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        chosen = self.step.choose(canvas, seen, t, s)
        where, truth = seen.where, canvas.memory["truth"]
        nll = -seen.at(where).double().log_softmax(-1).gather(-1, truth[where][:, None])[:, 0]
        hit = (seen.logits.argmax(-1) == truth[where]).double()
        memory = {
            "truth": truth,
            "nats": torch.where(chosen, spread(nll, where, 0.0), canvas.memory["nats"]),
            "correct": torch.where(chosen, spread(hit, where, 0.0), canvas.memory["correct"]),
        }
        return replace(commit(canvas, chosen, truth), memory=memory)


@dataclass(frozen=True)
class _Apart:
    """A denoiser of packed or padded rows, whose documents do not see each other."""

    denoiser: Denoiser
    segments: Tensor  # [B, L]

    def __call__(
        self,
        tokens: Tensor,
        t: Tensor,
        where: Tensor | None = None,
        *,
        segments: Tensor | None = None,
    ) -> Tensor:
        return self.denoiser(tokens, t, where, segments=self.segments)

    def given(self, left: Tensor | None = None, right: Tensor | None = None) -> "_Apart":
        return replace(self, denoiser=self.denoiser.given(left, right))


def _exact(
    estimator: str, nats: Tensor, batch: Batch, correct: float, predicted: float
) -> Likelihood:
    """From nats [B, L] of each token."""
    tokens, none = batch.trainable.sum(1), torch.zeros_like(nats[:, 0], dtype=torch.float64)
    freedom = torch.full_like(none, math.inf)
    return Likelihood(estimator, nats.double(), none, freedom, tokens, correct, predicted)


def mean(
    estimator: str,
    draws: Sequence[Tensor],
    noise: Tensor,
    freedom: Tensor,
    batch: Batch,
    correct: float,
    predicted: float,
) -> Likelihood:
    """Of several estimates of each token [B, L]."""
    each, tokens = torch.stack(list(draws)).mean(0), batch.trainable.sum(1)
    return Likelihood(estimator, each, noise, freedom, tokens, correct, predicted)


def check_masked(name: str, corruption: Corruption) -> None:
    if not corruption.absorbing:
        raise ConfigError(
            f"{name} is for masked diffusion, whose noisy positions are known; "
            f"for {type(corruption).__name__} use continuous"
        )
