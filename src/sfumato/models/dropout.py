"""Dropout that is a pure function of a key at each position.

torch's own draws from one generator for the whole batch, so that what a row loses depends on the
rows beside it. Here it depends on the run's seed, the row's slot and the position alone: processes,
accumulation and workers change nothing.

Shapes: B rows, L positions, N positions of any rows, D width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.rng import Rng


def position_keys(rng: Rng, positions: Tensor) -> Tensor:
    """A key for every position [B, L] of every document, [B * L]; rng has one key a row.

    Rows that come again behind the others, as those of complementary masks do, draw anew. Padding
    on the left changes nothing.
    """
    rows, length = positions.shape
    copies = rows // len(rng.keys)
    assert copies * len(rng.keys) == rows, "rows come again all together"
    number = torch.arange(copies, device=positions.device).repeat_interleave(len(rng.keys))
    each = Rng(rng.keys.repeat(copies)).fold(number)
    documents = (positions == 0).cumsum(1)
    keys = Rng(each.keys.repeat_interleave(length)).fold(documents.flatten())
    return keys.fold(positions.flatten()).keys


def dropout(x: Tensor, share: float, training: bool, keys: Tensor | None) -> Tensor:
    """x [N, D] with a share of it set to 0 and the rest scaled up; keys [N], or torch's generator.

    The share is rounded to a multiple of 2 ** -16, and the scale is that of the rounded one.
    """
    if not training or not share:
        return x
    if keys is None:
        return F.dropout(x, share)
    dropped = min(round(share * 2**16), 2**16 - 1)
    kept = Rng(keys).words(x.shape[-1]) >= dropped - 2**15
    return torch.where(kept, x * (2**16 / (2**16 - dropped)), 0.0)
