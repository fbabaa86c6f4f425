"""How much each masked token weighs in the training loss."""

from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from sfumato.arguments import check_fields
from sfumato.objectives.selection import Draw
from sfumato.types import Batch


@runtime_checkable
class Weight(Protocol):
    def __call__(self, draw: Draw, batch: Batch) -> Tensor:
        """[B, L], or [B, 1] where all masked tokens of a row weigh the same."""
        ...


@dataclass(frozen=True)
class BoundWeight:
    """The bound itself."""

    def __call__(self, draw: Draw, batch: Batch) -> Tensor:
        return draw.weight[:, None]


@dataclass(frozen=True)
class ConstantWeight:
    """1 for every masked token: seed of many first recipes, not a likelihood."""

    def __call__(self, draw: Draw, batch: Batch) -> Tensor:
        return torch.ones_like(draw.weight)[:, None]


@dataclass(frozen=True)
class ClippedWeight:
    """The bound's weight, at most `limit`: nearly clean rows shout less."""

    limit: Annotated[float, Field(gt=0, description="use 4")] = 4.0

    def __post_init__(self):
        check_fields(self, "weight {}")

    def __call__(self, draw: Draw, batch: Batch) -> Tensor:
        return draw.weight.clamp_max(self.limit)[:, None]


@dataclass(frozen=True)
class Cart:
    """More for tokens with visible neighbours: half the sum over visible i of
    p (1 - p) ** (|l - i| - 1) (Dream's CART, arXiv 2508.15487)."""

    p: Annotated[float, Field(gt=0, lt=1, title="between 0 and 1", description="use 0.3")] = 0.3

    def __post_init__(self):
        check_fields(self, "CART {}")

    def __call__(self, draw: Draw, batch: Batch) -> Tensor:
        place = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        apart = (place[:, None] - place[None]).abs()
        kernel = torch.where(apart > 0, self.p * (1 - self.p) ** (apart - 1).clamp_min(0), 0.0)
        same = batch.segments[:, :, None] == batch.segments[:, None, :]
        return 0.5 * torch.einsum("li,bli,bi->bl", kernel, same.float(), (~draw.noisy).float())


WEIGHTS = {
    "bound": BoundWeight,
    "constant": ConstantWeight,
    "clipped": ClippedWeight,
    "cart": Cart,
}
