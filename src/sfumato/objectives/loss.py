"""What all objectives do with a batch and with what they have scored."""

import torch
from torch import Tensor

from sfumato.denoisers.abilities import conditioned
from sfumato.types import Batch, Loss, PairBatch, Trainable


def reading(denoiser: Trainable, batch: Batch) -> Trainable:
    """The denoiser that reads the sources of a batch, if it has any."""
    return conditioned(denoiser, batch.source) if isinstance(batch, PairBatch) else denoiser


def per_token(value: Tensor, nll: Tensor, count: Tensor, correct: Tensor) -> Loss:
    """Everything per trainable token; rows without one give 0."""
    corrupted = torch.tensor(correct.numel(), device=count.device)
    return Loss(value / count.clamp_min(1), nll, count, correct.sum(), corrupted)
