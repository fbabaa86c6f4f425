"""Which rows a step reads: a pure function of the seed and the step.

Row after row of a run has a slot, 0, 1, 2, ...: one shuffled pass over the data after another.
Step s reads slots s G to (s + 1) G - 1, G the global batch size. A batch may span two passes, so
no row is ever dropped, and data smaller than a batch work too.
"""

import signal
from collections.abc import Iterator
from types import FrameType
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sfumato.errors import ConfigError
from sfumato.rng import Rng
from sfumato.train.world import World
from sfumato.types import Batch, PairBatch


class Source(Protocol):
    """Rows by number, as `sfumato.data.Rows` has them."""

    def __len__(self) -> int: ...
    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]: ...


class Order:
    """The row in each slot."""

    def __init__(self, num_rows: int, seed: int):
        self.num_rows = num_rows
        self.seed = seed
        self._passes: dict[int, np.ndarray] = {}

    def rows(self, slots: np.ndarray) -> np.ndarray:
        """[B] slots -> [B] row numbers."""
        number, place = np.divmod(slots, self.num_rows)
        rows = np.empty_like(slots)
        for each in np.unique(number).tolist():
            inside = number == each
            rows[inside] = self._shuffled(each)[place[inside]]
        return rows

    def _shuffled(self, number: int) -> np.ndarray:
        if number not in self._passes:
            if len(self._passes) > 1:
                self._passes.pop(min(self._passes))
            # slots, which seed the corruption, are never negative: no stream is used twice
            rng = Rng.for_rows(self.seed, torch.tensor([-1 - number]))
            self._passes[number] = rng.uniform(self.num_rows)[0].argsort().numpy()
        return self._passes[number]


class MicroBatches(Dataset):
    """Micro-batch m of the run, as this process sees it: part m % A of step m // A."""

    def __init__(self, source: Source, order: Order, batch_size: int, parts: int, world: World):
        pieces = parts * world.size
        if batch_size % pieces:
            raise ConfigError(
                f"train.batch_size {batch_size} must be a multiple of {pieces}: "
                f"gradient_accumulation_steps {parts} times {world.size} processes"
            )
        self.source, self.order = source, order
        self.batch_size, self.parts = batch_size, parts
        self.rank, self.pieces = world.rank, pieces
        self.rows = batch_size // pieces  # in a micro-batch

    def __getitem__(self, number: int) -> Batch:
        step, part = divmod(number, self.parts)
        piece = part * (self.pieces // self.parts) + self.rank
        start = step * self.batch_size + piece * self.rows
        slots = np.arange(start, start + self.rows)
        return as_batch(self.source.batch(self.order.rows(slots)), slots)

    def steps(self, first: int, last: int, num_workers: int) -> Iterator[list[Batch]]:
        """The micro-batches of each step from `first` to `last` - 1."""
        numbers = range(first * self.parts, last * self.parts)
        # a generator of its own: the loader would draw from the global one
        loader = iter(
            DataLoader(
                self,
                batch_size=None,
                sampler=numbers,  # type: ignore[arg-type]
                num_workers=num_workers,
                worker_init_fn=_outlive_signals,
                generator=torch.Generator(),
            )
        )
        for _ in range(first, last):
            yield [next(loader) for _ in range(self.parts)]


def _outlive_signals(worker: int) -> None:
    """Ctrl-C and a scheduler's notice reach data workers too, whose rows the last step needs."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_in_a_minute)


def _end_in_a_minute(number: int, frame: FrameType | None) -> None:
    del number, frame
    signal.alarm(60)


def as_batch(arrays: dict[str, np.ndarray], slots: np.ndarray) -> Batch:
    """Arrays of rows as tensors, with the slots that seed their corruption."""
    kind, names = Batch, ["tokens", "trainable", "segments"]
    if "source" in arrays:
        kind, names = PairBatch, [*names, "source"]
    columns = {name: torch.from_numpy(arrays[name]) for name in names}
    return kind(**columns, slots=torch.from_numpy(slots))
