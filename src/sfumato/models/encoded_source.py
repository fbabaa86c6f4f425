"""Text that another text is written from, as the blocks of a network read it.

Shapes: B rows, S source positions, H heads, E head width.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

Layer = tuple[Tensor, Tensor, Tensor]  # keys and values [B, H, S, E], bias [B, 1, 1, S]


@dataclass(frozen=True)
class Source:
    """Keys and values of an encoded source, for every block; made once, read at every step.

    A row without a source has values of 0: it gets nothing, exactly as if nobody had asked.
    """

    layers: tuple[Layer, ...]

    def rows(self, rows: Tensor) -> "Source":
        """Some rows [N] alone."""
        return Source(tuple((k[rows], v[rows], bias[rows]) for k, v, bias in self.layers))

    def dropped(self) -> "Source":
        """The same with no row's source there; the encoder does not run for that."""
        return Source(tuple((k, torch.zeros_like(v), bias) for k, v, bias in self.layers))

    def beside(self, other: "Source") -> "Source":
        """These rows, then those of another one of the same width."""
        pairs = zip(self.layers, other.layers, strict=True)
        together = (tuple(map(torch.cat, zip(one, two, strict=True))) for one, two in pairs)
        return replace(self, layers=tuple(together))  # type: ignore[arg-type]
