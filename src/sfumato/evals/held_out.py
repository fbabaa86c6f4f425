"""Held-out text to measure on: rows as the model has learnt them, and which text each part is of.

What is independent are the texts. A long one goes on in further rows, and a packed row holds
several: so rows are counted in parts, each of one text in one row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.data.prepared import JOURNAL, PREPARED, Prepared
from sfumato.data.prepared_pairs import PreparedPairs, holds_pairs
from sfumato.data.round_trip import is_lossless
from sfumato.data.rows import open_rows
from sfumato.data.sources import Source
from sfumato.errors import ConfigError, DataError
from sfumato.estimates import Estimate, ratio
from sfumato.lm.model import DiffusionLM
from sfumato.types import Batch, PairBatch

BATCH = 16  # rows in one forward pass
GUESS = 8  # characters a token, at first: more than most tokens have
BEFORE = 8  # tokens: more than those that can share a character of 4 bytes


@dataclass(frozen=True)
class Held:
    """Held-out rows in parts, how much text each is, and whole texts to compare with."""

    batch: Batch
    part: Tensor  # [B, L] the part that a position belongs to
    owners: tuple[Tensor, ...]  # [C] each: the text of a part; its row, if rows hold several texts
    tokens: Tensor  # [C] tokens of a part up to and with the end: filling is no text
    bytes: Tensor  # [C] UTF-8 bytes of the text that they stand for
    texts: list[str]
    name: dict[str, Any]

    def scaled(self, share: float | Sequence[float]) -> "Held":
        """With the bytes of the original: so many, of each text or of all, for each spelt."""
        shares = torch.tensor(share, dtype=torch.float32, device=self.bytes.device)
        if bool((shares == 1).all()):
            return self
        each = shares[self.owners[0]] if shares.ndim else shares
        return replace(self, bytes=self.bytes * each)

    def batches(self) -> Iterator[Batch]:
        """A few rows at a time."""
        columns = vars(self.batch).values()
        for parts in zip(*(column.split(BATCH) for column in columns), strict=True):
            yield type(self.batch)(*parts)

    @property
    def num_documents(self) -> int:
        """As many as are independent: texts, or different sources of pairs."""
        return len(self.owners[0].unique())

    def per_token(self, each: Tensor) -> Estimate:
        """each [B, L] over tokens of text; its error is over texts."""
        return ratio(self._summed(each), self.tokens, *self.owners)

    def per_byte(self, each: Tensor) -> Estimate:
        """each [B, L] over bytes of text."""
        return ratio(self._summed(each), self.bytes, *self.owners)

    def _summed(self, each: Tensor) -> Tensor:
        empty = each.new_zeros(len(self.tokens))
        return empty.index_add_(0, self.part.flatten(), each.flatten())


def shuffled(held: Held) -> Held:
    """Every row with the source of the next one that has another source.

    What differs from `held` depends on both sources: rows that share either are not independent.
    """
    if not isinstance(held.batch, PairBatch):
        raise ConfigError("shuffled is for pairs: give a folder that was prepared with them")
    own = held.owners[0].tolist()  # of every row, which is a part
    taken = []
    for row, source in enumerate(own):
        others = (n % len(own) for n in range(row + 1, row + len(own)))
        found = next((n for n in others if own[n] != source), None)
        if found is None:
            raise DataError("all held-out rows have the same source; there is nothing to shuffle")
        taken.append(found)
    swapped = replace(held.batch, source=held.batch.source[taken])
    return replace(held, batch=swapped, owners=(held.owners[0], held.owners[0][taken]))


def held_out(lm: DiffusionLM, data: str | Path | Source, num_rows: int, num_texts: int) -> Held:
    """At most so many rows; and the first whole texts, for a judge."""
    source = data if isinstance(data, Source) else Source(str(data))
    folder = Path(source.name).expanduser()
    if holds_pairs(folder):
        if num_texts:
            raise ConfigError("a judge reads texts, not pairs; leave it out, or give other data")
        return _from_pairs(lm, folder, num_rows)
    if (folder / PREPARED).exists() or (folder / JOURNAL).exists():
        return _from_prepared(lm, folder, num_rows, num_texts)
    texts = list(_beginnings(lm, source, num_rows))
    if not texts:
        raise DataError(f"{source.name} holds no text to evaluate on")
    batch, text, owner = lm.rows(texts)
    batch = type(batch)(*(column[:num_rows] for column in vars(batch).values()))
    text, owner = text[:num_rows], owner[:num_rows]
    document = owner[:, None].expand(text.shape)
    whole = [_cut(lm, text) for text in islice(source.documents(), num_texts)]
    held = _held(lm, batch, text, document, whole, asdict(source))
    if is_lossless(lm.tokenizer):
        return held
    return held.scaled([_original_share(lm, one) for one in texts])


def _beginnings(lm: DiffusionLM, source: Source, rows: int) -> Iterator[str]:
    """Texts for so many rows: whole ones, and of a long one what is needed."""
    canvas = _canvas(lm)
    for text in source.documents():
        size = min(rows * canvas * GUESS, len(text))
        tokens = len(lm.encode([text[:size]])[0])
        while tokens < (rows + 1) * canvas and size < len(text):
            size = min(2 * size, len(text))
            tokens = len(lm.encode([text[:size]])[0])
        yield text[:size]
        rows -= -(-tokens // canvas)
        if rows <= 0:
            return


def _original_share(lm: DiffusionLM, text: str) -> float:
    """Bytes of a text for each that its tokens spell: not 1 where the tokenizer changes it."""
    kept = len(lm.reader.decode(lm.encode([text])[0]).encode())
    if not kept:
        raise DataError(f"the tokenizer keeps nothing of a text: {text[:40]!r}")
    return len(text.encode()) / kept


def _from_prepared(lm: DiffusionLM, folder: Path, limit: int, wanted: int) -> Held:
    prepared = Prepared.open(folder, lm.tokenizer)
    batch, text, document, share = _first_rows(lm, folder, limit)
    split = prepared.split("validation")
    stops = split.ends[:wanted].tolist()
    texts = [
        _decoded(lm, split.tokens[start:stop].astype(np.int64).tolist())
        for start, stop in zip([0, *stops], stops, strict=False)
    ]
    name = {"folder": str(folder), "split": "validation", "fingerprint": prepared.fingerprint}
    return _held(lm, batch, text, document, texts, name).scaled(share)


def _from_pairs(lm: DiffusionLM, folder: Path, limit: int) -> Held:
    prepared = PreparedPairs.open(folder)
    prepared.check_tokenizer(lm.tokenizer)
    batch, text, _, share = _first_rows(lm, folder, limit)
    name = {"folder": str(folder), "split": "validation", "fingerprint": prepared.fingerprint}
    assert isinstance(batch, PairBatch), "rows of pairs"
    # the same source with another target is no other case
    own = batch.source.unique(dim=0, return_inverse=True)[1]
    return _held(lm, batch, text, own[:, None].expand(text.shape), [], name).scaled(share)


def _first_rows(lm: DiffusionLM, folder: Path, limit: int) -> tuple[Batch, Tensor, Tensor, float]:
    """Held-out rows as the model has learnt them, where they are text, and of which document; and
    how many bytes of the original there are for each that the tokens spell."""
    layout: Any = lm.options.layout
    rows = open_rows(folder, "validation", length=_canvas(lm), layout=layout)
    taken = rows.batch(np.arange(min(limit, len(rows))))
    columns = {name: torch.from_numpy(values).to(lm.device) for name, values in taken.items()}
    columns["slots"] = columns.pop("row")  # they count from 0
    batch = PairBatch(**columns) if "source" in columns else Batch(**columns)
    text = batch.trainable
    if lm.options.layout == "padded":  # filling follows the first end
        ends = (batch.tokens == lm.special.eos).long()
        text = text & (ends.cumsum(1) - ends == 0)
    first = torch.from_numpy(rows.documents(taken["row"])).to(lm.device)
    share = rows.num_bytes / rows.kept_bytes
    return batch, text, first[:, None] + batch.segments, share


def _held(
    lm: DiffusionLM,
    batch: Batch,
    text: Tensor,
    document: Tensor,
    texts: list[str],
    name: dict[str, Any],
) -> Held:
    # filling is of the text before it, or of none and not trainable
    document = torch.where(text, document, document[:, :1])
    row = torch.arange(len(document), device=document.device)[:, None].expand(document.shape)
    pairs = torch.stack((row, document), -1).flatten(0, 1)
    owners, part = pairs.unique(dim=0, return_inverse=True)
    part = part.view(document.shape)
    several = len(owners) > len(document)
    kept: list[list[int]] = [[] for _ in owners]
    for number, token in zip(part[text].tolist(), batch.tokens[text].tolist(), strict=True):
        kept[number].append(token)
    return Held(
        batch,
        part,
        (owners[:, 1], owners[:, 0]) if several else (owners[:, 1],),
        torch.tensor([len(each) for each in kept], device=document.device),
        torch.tensor(count_bytes(lm, kept), device=document.device),
        texts,
        name,
    )


def count_bytes(lm: DiffusionLM, rows: Sequence[Sequence[int]]) -> list[int]:
    """UTF-8 bytes that rows, or their parts, spell, each going on where the one before it stopped.

    A character whose bytes lie in two counts in the second. A document ends with eos.
    """
    sizes, before = [], []
    for row in rows:
        size = 0
        for part in _documents(row, lm.special.eos):
            ended = part[-1] == lm.special.eos
            size += _spelt(lm, [*before, *part], ended) - _spelt(lm, before, False)
            before = [] if ended else [*before, *part][-BEFORE:]
        sizes.append(size)
    return sizes


def _documents(row: Sequence[int], eos: int) -> Iterator[Sequence[int]]:
    start = 0
    for stop in [place + 1 for place, token in enumerate(row) if token == eos] + [len(row)]:
        if stop > start:
            yield row[start:stop]
        start = stop


def _spelt(lm: DiffusionLM, ids: Sequence[int], ended: bool) -> int:
    text = lm.reader.decode(list(ids))
    return len((text if ended else text.removesuffix("\ufffd")).encode())


def _canvas(lm: DiffusionLM) -> int:
    return lm.options.canvas or lm.model.config.max_position_embeddings


def _cut(lm: DiffusionLM, text: str) -> str:
    """As much of a text as the model could have written itself."""
    encoding = lm.encode([text])[0]
    return text if len(encoding) < _canvas(lm) else _decoded(lm, encoding)


def _decoded(lm: DiffusionLM, ids: Sequence[int]) -> str:
    kept = list(ids[: _canvas(lm)])
    text = lm.reader.decode(kept)
    return text if len(kept) == len(ids) else text.removesuffix("\ufffd")
