"""Rows of a fixed length, cut out of prepared data without copying it."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from sfumato.arguments import MOST, TEXT, Kind
from sfumato.data.pairs import SOURCES, TARGETS
from sfumato.data.prepared import Prepared
from sfumato.data.prepared_pairs import PreparedPairs, holds_pairs
from sfumato.errors import ConfigError, near
from sfumato.types import ABSENT

LAYOUTS = ("packed", "padded")
LENGTH = Kind(Annotated[int, Field(ge=1, le=MOST, title="at least 1 token")])


class Rows:
    """Rows of `length` tokens: `rows[i]` is one, `rows.batch(indices)` many at once.

    packed: all documents one after the other, cut every `length` tokens; `segments` tells them
        apart. Only the last row has filling, which is not trainable.
    padded: every document begins a row, and a longer one goes on in the next. The rest of a row
        is filled with pad (eos if there is none), which is trainable: so a model learns where
        texts end.

    A map-style data set: `torch.utils.data.DataLoader` takes it as it is, workers included.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        *,
        length: int,
        layout: Literal["packed", "padded"] = "packed",
    ):
        length = LENGTH.check("length", length)
        if TEXT.check("layout", layout) not in LAYOUTS:
            raise ConfigError(f"no layout {layout!r}{near(layout, LAYOUTS)}")
        prepared = Prepared.open(folder)
        self.tokens, self.ends = prepared.split(split)
        counts = prepared.facts["splits"][split]
        self.args = {"folder": Path(folder), "split": split, "length": length, "layout": layout}
        self.length, self.layout = length, layout
        self.filler: int = prepared.facts["tokenizer"]["filler"]
        self.num_tokens: int = counts["tokens"]
        self.num_bytes: int = counts["bytes"]  # of the text, in UTF-8
        self.kept_bytes: int = counts["kept_bytes"]  # of them, what the tokens stand for
        if layout == "packed":
            self.row_ends = None
            self.num_rows = -(-self.num_tokens // length)
        else:
            lengths = np.diff(self.ends, prepend=np.int64(0))
            self.row_ends = np.cumsum(-(-lengths // length))  # [num_documents] in rows
            self.num_rows = int(self.row_ends[-1])

    @property
    def num_trainable(self) -> int:
        """Trainable tokens of all rows together."""
        return self.num_tokens if self.row_ends is None else self.num_rows * self.length

    def bits_per_byte(self, nats: float) -> float:
        """Turn a loss in nats per trainable token, over all rows, into bits per byte of text."""
        return nats * self.num_trainable / self.num_bytes / math.log(2)

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One row: tokens [L] int64, trainable [L] bool, segments [L] int64, row int64."""
        return {name: values[0] for name, values in self.batch([index]).items()}

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Rows at once: tokens [B, L] int64, trainable [B, L] bool, segments [B, L] int64, row [B].

        Segments count the documents of a row from 0; filling is a segment of its own where it is
        not trainable.
        """
        row = np.asarray(indices, np.int64)
        if len(row) and not (-self.num_rows <= row.min() and row.max() < self.num_rows):
            raise IndexError(f"rows {indices} asked for, but there are {self.num_rows}")
        row = row % self.num_rows
        starts, stops = self._spans(row)
        positions = starts[:, None] + np.arange(self.length)
        text = positions < stops[:, None]
        tokens = self.tokens[np.minimum(positions, self.num_tokens - 1)]
        if self.row_ends is None:
            trainable = text
            segments = np.searchsorted(self.ends, positions, side="right")
            segments = segments - segments[:, :1]
        else:
            trainable = np.ones_like(text)
            segments = np.zeros_like(positions)
        return {
            "tokens": np.where(text, tokens, self.filler).astype(np.int64),
            "trainable": trainable,
            "segments": segments,
            "row": row,
        }

    def _spans(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where in the token file each row starts, and where its text ends at the latest."""
        if self.row_ends is None:
            return row * self.length, np.full_like(row, self.num_tokens)
        document = np.searchsorted(self.row_ends, row, side="right")
        later = document > 0
        begin = np.where(later, self.ends[document - 1], 0)
        first_row = np.where(later, self.row_ends[document - 1], 0)
        return begin + (row - first_row) * self.length, self.ends[document]

    def __reduce__(self) -> tuple[Any, ...]:
        # A pickled memory map would carry the whole file.
        return functools.partial(Rows, **self.args), ()

    def documents(self, row: np.ndarray) -> np.ndarray:
        """The document [B] that each row [B] begins with; segments count on from it."""
        if self.row_ends is None:
            return np.searchsorted(self.ends, row * self.length, side="right")
        return np.searchsorted(self.row_ends, row, side="right")


class PairRows:
    """Padded rows of the targets of pairs, each with its source; used as `Rows` are.

    A target that goes on in a second row has its source there too.
    """

    def __init__(
        self,
        folder: str | Path,
        split: str = "train",
        *,
        length: int,
        layout: Literal["packed", "padded"] = "padded",
    ):
        if layout != "padded":
            raise ConfigError(
                f"pairs need a row of their own each, got layout {layout!r}; use padded "
                "(data.layout=padded in a run)"
            )
        PreparedPairs.open(folder)
        self.args = {"folder": Path(folder), "split": split, "length": length}
        self.rows = Rows(Path(folder) / TARGETS, split, length=length, layout="padded")
        self.num_bytes, self.kept_bytes = self.rows.num_bytes, self.rows.kept_bytes
        self.tokens, self.ends = Prepared.open(Path(folder) / SOURCES).split(split)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One row, as `Rows` gives it, and its source [S] int64."""
        return {name: values[0] for name, values in self.batch([index]).items()}

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Rows at once, as `Rows` gives them, and their sources [B, S] int64.

        `ABSENT` fills them on the left, so that they are as wide as the longest among them.
        """
        taken = self.rows.batch(indices)
        document = self.rows.documents(taken["row"])
        stop = self.ends[document]
        start = np.where(document > 0, self.ends[document - 1], 0)
        width = int((stop - start).max(initial=0))
        positions = stop[:, None] + np.arange(-width, 0)
        there = positions >= start[:, None]
        tokens = self.tokens[np.where(there, positions, 0)].astype(np.int64)
        return {**taken, "source": np.where(there, tokens, ABSENT)}

    def documents(self, row: np.ndarray) -> np.ndarray:
        """The pair [B] of each row [B]."""
        return self.rows.documents(row)

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(PairRows, **self.args), ()


def open_rows(
    folder: str | Path, split: str, *, length: int, layout: Literal["packed", "padded"]
) -> Rows | PairRows:
    """Rows of prepared text, or of pairs."""
    kind = PairRows if holds_pairs(folder) else Rows
    return kind(folder, split, length=length, layout=layout)
