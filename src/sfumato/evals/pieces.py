"""Held-out text as calibration reads it: one piece of each text, drawn at random.

A model of blocks reads whole texts, all blocks at once. A model of full attention reads a window of
each text: true text on its left, noise on its right, so that a piece costs as many passes as the
window has positions and not as many as the text.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.data.prepared import JOURNAL, PREPARED, Prepared
from sfumato.data.prepared_pairs import holds_pairs
from sfumato.data.sources import Source
from sfumato.errors import DataError
from sfumato.evals.settings import Grid, Setting
from sfumato.likelihood.block_teacher_forcing import TeacherForcedBlocks
from sfumato.likelihood.remembered import Remembered
from sfumato.likelihood.teacher_forcing import teacher_forced
from sfumato.lm.model import DiffusionLM
from sfumato.lm.pages import template
from sfumato.rng import Rng
from sfumato.types import Batch

READ = 16  # of a source that is not prepared: so many times the texts wanted are read, then drawn


@dataclass(frozen=True)
class Piece:
    """The stretch start:stop of a text's positions; what follows the tokens is filling."""

    tokens: tuple[int, ...]
    start: int
    stop: int
    count: int  # tokens of the text in it that are not given


def draw_pieces(
    lm: DiffusionLM, grid: Grid, data: str | Path | Source, rows: int, seed: int
) -> tuple[list[Piece], dict[str, Any]]:
    """Pieces of at most `rows` held-out texts in random order, and what they were drawn from."""
    documents, name = _documents(lm, data, rows)
    if len(documents) < rows:  # of long texts more than their beginnings
        documents = _stretches(documents, grid.canvas)
        name = {**name, "stretches": len(documents)}
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(documents), generator=draw).tolist()
    found, short = [], 0
    for place in order:
        piece = _piece(lm, grid, documents[place], draw)
        if piece is None:
            short += 1
        else:
            found.append(piece)
        if len(found) == rows:
            break
    if not found:
        raise DataError(
            f"all {len(documents)} texts are shorter than a block of {grid.window} tokens; give "
            "longer ones"
        )
    return found, {**name, "too_short": short}


def _stretches(documents: Sequence[Sequence[int]], canvas: int) -> Sequence[Sequence[int]]:
    """Documents cut at every canvas, as they go on in further rows in training."""
    return [
        document[start : start + canvas]
        for document in documents
        for start in range(0, len(document), canvas)
    ]


def _documents(
    lm: DiffusionLM, data: str | Path | Source, rows: int
) -> tuple[Sequence[Sequence[int]], dict[str, Any]]:
    source = data if isinstance(data, Source) else Source(str(data))
    folder = Path(source.name).expanduser()
    if holds_pairs(folder):
        raise DataError("calibrate is for models that write from nothing; give texts, not pairs")
    if (folder / PREPARED).exists() or (folder / JOURNAL).exists():
        prepared = Prepared.open(folder, lm.tokenizer)
        split = prepared.split("validation")
        name = {"folder": str(folder), "split": "validation", "fingerprint": prepared.fingerprint}
        return _Documents(split.tokens, split.ends), name
    limit = min(READ * rows, source.limit or sys.maxsize)
    texts = list(replace(source, limit=limit).documents())
    if not texts:
        raise DataError(f"{source.name} holds no text to calibrate on")
    wrapped = [[*lm.prompts.opening(ids), lm.special.eos] for ids in lm.encode(texts)]
    return wrapped, {**asdict(source), "documents": len(texts)}


@dataclass(frozen=True)
class _Documents(Sequence[Sequence[int]]):
    """Those of a prepared split."""

    tokens: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, place: int) -> Sequence[int]:  # type: ignore[override]
        start = int(self.ends[place - 1]) if place else 0
        return self.tokens[start : int(self.ends[place])].astype(np.int64).tolist()


def _piece(
    lm: DiffusionLM, grid: Grid, document: Sequence[int], draw: torch.Generator
) -> Piece | None:
    """Whole blocks of a text; in the padded layout the last one ends in filling."""
    ids = tuple(document[: grid.canvas])
    round_up = lm.options.layout == "padded"
    whole = -(-len(ids) // grid.window) if round_up else len(ids) // grid.window
    if not whole:
        return None
    first, last = 0, whole
    if not lm.block_size:
        first = int(torch.randint(whole, (), generator=draw))
        last = first + 1
    start, stop = first * grid.window, last * grid.window
    given = start == 0 and lm.special.bos is not None and ids[0] == lm.special.bos
    count = min(len(ids), stop) - start - given
    return Piece(ids, start, stop, count) if count > 0 else None


@torch.no_grad()
def score(
    lm: DiffusionLM,
    grid: Grid,
    settings: Sequence[Setting],
    pieces: Sequence[Piece],  # that start at one place
    numbers: Sequence[int],  # of each piece: its own draws follow from it, and from the seed
    seed: int,
) -> Iterator[Tensor]:
    """Nats of every piece [B] under each setting's decoder."""
    start, stop = pieces[0].start, max(piece.stop for piece in pieces)
    tokens, _ = template([p.tokens[:stop] for p in pieces], stop, lm.special.filler)
    trainable = torch.zeros_like(tokens, dtype=torch.bool)
    for row, piece in enumerate(pieces):
        trainable[row, start : piece.stop] = True
    if lm.special.bos is not None:
        trainable[:, 0] &= tokens[:, 0] != lm.special.bos
    columns = (tokens, trainable, torch.zeros_like(tokens), torch.tensor(list(numbers)))
    batch = Batch(*(column.to(lm.device) for column in columns))
    rng = Rng.for_rows(seed, batch.slots)
    if lm.block_size:
        read = TeacherForcedBlocks.read(lm.denoiser, lm.corruption, batch)
        for setting in settings:
            rule = setting.applied(lm.options).rule(lm.corruption)
            yield read.teacher_forced(rule, rng, steps_each=grid.steps_each(lm, setting))
        return
    told_time = lm.model.config.time_conditioned
    denoiser, lookahead = Remembered.of(lm.denoiser, told_time=told_time), lm.options.lookahead
    if lookahead and stop < grid.canvas:
        rest = tokens.new_full((len(pieces), grid.canvas - stop), lm.special.mask)
        denoiser = denoiser.given(right=rest.to(lm.device))
    for setting in settings:
        options = setting.applied(lm.options)
        each = grid.steps_each(lm, setting)
        yield teacher_forced(
            denoiser,
            lm.corruption,
            batch,
            options.rule(lm.corruption),
            rng,
            num_steps=each and each * ((stop - start) // (options.block or grid.canvas)),
            block=options.block,
            lookahead=lookahead,
        )
