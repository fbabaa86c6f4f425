"""Positions that are alike: what is computed of one counts for all.

The first block projects embeddings that depend on nothing but the token, and half of a training
batch is the same mask: distinct tokens are projected once and their rows given to all positions.

Shapes: N positions, U distinct tokens, D width.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class SharedRows(NamedTuple):
    """Distinct rows [U, D], and which of them every position [N] has."""

    rows: Tensor
    owner: Tensor

    def spread(self, rows: Tensor) -> Tensor:
        """What was made of the rows [U, ...], at every position [N, ...]."""
        return _Spread.apply(rows, self.owner)  # type: ignore[return-value]


class _Spread(torch.autograd.Function):
    """Taking rows, with gradients summed in float32: many positions share a row."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.number = len(rows)
        return rows[index]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (index,) = ctx.saved_tensors
        exact = torch.promote_types(grad.dtype, torch.float32)
        total = torch.zeros((ctx.number, *grad.shape[1:]), dtype=exact, device=grad.device)
        return total.index_add_(0, index, grad.to(exact)).to(grad.dtype), None
