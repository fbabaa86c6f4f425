"""Keys and values of text that the network has read.

Shapes: B rows, H heads, E head width, P positions read so far, L positions of one pass, C columns.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sfumato.models.attention import HIDDEN


class Known(NamedTuple):
    """What a pass sees."""

    positions: Tensor  # [B, P]
    segments: Tensor | None  # [B, P]
    own: Tensor | None  # [B, L] segments of the pass itself


class Layer(Protocol):
    """One layer of what has been read."""

    def join(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values [B, H, P, E], with a pass's own [B, H, L, E] among them."""
        ...


class Past(Protocol):
    """Text before that of a pass, as the network wants it."""

    def next_positions(self, length: int) -> Tensor:
        """Positions [B, L] of the text that follows."""
        ...

    def span(self, length: int) -> int:
        """How many positions see each other in a pass over `length` more."""
        ...

    def known(self, positions: Tensor, segments: Tensor | None) -> Known:
        """Of all keys of a pass at `positions` [B, L], its own among them."""
        ...

    def layer(self, number: int) -> Layer: ...


class Before(NamedTuple):
    """Keys and values of one layer; a value."""

    keys: Tensor  # [B, H, P, E]
    values: Tensor

    def join(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return torch.cat((self.keys, keys), 2), torch.cat((self.values, values), 2)


@dataclass(frozen=True)
class KeyValues:
    """A value: extending it makes a new one. Gradients pass through it."""

    layers: tuple[Before, ...]
    positions: Tensor  # [B, P]
    segments: Tensor | None  # [B, P]

    @property
    def length(self) -> int:
        return self.positions.shape[1]

    def extend(self, new: "KeyValues") -> "KeyValues":
        """These, then the new ones."""
        layers = tuple(Before(*a.join(*b)) for a, b in zip(self.layers, new.layers, strict=True))
        segments = None
        if self.segments is not None and new.segments is not None:
            segments = torch.cat((self.segments, new.segments), 1)
        return KeyValues(layers, torch.cat((self.positions, new.positions), 1), segments)

    def last(self, number: int) -> "KeyValues":
        """Those of the last positions only."""
        start = max(0, self.length - number)
        layers = tuple(Before(k[:, :, start:], v[:, :, start:]) for k, v in self.layers)
        segments = None if self.segments is None else self.segments[:, start:]
        return KeyValues(layers, self.positions[:, start:], segments)

    def without(self, part: slice) -> "KeyValues":
        """Those of all positions but a part."""
        kept = torch.ones(self.length, dtype=torch.bool, device=self.positions.device)
        kept[part] = False
        layers = tuple(Before(k[:, :, kept], v[:, :, kept]) for k, v in self.layers)
        segments = None if self.segments is None else self.segments[:, kept]
        return KeyValues(layers, self.positions[:, kept], segments)

    def next_positions(self, length: int) -> Tensor:
        place = torch.arange(length, device=self.positions.device)
        last = self.positions[:, -1:] if self.length else self.positions.new_full((1, 1), -1)
        return last + 1 + place

    def span(self, length: int) -> int:
        return self.length + length

    def known(self, positions: Tensor, segments: Tensor | None) -> Known:
        joined = torch.cat((self.positions, positions), 1)
        if self.segments is None and segments is None:
            return Known(joined, None, None)
        before = torch.zeros_like(self.positions) if self.segments is None else self.segments
        if segments is None:  # the last document goes on
            segments = before[:, -1:].clamp_min(0).expand(positions.shape)
        return Known(joined, torch.cat((before, segments), 1), segments)

    def layer(self, number: int) -> Layer:
        return self.layers[number]


@dataclass
class Store:
    """Room for C positions of every row, written in place: passes copy nothing.

    Position p of a row is in column p modulo C, so a text longer than C forgets its oldest ones.
    """

    layers: list[tuple[Tensor, Tensor]]  # each [B, C, H, E], made when the first keys come
    positions: Tensor  # [B, C] what each column holds, -1 where nothing is
    tip: Tensor | None = None  # [B] how far the text is read; that very tensor marks its reader

    @classmethod
    def empty(cls, rows: int, columns: int, device: torch.device) -> "Store":
        return cls([], torch.full((rows, columns), -1, dtype=torch.int64, device=device))

    def furnish(self, layers: int, heads: int, width: int, dtype: torch.dtype) -> None:
        """Make room for the first `layers` layers."""
        while len(self.layers) < layers:
            with torch.inference_mode(False):  # kept beyond the pass that asks for it
                keys = torch.zeros(
                    (*self.positions.shape, heads, width),
                    dtype=dtype,
                    device=self.positions.device,
                )
                self.layers.append((keys, torch.zeros_like(keys)))

    def copy(self, lengths: Tensor) -> KeyValues | None:
        """What has been read, as a value."""
        used = min(int(lengths.max()), self.positions.shape[1])
        if not used:
            return None
        layers = [
            Before(k[:, :used].transpose(1, 2), v[:, :used].transpose(1, 2)) for k, v in self.layers
        ]
        kept = self.positions[:, :used]
        hidden = (kept < 0) | (kept >= lengths[:, None])
        return KeyValues(tuple(layers), kept, torch.zeros_like(kept).masked_fill(hidden, HIDDEN))

    def select(self, rows: Tensor) -> "Store":
        """A copy of some rows, [n] numbers or [B] bool."""
        return Store([(k[rows], v[rows]) for k, v in self.layers], self.positions[rows])


@dataclass
class Reading:
    """A store in one pass, over positions that follow `lengths` [B] positions of text.

    The pass leaves its keys and values in the store. The lengths of the next reading say whether
    they stay or are written over.
    """

    store: Store
    lengths: Tensor  # [B]

    def next_positions(self, length: int) -> Tensor:
        return self.lengths[:, None] + torch.arange(length, device=self.lengths.device)

    def span(self, length: int) -> int:
        return min(int(self.lengths.max()) + length, self.store.positions.shape[1])

    def known(self, positions: Tensor, segments: Tensor | None) -> Known:
        """Columns that the text has not reached, or has left, are hidden."""
        kept = self.store.positions
        (rows, length), room, starts = positions.shape, kept.shape[1], self.lengths.tolist()
        stop = max(starts) + length
        self.used = min(stop, room)
        if segments is None and stop <= room and min(starts) == max(starts):
            self.place = (slice(None), slice(starts[0], stop))
            kept[self.place] = positions
            return Known(kept[:, :stop], None, None)  # everything is there, in its order
        self.place = (torch.arange(rows, device=kept.device)[:, None], positions % room)
        kept[self.place] = positions
        kept = kept[:, : self.used]
        hidden = (kept < 0) | (kept > positions[:, -1:])
        own = torch.zeros_like(positions) if segments is None else segments
        return Known(kept, torch.zeros_like(kept).masked_fill(hidden, HIDDEN), own)

    def layer(self, number: int) -> Layer:
        return _Columns(self, number)


@dataclass(frozen=True)
class _Columns:
    reading: Reading
    number: int

    def join(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        reading, layers = self.reading, self.reading.store.layers
        reading.store.furnish(self.number + 1, keys.shape[1], keys.shape[3], keys.dtype)
        joined = []
        for kept, new in zip(layers[self.number], (keys, values), strict=True):
            kept[reading.place] = new.transpose(1, 2)
            joined.append(kept[:, : reading.used].transpose(1, 2))
        return joined[0], joined[1]
