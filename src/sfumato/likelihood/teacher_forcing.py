"""How a decoder would write texts that are known: the true tokens, put where a step rule decides.

`likelihood.by_decoder` is the same for rules that only `choose`. Here a rule may also go by chance
or by what it remembers, as long as it does not look at what was drawn.
"""

from collections import deque
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.decoding.loops import generate
from sfumato.decoding.page import blank
from sfumato.decoding.step import Around, Chooser, Prediction, Step
from sfumato.decoding.unmask import Ancestral, Klass, RandomOrder, spread
from sfumato.errors import ConfigError, DataError
from sfumato.noise.corruption import Corruption
from sfumato.rng import Rng
from sfumato.types import Batch, Canvas, Denoiser


def can_teacher_force(step: Step) -> bool:
    """Whether a rule decides where, and only then draws what: else no text has a likelihood."""
    return isinstance(step, Chooser | Klass | Ancestral | RandomOrder)


@torch.no_grad()
def teacher_forced(
    denoiser: Denoiser,
    corruption: Corruption,
    batch: Batch,
    step: Step,
    rng: Rng,  # one key a row
    *,
    num_steps: int | None = None,
    block: int | None = None,
    lookahead: bool = True,
) -> Tensor:
    """Nats of every row [B], float64, under the decoder `generate` is with the same arguments.

    Exact, for rules that go by the state and by what the model says of it (DUEL, arXiv 2603.01367).
    For rules of chance, of the order that was drawn: on average over draws a bound on -log p.
    """
    check_teacher_forced(corruption, step)
    if bool((batch.segments != batch.segments[:, :1]).any()):
        raise DataError("teacher_forced reads rows of one document each; cut them to one length")
    page = blank(corruption, batch.tokens, ~batch.trainable, rng)
    pages = generate(
        denoiser,
        replace(page, memory=truth_of(batch.tokens)),
        TeacherForced(step),
        rng,
        num_steps=num_steps,
        block=block,
        lookahead=lookahead,
        filters=(Truth(),),
    )
    return deque(pages, maxlen=1)[0].memory["nats"].sum(1)


@dataclass(frozen=True)
class TeacherForced(Around):
    """A rule whose tokens are the true ones, remembering how probable they were."""

    def __call__(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        after = self.step(canvas, seen, t, s, rng)
        decided = canvas.noisy & ~after.noisy
        own, truth = seen.logits[decided[seen.where]].double(), canvas.memory["truth"][decided]
        nll = own.logsumexp(-1) - own.gather(-1, truth[:, None])[:, 0]
        nats = torch.where(decided, spread(nll, decided, 0.0), canvas.memory["nats"])
        return replace(after, memory={**after.memory, "nats": nats})


@dataclass(frozen=True)
class Truth:
    """A filter that leaves the true token alone, where something is drawn."""

    sharpens = True

    def __call__(self, logits: Tensor, canvas: Canvas, where: Tensor) -> Tensor:
        truth = canvas.memory["truth"][where][:, None]
        return torch.full_like(logits, -torch.inf).scatter(-1, truth, 0.0)


def truth_of(tokens: Tensor) -> dict[str, Tensor]:
    return {
        "truth": tokens,
        "nats": torch.zeros(tokens.shape, dtype=torch.float64).to(tokens.device),
    }


def check_teacher_forced(corruption: Corruption, step: Step) -> None:
    if not corruption.absorbing:
        raise ConfigError(
            "only masked diffusion can be teacher-forced: other noise is revised until the "
            "last step"
        )
    if not can_teacher_force(step):
        raise ConfigError(
            f"{type(step).__name__} chooses or revises positions by the drawn tokens, so its texts "
            "have no likelihood; use a rule that decides where before it draws, as Threshold"
        )
