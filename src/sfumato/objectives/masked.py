"""Masked diffusion: some tokens of a row are masked, and the network says which they were."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sfumato.arguments import TokenId, check_fields
from sfumato.errors import ConfigError
from sfumato.objectives.loss import per_token, reading
from sfumato.objectives.selection import Draw, ExactK, PairedSelection, Selection
from sfumato.objectives.times import Times
from sfumato.objectives.weights import BoundWeight, Weight
from sfumato.rng import Rng
from sfumato.types import Batch, Loss, Scorer, Trainable


@dataclass(frozen=True)
class MaskedDiffusion:
    """Masked diffusion: predict the masked tokens from the visible ones.

    MDLM (arXiv 2406.07524), MD4, RADD, LLaDA are choices of `times`, `selection` and `weight`.
    With `complementary`, each row is seen twice, the second time with the other positions masked,
    so that every token is predicted (Fast-dLLM v2, LLaDA2.0); `nll` has the rows twice, too.
    """

    mask_id: TokenId
    times: Times
    selection: Selection = field(default_factory=ExactK)
    weight: Weight = field(default_factory=BoundWeight)
    complementary: bool = False

    def __post_init__(self):
        check_fields(self)
        if self.complementary and not isinstance(self.selection, PairedSelection):
            raise ConfigError(
                f"complementary needs a selection with a complement, as ExactK or Bernoulli; "
                f"{type(self.selection).__name__} has none"
            )

    def __call__(self, denoiser: Trainable, batch: Batch, rng: Rng) -> Loss:
        batch, noise = self.noise(batch, rng)
        return masked_loss(reading(denoiser, batch), batch, noise, self)

    def noise(self, batch: Batch, rng: Rng) -> tuple[Batch, "Noise"]:
        """The rows that are scored, twice as many if `complementary`, and what masks them."""
        u = self.times(batch.slots, rng.fold(0))
        draw = self.selection(batch, u, rng.fold(1).fold(batch.slots))
        if isinstance(self.selection, PairedSelection) and self.complementary:
            other = self.selection.complement(batch, draw)
            batch = twice(batch)
            draw = Draw(*(torch.cat(pair) for pair in zip(draw, other, strict=True)))
        shape = draw.noisy.shape
        weight, bound = self.weight(draw, batch), draw.weight[:, None]
        return batch, Noise(draw.noisy, weight.expand(shape), bound.expand(shape), draw.t)


class Noise(NamedTuple):
    """What is masked, and what each masked token's cross-entropy is multiplied by."""

    noisy: Tensor  # [B, L] bool
    weight: Tensor  # [B, L] in the training loss
    bound: Tensor  # [B, L] in the bound
    t: Tensor  # [B], or [B, L]


def masked_loss(denoiser: Scorer, batch: Batch, noise: Noise, masked: MaskedDiffusion) -> Loss:
    noisy = noise.noisy
    value, nll, correct = denoiser.score(
        batch.tokens.masked_fill(noisy, masked.mask_id),
        noise.t.float(),
        noisy,
        batch.tokens[noisy],
        noise.weight[noisy].float(),
        segments=batch.segments,
    )
    integrand = torch.zeros(noisy.shape, device=nll.device)
    integrand[noisy] = noise.bound[noisy].float() * nll
    loss = per_token(value, integrand, batch.trainable.sum(), correct)
    return replace(loss, bounds=masked.selection.whole)


def twice(batch: Batch) -> Batch:
    return type(batch)(*(torch.cat((part, part)) for part in vars(batch).values()))
