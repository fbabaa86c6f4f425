"""Readers: denoisers of networks that read block after block, going along with the text.

A reader holds what each row has read so far, and reads one block of every row at a time: rows may
be at different blocks, at different times, and of different lengths. `CachedReader` keeps keys and
values; `Reread` reads everything again in every pass, and is what the cache is tested against.

Autoregression is blocks of one token, of a network that reads the token before each position.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.denoisers.passes import (
    NO_SHADOW,
    Shadow,
    as_prefix,
    reading_source,
    shifted,
    without_mask,
)
from sfumato.errors import ConfigError
from sfumato.models.attention import BlockCausal
from sfumato.models.encoded_source import Source
from sfumato.models.kv_cache import Reading, Store


class BlockReader(ABC):
    """Text of several rows, read as far as `lengths` [B], multiples of the block size."""

    size: int
    settles: bool = False  # a block is read while it is written: nothing read depends on it

    @abstractmethod
    def begin(self, tokens: Tensor, lengths: Tensor) -> "BlockReader":
        """Having read the first `lengths` [B] of tokens [B, W]."""

    @abstractmethod
    def advance(
        self, tokens: Tensor, t: Tensor, where: Tensor, keep: Tensor
    ) -> tuple[Tensor, "BlockReader"]:
        """The next block or two of each row, tokens [B, W] at times t [B, W]: logits [N, V] at
        `where`.

        The first block of the rows `keep` [B] is finished: the new reader has read it.
        """

    @property
    @abstractmethod
    def room(self) -> int:
        """How many blocks of every row can be read at once, with nothing forgotten for them."""

    @abstractmethod
    def leave_one_out(self, tokens: Tensor, t: Tensor, where: Tensor) -> Tensor:
        """Logits [N, V] at `where`, each about as if its position were masked (`Shadow`)."""

    @abstractmethod
    def select(self, rows: Tensor) -> "BlockReader":
        """Some rows [n] only."""

    @abstractmethod
    def settled(self, tokens: Tensor, keep: Tensor) -> "BlockReader":
        """Having read the block of the last pass, now tokens [B, S], in the rows `keep` [B]: of one
        that `settles`, which runs no network for that."""


def columns_of(model: Any, size: int) -> int:
    """How many positions see each other: as many whole blocks as the model was built for."""
    most = int(model.config.max_position_embeddings)
    if size > most:
        raise ConfigError(f"blocks of {size} positions, but the model was built for {most}")
    return most // size * size


@dataclass(frozen=True)
class NetworkReader(BlockReader):
    """What readers of one network have in common: what is read before the text."""

    model: Any
    mask_id: int
    size: int
    shift: bool = False  # the network reads the token before each position
    left: Tensor | None = None  # [B, P] text before that of the page; shorter rows end in anything
    left_lengths: Tensor | None = None  # [B] of the rows
    source: Source | None = None

    @classmethod
    def of(cls, model: Any, mask_id: int) -> Self:
        """A network as it was trained."""
        return cls(model, mask_id, model.block_size, model.shift)

    @property
    def settles(self) -> bool:  # type: ignore[override]
        """What is read at a position is the token before it, whatever the position becomes."""
        return self.shift and self.size == 1

    def given(self, left: Tensor, left_hidden: Tensor | None = None) -> Self:
        """Also reading `left` [B, P] first, padded anywhere: whole blocks of every row."""
        length = torch.full_like(left[:, 0], left.shape[1])
        if left_hidden is not None:  # what is hidden goes to the end
            order = left_hidden.long().argsort(dim=1, stable=True)
            left, length = left.gather(1, order), (~left_hidden).sum(1)
        if bool((length % self.size).any()):
            raise ConfigError(f"text before the page must be whole blocks of {self.size} tokens")
        left, length = self._joined(left, length)
        return replace(self, left=left, left_lengths=length)

    def conditioned(self, source: Tensor) -> Self:
        """Also reading a source [B, S], `ABSENT` where it has no token.

        The network's encoder reads it, here and once; without one it is text before the page.
        """
        if self.model.reads_source:
            return self.sourced(self.model.read(source))
        return self.given(**as_prefix(source, self.mask_id))

    def sourced(self, source: Source) -> Self:
        """Reading what an encoder made of a source."""
        return replace(self, source=source)

    def select(self, rows: Tensor) -> Self:
        return replace(
            self,
            left=None if self.left is None else self.left[rows],
            left_lengths=None if self.left_lengths is None else self.left_lengths[rows],
            source=None if self.source is None else self.source.rows(rows),
        )

    def _joined(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The first `lengths` [B] of tokens [B, W] after the text on the left."""
        if self.left is None or self.left_lengths is None:
            return tokens, lengths
        place = torch.arange(tokens.shape[1], device=tokens.device)
        text = F.pad(self.left, (0, tokens.shape[1]))
        return text.scatter_(1, self.left_lengths[:, None] + place, tokens), (
            self.left_lengths + lengths
        )


@dataclass(frozen=True)
class CachedReader(NetworkReader):
    """Reads every block once. Text beyond the model's positions slides: the oldest is forgotten.

    A value: one whose store another reader has gone on with works on a copy.
    """

    store: Store | None = None
    lengths: Tensor | None = None  # [B]
    last: Tensor | None = None  # [B] the last token read, for networks that read the one before

    def begin(self, tokens: Tensor, lengths: Tensor) -> "CachedReader":
        columns = columns_of(self.model, self.size)
        tokens, lengths = self._joined(tokens, lengths)
        store = Store.empty(len(tokens), columns, tokens.device)
        nothing = torch.zeros_like(lengths)
        longest = int(lengths.max())
        store.tip = nothing
        first = torch.full_like(lengths, self.mask_id)
        reader = replace(self, store=store, lengths=nothing, last=first)
        if longest <= columns:  # what follows a shorter row is hidden until it is written over
            if longest:
                whole = tokens[:, :longest]
                reader._pass(whole, torch.zeros_like(whole), None, store, nothing)
                read = whole.gather(1, (lengths - 1).clamp_min(0)[:, None])[:, 0]
                first = torch.where(lengths > 0, read, first)
            store.tip = lengths
            return replace(self, store=store, lengths=lengths, last=first)
        for start in range(0, longest, self.size):
            part = tokens[:, start : start + self.size]
            nowhere = torch.zeros_like(part, dtype=torch.bool)
            _, reader = reader.advance(part, torch.zeros_like(part), nowhere, start < lengths)
        return reader

    @property
    def room(self) -> int:
        store, lengths = self._begun()
        return (store.positions.shape[1] - int(lengths.max())) // self.size

    def advance(
        self, tokens: Tensor, t: Tensor, where: Tensor, keep: Tensor
    ) -> tuple[Tensor, "CachedReader"]:
        store, lengths = self._begun()
        logits = self._pass(tokens, t, where, store, lengths)
        if not bool(keep.any()):
            return logits, replace(self, store=store)
        return logits, self._gone_on(store, tokens, keep)

    def settled(self, tokens: Tensor, keep: Tensor) -> "CachedReader":
        return self._gone_on(self._begun()[0], tokens, keep)

    def leave_one_out(self, tokens: Tensor, t: Tensor, where: Tensor) -> Tensor:
        if self.shift:
            raise ConfigError(NO_SHADOW)
        store, lengths = self._begun()
        past, kinds = store.copy(lengths), torch.zeros_like(tokens)
        positions = Reading(store, lengths).next_positions(self.size)
        logits = self.model(
            torch.cat((tokens, torch.full_like(tokens, self.mask_id)), 1),
            t=torch.cat((t, t), 1).float(),
            segments=torch.cat((kinds, kinds), 1),
            positions=torch.cat((positions, positions), 1),
            where=torch.cat((torch.zeros_like(where), where), 1),
            attend=Shadow(),
            past=past,
            **reading_source(self.source),
        ).logits
        return without_mask(logits, self.mask_id)

    def select(self, rows: Tensor) -> "CachedReader":
        other = super().select(rows)
        if self.store is None or self.lengths is None or self.last is None:
            return other
        store, lengths = self.store.select(rows), self.lengths[rows]
        store.tip = lengths
        return replace(other, store=store, lengths=lengths, last=self.last[rows])

    def _gone_on(self, store: Store, tokens: Tensor, keep: Tensor) -> "CachedReader":
        assert self.lengths is not None, "begun"
        assert self.last is not None, "begun"
        store.tip = self.lengths + self.size * keep
        last = torch.where(keep, tokens[:, self.size - 1], self.last)
        return replace(self, store=store, lengths=store.tip, last=last)

    def _begun(self) -> tuple[Store, Tensor]:
        if self.store is None or self.lengths is None:
            raise ConfigError("a reader starts with `begin`")
        if self.store.tip is self.lengths:
            return self.store, self.lengths
        own = self.store.select(torch.arange(len(self.lengths), device=self.lengths.device))
        own.tip = self.lengths
        return own, self.lengths

    def _pass(
        self, tokens: Tensor, t: Tensor, where: Tensor | None, store: Store, lengths: Tensor
    ) -> Tensor:
        wanted = torch.zeros_like(tokens, dtype=torch.bool) if where is None else where
        attend, past = BlockCausal(self.size), Reading(store, lengths)
        if self.shift:
            assert self.last is not None, "begun"
            tokens = torch.cat((self.last[:, None], tokens[:, :-1]), 1)
        if self.settles:  # all that it reads is clean
            t = torch.zeros_like(t)
        out = self.model(
            tokens,
            t=t.float(),
            where=wanted,
            attend=attend,
            past=past,
            **reading_source(self.source),
        )
        return without_mask(out.logits, self.mask_id)


@dataclass(frozen=True)
class Reread(NetworkReader):
    """The slow and obvious reader."""

    texts: tuple[Tensor, ...] = ()  # each [P]

    def begin(self, tokens: Tensor, lengths: Tensor) -> "Reread":
        columns_of(self.model, self.size)  # raises where a block does not fit
        tokens, lengths = self._joined(tokens, lengths)
        pairs = zip(tokens, lengths.tolist(), strict=True)
        return replace(self, texts=tuple(row[:length] for row, length in pairs))

    def advance(
        self, tokens: Tensor, t: Tensor, where: Tensor, keep: Tensor
    ) -> tuple[Tensor, "Reread"]:
        attend = BlockCausal(self.size, columns_of(self.model, self.size) // self.size)
        logits, texts = [], []
        for row, text in enumerate(self.texts):
            whole = torch.cat((text, tokens[row]))[None]
            shown = whole
            if self.shift:
                shown = shifted(whole, torch.zeros_like(whole, dtype=torch.bool), self.mask_id)
            times = torch.cat((torch.zeros_like(text), t[row]))[None]
            if self.settles:
                times = torch.zeros_like(times)
            wanted = torch.cat((torch.zeros_like(text, dtype=torch.bool), where[row]))[None]
            positions = torch.arange(whole.shape[1], device=whole.device)[None]
            out = self.model(
                shown,
                t=times.float(),
                where=wanted,
                attend=attend,
                positions=positions,
                **self._reading(row),
            )
            logits.append(without_mask(out.logits, self.mask_id))
            texts.append(whole[0, : len(text) + self.size] if keep[row] else text)
        return torch.cat(logits), replace(self, texts=tuple(texts))

    def settled(self, tokens: Tensor, keep: Tensor) -> "Reread":
        rows = zip(self.texts, tokens, keep.tolist(), strict=True)
        return replace(
            self, texts=tuple(torch.cat((text, own)) if kept else text for text, own, kept in rows)
        )

    @property
    def room(self) -> int:
        columns = columns_of(self.model, self.size)
        return (columns - max(map(len, self.texts))) // self.size

    def leave_one_out(self, tokens: Tensor, t: Tensor, where: Tensor) -> Tensor:
        columns, logits = columns_of(self.model, self.size), []
        for row, text in enumerate(self.texts):
            attend = BlockCausal(self.size, columns // self.size)
            place = torch.arange(len(text) + self.size, device=tokens.device)[None]
            before, own = place[:, : len(text)], place[:, len(text) :]
            nothing = torch.zeros_like(before, dtype=torch.bool)
            read = None
            if len(text):
                zero = torch.zeros(1, device=tokens.device)
                read = self.model(
                    text[None],
                    t=zero,
                    where=nothing,
                    attend=attend,
                    positions=before,
                    **self._reading(row),
                ).key_values.last(columns - self.size)
            block, here = tokens[row : row + 1], where[row : row + 1]
            out = self.model(
                torch.cat((block, torch.full_like(block, self.mask_id)), 1),
                t=t[row : row + 1].repeat(1, 2).float(),
                positions=torch.cat((own, own), 1),
                where=torch.cat((torch.zeros_like(here), here), 1),
                attend=Shadow(),
                past=read,
                **self._reading(row),
            )
            logits.append(without_mask(out.logits, self.mask_id))
        return torch.cat(logits)

    def select(self, rows: Tensor) -> "Reread":
        texts = tuple(self.texts[row] for row in rows.tolist()) if self.texts else ()
        return replace(super().select(rows), texts=texts)

    def _reading(self, row: int) -> dict[str, Source]:
        own = None if self.source is None else self.source.rows(torch.tensor([row]))
        return reading_source(own)
