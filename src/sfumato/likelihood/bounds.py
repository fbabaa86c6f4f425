"""How probable a model finds texts: bounds and exact values, and how sure we are of the number.

Every function returns a `Likelihood`: nats for each row, and the noise of that estimate. They
differ in what they are about. `exact_k`, `continuous` and `discrete` bound -log p under the random
order of the diffusion; `any_order` is the same bound by other draws; `by_order`, `by_decoder` and
`left_to_right` are exact, each for its own way of writing a text.

`rng` has one key, the run's; what a row draws depends on it and the row's slot alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.arguments import COUNT
from sfumato.decoding.canvas import blank, generate
from sfumato.decoding.step import Around, Chooser, Prediction, Step, commit
from sfumato.decoding.unmask import spread
from sfumato.errors import ConfigError
from sfumato.estimates import Estimate, ratio
from sfumato.models.attention import positions_from
from sfumato.noise.corruption import Corruption
from sfumato.noise.schedules import Schedule, reveal_rate
from sfumato.objectives.bound import Continuous
from sfumato.objectives.masked import (
    BlockDiffusion,
    Draw,
    ExactK,
    MaskedDiffusion,
    NextToken,
    Times,
    reading,
)
from sfumato.rng import Rng
from sfumato.types import Batch, Canvas, Denoiser, Filter, Objective, Trainable


@dataclass(frozen=True)
class Likelihood:
    """-log p of every row, or an estimate of it or of a bound on it."""

    estimator: str  # the call that made it
    each: Tensor  # [B, L] float64 nats: what the token at each position adds
    noise: Tensor  # [B] float64, standard error of nats from the estimator's own draws
    freedom: Tensor  # [B] float64, the degrees of freedom of that error
    tokens: Tensor  # [B] int64, trainable tokens
    correct: float  # predicted tokens whose most likely value was the true one
    predicted: float

    @property
    def nats(self) -> Tensor:
        """[B] float64, of each row."""
        return self.each.sum(1)

    @classmethod
    def join(cls, parts: Sequence["Likelihood"]) -> "Likelihood":
        """Batches of one estimator as one."""
        width = max(part.each.shape[1] for part in parts)
        return cls(
            parts[0].estimator,
            torch.cat([F.pad(part.each, (0, width - part.each.shape[1])) for part in parts]),
            torch.cat([part.noise for part in parts]),
            torch.cat([part.freedom for part in parts]),
            torch.cat([part.tokens for part in parts]),
            sum(part.correct for part in parts),
            sum(part.predicted for part in parts),
        )

    def grouped(self, owner: Tensor) -> "Likelihood":
        """Rows that make up one text as one; owner [B] numbers the texts from 0."""
        count = int(owner.max()) + 1

        def total(values: Tensor) -> Tensor:
            return values.new_zeros((count, *values.shape[1:])).index_add_(0, owner, values)

        variance = self.noise.square()
        # Welch and Satterthwaite: of a sum of errors
        freedom = total(variance).square() / total(variance.square() / self.freedom)
        return replace(
            self,
            each=total(self.each),
            noise=total(variance).sqrt(),
            freedom=freedom.nan_to_num(math.inf),
            tokens=total(self.tokens),
        )

    @property
    def per_token(self) -> Estimate:
        """Nats per trainable token; its error is over rows and includes their noise.

        For independent rows; `grouped` makes the rows of one text one row.
        """
        return ratio(self.nats, self.tokens)

    @property
    def perplexity(self) -> Estimate:
        """exp(nats per trainable token)."""
        return self.per_token.exp()

    @property
    def per_row(self) -> list[Estimate]:
        """Nats per trainable token of each row by itself; the error is the estimator's noise."""
        counts = self.tokens.clamp_min(1)
        columns = (self.nats / counts, self.noise / counts, self.freedom)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return [Estimate.of(value, error, round(freedom, 1)) for value, error, freedom in rows]

    def bits_per_byte(self, num_bytes: Tensor) -> Estimate:
        """num_bytes [B]: UTF-8 bytes that each row's trainable tokens spell."""
        return ratio(self.nats, num_bytes).scaled(1 / math.log(2))

    @property
    def accuracy(self) -> float:
        """Share of predictions whose most likely token was the true one."""
        return self.correct / self.predicted if self.predicted else math.nan


# --- bounds under the diffusion's random order: objectives, averaged over systematic times ---


def bound(
    denoiser: Trainable, corruption: Corruption, batch: Batch, rng: Rng, *, samples: int = 1
) -> Likelihood:
    """The bound to report for a diffusion model: `exact_k` if it is masked, else `continuous`."""
    estimator = exact_k if corruption.absorbing else continuous
    return estimator(denoiser, corruption, batch, rng, samples=samples)


@torch.no_grad()
def exact_k(
    denoiser: Trainable, corruption: Corruption, batch: Batch, rng: Rng, *, samples: int = 1
) -> Likelihood:
    """The bound with exactly k of n tokens masked, k spread evenly over 1..n (LLaDA, eq. 14).

    E over k and positions of n / k times the cross-entropy of the masked tokens. Free of the
    schedule, and of the lowest variance: the bound to report for masked models.
    """
    _check_masked("exact_k", corruption)
    return _average(
        f"exact_k(samples={samples})",
        lambda times: _within_blocks(
            denoiser,
            MaskedDiffusion(corruption.mask_id, times, ExactK(schedule=corruption.schedule)),
        ),
        denoiser,
        batch,
        rng,
        samples,
    )


def _within_blocks(denoiser: Trainable, masked: MaskedDiffusion) -> Objective:
    """A block-causal model reads clean text before a block: its bound is a sum over blocks."""
    size = getattr(denoiser, "block_size", None)
    return BlockDiffusion(size, masked) if size else masked


@torch.no_grad()
def continuous(
    denoiser: Trainable, corruption: Corruption, batch: Batch, rng: Rng, *, samples: int = 1
) -> Likelihood:
    """The continuous-time bound of any corruption; `objectives.bound` says how it is drawn."""
    schedule = corruption.schedule
    if schedule.low > 0 or schedule.high < 1:
        raise ConfigError(
            f"the bound integrates over all noise rates, and {schedule} leaves some out; "
            "evaluate with a schedule that runs from 0 to 1, or a masked model with exact_k"
        )
    return _average(
        f"continuous(samples={samples})",
        lambda times: Continuous(corruption, times),
        denoiser,
        batch,
        rng,
        samples,
    )


@torch.no_grad()
def discrete(
    denoiser: Trainable,
    corruption: Corruption,
    batch: Batch,
    rng: Rng,
    *,
    num_steps: int,
    samples: int | None = None,
) -> Likelihood:
    """The bound of ancestral generation in T equal steps (MDLM, arXiv 2406.07524, eq. 8).

    Sum over steps of (alpha_s - alpha_t) / (1 - alpha_t) times the cross-entropy of the masked
    tokens; of the T steps `samples` are drawn, evenly spread (None: every one, once). Generation
    starts with everything masked and ends with nothing masked, whatever the schedule: so where
    alpha(1) is not 0, a token is masked at t with probability (1 - alpha_t) / (1 - alpha_1), which
    is what leads to these rates; and where alpha(0) is not 1, the last step reveals what is left.
    """
    _check_masked("discrete", corruption)
    if num_steps < 1:
        raise ConfigError(f"num_steps must be at least 1, got {num_steps}")
    samples = num_steps if samples is None else samples
    return _average(
        f"discrete(num_steps={num_steps}, samples={samples})",
        lambda times: _within_blocks(
            denoiser,
            MaskedDiffusion(corruption.mask_id, times, _StepOf(corruption.schedule, num_steps)),
        ),
        denoiser,
        batch,
        rng,
        samples,
    )


@dataclass(frozen=True)
class _StepOf:
    """One of T equal steps from t to s; the sum over them is T times their mean.

    One token of a row is masked for certain, which `objectives.bound` explains: of n p masked
    ones on average, rows with k come k / (n p) times as often as they should.
    """

    schedule: Schedule
    num_steps: int
    whole = True

    def __call__(self, batch: Batch, u: Tensor, rng: Rng) -> Draw:
        place = (u * self.num_steps).floor().clamp_max(self.num_steps - 1)
        s, t = place / self.num_steps, (place + 1) / self.num_steps
        masked = (1 - self.schedule.alpha(t)) / (1 - self.schedule.alpha(torch.ones_like(t)))
        length, trainable = batch.tokens.shape[1], batch.trainable
        first = rng.fold(0).uniform(length).masked_fill(~trainable, 2.0).argmin(1, keepdim=True)
        noisy = (rng.uniform(length) >= 1 - masked[:, None]).scatter(1, first, True) & trainable
        often = noisy.sum(1).clamp_min(1) / (trainable.sum(1) * masked).clamp_min(1e-300)
        return Draw(noisy, self.num_steps * reveal_rate(self.schedule, t, s) / often, t)


@dataclass(frozen=True)
class _Equidistant:
    """The times of one of `samples` draws, with one random offset for each row or block."""

    number: int
    samples: int
    rng: Rng

    def __call__(self, slots: Tensor, rng: Rng) -> Tensor:
        offset = self.rng.fold(self.samples).fold(slots).uniform(1)[:, 0]
        return (self.number + offset) / self.samples


def _average(
    estimator: str,
    objective: Callable[[Times], Objective],
    denoiser: Trainable,
    batch: Batch,
    rng: Rng,
    samples: int,
) -> Likelihood:
    """Mean of an objective at `samples` equidistant times."""
    samples = COUNT.check("samples", samples)
    losses = [
        objective(_Equidistant(number, samples, rng))(denoiser, batch, rng.fold(number))
        for number in range(samples)
    ]
    return _mean(
        estimator,
        [loss.nll.double() for loss in losses],
        *_noise_in_order(torch.stack([loss.nll.double().sum(1) for loss in losses])),
        batch,
        sum(float(loss.correct) for loss in losses),
        sum(float(loss.corrupted) for loss in losses),
    )


def _noise_in_order(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Of the mean of draws [S, B] at times in order: standard error, degrees of freedom, [B] each.

    From the differences of neighbours: what the times themselves make of a draw is nearly the same
    in both, and spread out evenly adds nothing to the error of the mean. What is left of it makes
    the error too large, never too small. Neighbouring differences share a draw, so that of S - 1
    some two thirds are independent, and fewer where some times are noisier than others.
    """
    count = len(draws)
    if count == 1:
        unknown = torch.full_like(draws[0], math.nan)
        return unknown, unknown
    squares = draws.diff(dim=0).square()
    total, most = squares.sum(0), 2 * (count - 1) ** 2 / (3 * count - 4)
    freedom = 2 * total.square() / squares.square().sum(0)
    return (total / (2 * count * (count - 1))).sqrt(), freedom.nan_to_num(most).clamp(1, most)


# --- exact for one way of writing ---


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
    _check_masked("by_order", corruption)
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
    return _mean(
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
    _check_masked("by_decoder", corruption)
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
        _Retrace(step),
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
class _Retrace(Around):
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


def _mean(
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


def _check_masked(name: str, corruption: Corruption) -> None:
    if not corruption.absorbing:
        raise ConfigError(
            f"{name} is for masked diffusion, whose noisy positions are known; "
            f"for {type(corruption).__name__} use continuous"
        )
