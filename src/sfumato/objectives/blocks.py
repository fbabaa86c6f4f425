"""Block diffusion: masked diffusion inside a block, given the clean text before it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.arguments import Count, check_fields
from sfumato.denoisers.abilities import two_stream
from sfumato.errors import ConfigError
from sfumato.models.attention import HIDDEN, positions_from
from sfumato.objectives.masked import MaskedDiffusion, Noise, masked_loss, twice
from sfumato.rng import Rng
from sfumato.types import Batch, Loss, PairBatch, Trainable


@dataclass(frozen=True)
class BlockDiffusion:
    """A block is a row of `masked` that sees those before it (BD3-LM, arXiv 2503.09573, eq. 8).

    Blocks of `size` tokens count from the start of each document, and the last may be shorter. Of
    size 1, the bound is the exact likelihood from left to right; of the size of the row, this is
    `masked` itself. `masked.times` should spread over rows x blocks; a row of several documents may
    have more than length / size blocks, which then share the times of the next rows'.
    """

    size: Count
    masked: MaskedDiffusion

    def __post_init__(self):
        check_fields(self, size="block size")

    def __call__(self, denoiser: Trainable, batch: Batch, rng: Rng) -> Loss:
        if isinstance(batch, PairBatch):
            raise ConfigError("block diffusion does not read sources; use masked diffusion")
        blocks, at = cut(batch, self.size)
        scored, noise = self.masked.noise(blocks, rng)
        if len(scored.tokens) > len(blocks.tokens):
            batch, at = (
                twice(batch),
                torch.cat((at, torch.where(at < 0, -1, at + batch.tokens.numel()))),
            )
        inside = at >= 0

        def spread(values: Tensor) -> Tensor:
            full = values.new_zeros(batch.tokens.numel())
            full[at[inside]] = values.expand(at.shape)[inside]
            return full.view(batch.tokens.shape)

        noise = Noise(*map(spread, (noise.noisy, noise.weight, noise.bound, noise.t[:, None])))
        stream = two_stream(denoiser, batch.tokens, self.size)
        return masked_loss(stream, batch, noise, self.masked)


def cut(batch: Batch, size: int) -> tuple[Batch, Tensor]:
    """Blocks of a batch as rows [N, size], and where they are in it: [N, size] of B * L, or -1.

    The slot of block j is slot * ceil(L / size) + j.
    """
    rows, length = batch.tokens.shape
    positions = positions_from(batch.segments)
    visible = batch.segments != HIDDEN
    number = ((positions % size == 0) & visible).cumsum(1) - 1
    counts = number[:, -1:] + 1
    block = (number + counts.cumsum(0) - counts)[visible]
    at = torch.full((int(counts.sum()), size), -1, device=block.device)
    at[block, (positions % size)[visible]] = torch.arange(rows * length, device=block.device)[
        visible.flatten()
    ]
    inside = at >= 0
    slots = torch.zeros(len(at), dtype=torch.int64, device=block.device)
    slots[block] = (batch.slots[:, None] * -(-length // size) + number)[visible]
    return Batch(
        batch.tokens.flatten()[at],
        batch.trainable.flatten()[at] & inside,
        torch.where(inside, 0, HIDDEN),
        slots,
    ), at
