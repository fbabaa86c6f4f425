"""Which positions see which: an attention pattern is a value.

Every pattern is intersected with the segments: a position sees only positions of its own document,
so hidden positions (segment -1, padding) are seen by hidden ones only.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sfumato.errors import ConfigError, near

HIDDEN = -1  # the segment of padding


class Attend(Protocol):
    """A pattern over positions, not over indices: left padding and caches do not change it."""

    def allowed(self, query: Tensor, key: Tensor) -> Tensor | None:
        """Positions [B, Q] and [B, K] -> [B, Q, K] bool, True where seen; None: all seen."""
        ...


@dataclass(frozen=True)
class Bidirectional:
    """Every position sees every position."""

    def allowed(self, query: Tensor, key: Tensor) -> Tensor | None:
        return None


@dataclass(frozen=True)
class Causal:
    """Every position sees itself and earlier ones."""

    def allowed(self, query: Tensor, key: Tensor) -> Tensor | None:
        return key[:, None, :] <= query[:, :, None]


@dataclass(frozen=True)
class BlockCausal:
    """Every position sees its own block of `size` positions and earlier blocks (BD3-LM), of which
    only the last ones where a number of blocks, its own among them, is given."""

    size: int
    blocks: int | None = None

    def __post_init__(self):
        if self.size < 1:
            raise ConfigError(f"block size must be at least 1, got {self.size}")

    def allowed(self, query: Tensor, key: Tensor) -> Tensor | None:
        own, others = query[:, :, None] // self.size, key[:, None, :] // self.size
        seen = others <= own
        return seen if self.blocks is None else seen & (others > own - self.blocks)


@dataclass(frozen=True)
class NoisyBlocks:
    """Noisy blocks beside the clean text: L positions see all clean ones, then L noisy ones.

    A noisy position sees its own block, and the clean text of the blocks before it (BD3-LM, arXiv
    2503.09573, section 3.2).
    """

    size: int

    def allowed(self, query: Tensor, key: Tensor) -> Tensor | None:
        own, length = query[:, :, None] // self.size, key.shape[1] - query.shape[1]
        clean, noisy = key[:, None, :length] // self.size, key[:, None, length:] // self.size
        return torch.cat((clean < own, noisy == own), -1)


ATTENDS = {"full": Bidirectional, "causal": Causal, "block_causal": BlockCausal}


def attend_from(name: str, block_size: int | None = None) -> Attend:
    """The pattern a model's config names."""
    if name not in ATTENDS:
        raise ConfigError(f"unknown attention pattern '{name}'{near(name, ATTENDS)}")
    if name == "block_causal":
        if block_size is None:
            raise ConfigError("attention 'block_causal' needs block_size; set it, for instance 16")
        return BlockCausal(block_size)
    return ATTENDS[name]()


def attention_allowed(
    attend: Attend,
    query_positions: Tensor,
    key_positions: Tensor,
    query_segments: Tensor | None = None,
    key_segments: Tensor | None = None,
) -> Tensor | None:
    """[B, 1, Q, K] bool for scaled dot product attention, or None where everything is seen.

    Hidden positions see each other, so that their softmax is defined; nobody reads them.
    """
    allowed = attend.allowed(query_positions, key_positions)
    if query_segments is not None and key_segments is not None:
        same = query_segments[:, :, None] == key_segments[:, None, :]
        allowed = same if allowed is None else allowed & same
    return None if allowed is None else allowed[:, None]


def positions_from(segments: Tensor) -> Tensor:
    """Positions [B, L] that count from 0 in every document, so packing and padding shift nothing.

    Hidden ones are at -1: what follows a row of padding alone starts at 0, too.
    """
    starts = torch.ones_like(segments, dtype=torch.bool)
    starts[:, 1:] = segments[:, 1:] != segments[:, :-1]
    place = row_positions(segments.shape[0], segments.shape[1], segments.device)
    counted = place - torch.where(starts, place, 0).cummax(1).values
    return counted.masked_fill(segments == HIDDEN, -1)


def row_positions(batch: int, length: int, device: torch.device) -> Tensor:
    """Positions 0..length-1 for every row, [B, L]."""
    return torch.arange(length, device=device)[None].expand(batch, length)
