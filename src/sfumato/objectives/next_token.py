"""Next tokens, as an objective and as what comes before another one."""

from dataclasses import dataclass, replace

import torch

from sfumato.arguments import check_fields
from sfumato.denoisers.abilities import autoregressive
from sfumato.objectives.loss import per_token, reading
from sfumato.objectives.times import Slot
from sfumato.rng import Rng
from sfumato.types import Batch, Loss, Objective, Trainable


@dataclass(frozen=True)
class NextToken:
    """Autoregression: the exact negative log-likelihood, left to right.

    Give it `denoisers.full.autoregressive(model, mask_id)`, which undoes the shift.
    """

    def __call__(self, denoiser: Trainable, batch: Batch, rng: Rng) -> Loss:
        where = batch.trainable
        targets = batch.tokens[where]
        value, nll, correct = reading(denoiser, batch).score(
            batch.tokens,
            torch.zeros(len(batch.tokens), device=batch.tokens.device),
            where,
            targets,
            torch.ones(len(targets), device=batch.tokens.device),
            segments=batch.segments,
        )
        each = torch.zeros(where.shape, device=nll.device)
        each[where] = nll
        return per_token(value, each, where.sum(), correct)


@dataclass(frozen=True)
class CausalFirst:
    """Next tokens in the slots before `until`, then another objective, with the same weights.

    A masked model sits for long on a plateau where it predicts without context; a causal one leaves
    it at once, and what its layers have learnt by then carries over (docs/log.md has the figures).
    """

    then: Objective
    until: Slot
    __post_init__ = check_fields

    def __call__(self, denoiser: Trainable, batch: Batch, rng: Rng) -> Loss:
        if int(batch.slots[0]) < self.until:
            return replace(NextToken()(autoregressive(denoiser), batch, rng), bounds=False)
        return self.then(denoiser, batch, rng)
