"""Readers: denoisers of block-causal models that go along with the text.

A reader holds what each row has read so far, and reads one block of every row at a time: rows may
be at different blocks, at different times, and of different lengths. `CachedReader` keeps keys and
values; `Reread` reads everything again in every pass, and is what the cache is tested against.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from sfumato.denoisers.full import NO_SHADOW, Shadow, shifted, without_mask
from sfumato.errors import ConfigError
from sfumato.models.attention import BlockCausal
from sfumato.models.kv_cache import Reading, Store


class BlockReader(Protocol):
    """Text of several rows, read as far as `lengths` [B], multiples of the block size."""

    @property
    def size(self) -> int: ...

    def begin(self, tokens: Tensor, lengths: Tensor) -> "BlockReader":
        """Having read the first `lengths` [B] of tokens [B, W]."""
        ...

    def advance(
        self, tokens: Tensor, t: Tensor, where: Tensor, keep: Tensor
    ) -> tuple[Tensor, "BlockReader"]:
        """The next block or two of each row, tokens [B, W] at times t [B, W]: logits [N, V] at
        `where`.

        The first block of the rows `keep` [B] is finished: the new reader has read it.
        """
        ...

    @property
    def room(self) -> int:
        """How many blocks of every row can be read at once, with nothing forgotten for them."""
        ...

    def leave_one_out(self, tokens: Tensor, t: Tensor, where: Tensor) -> Tensor:
        """Logits [N, V] at `where`, each about as if its position were masked (`Shadow`)."""
        ...

    def select(self, rows: Tensor) -> "BlockReader":
        """Some rows [n] only."""
        ...


def columns_of(model: nn.Module, size: int) -> int:
    """How many positions see each other: as many whole blocks as the model was built for."""
    most = int(model.config.max_position_embeddings)  # type: ignore[union-attr]
    if size > most:
        raise ConfigError(f"blocks of {size} positions, but the model was built for {most}")
    return most // size * size


@dataclass(frozen=True)
class CachedReader:
    """Reads every block once. Text beyond the model's positions slides: the oldest is forgotten.

    A value: one whose store another reader has gone on with works on a copy.
    """

    model: nn.Module
    mask_id: int
    size: int
    store: Store | None = None
    lengths: Tensor | None = None  # [B]
    last: Tensor | None = None  # [B] the last token read, for networks that read the one before

    def begin(self, tokens: Tensor, lengths: Tensor) -> "CachedReader":
        columns = columns_of(self.model, self.size)
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
        store.tip = lengths + self.size * keep
        last = torch.where(keep, tokens[:, self.size - 1], self._last())
        return logits, replace(self, store=store, lengths=store.tip, last=last)

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
        ).logits
        return without_mask(logits, self.mask_id)

    def select(self, rows: Tensor) -> "CachedReader":
        store, lengths = self._begun()
        store = store.select(rows)
        store.tip = lengths[rows]
        return replace(self, store=store, lengths=store.tip, last=self._last()[rows])

    @property
    def shift(self) -> bool:
        return self.model.config.shift  # type: ignore[union-attr, return-value]

    def _last(self) -> Tensor:
        assert self.last is not None, "begun"
        return self.last

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
            tokens = torch.cat((self._last()[:, None], tokens[:, :-1]), 1)
        return without_mask(
            self.model(tokens, t=t.float(), where=wanted, attend=attend, past=past).logits,
            self.mask_id,
        )


@dataclass(frozen=True)
class Reread:
    """The slow and obvious reader."""

    model: nn.Module
    mask_id: int
    size: int
    texts: tuple[Tensor, ...] = ()  # each [P]

    def begin(self, tokens: Tensor, lengths: Tensor) -> "Reread":
        columns_of(self.model, self.size)  # raises where a block does not fit
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
            if self.model.config.shift:  # type: ignore[union-attr]
                shown = shifted(whole, torch.zeros_like(whole, dtype=torch.bool), self.mask_id)
            times = torch.cat((torch.zeros_like(text), t[row]))[None]
            wanted = torch.cat((torch.zeros_like(text, dtype=torch.bool), where[row]))[None]
            positions = torch.arange(whole.shape[1], device=whole.device)[None]
            out = self.model(
                shown, t=times.float(), where=wanted, attend=attend, positions=positions
            )
            logits.append(without_mask(out.logits, self.mask_id))
            texts.append(whole[0, : len(text) + self.size] if keep[row] else text)
        return torch.cat(logits), replace(self, texts=tuple(texts))

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
                    text[None], t=zero, where=nothing, attend=attend, positions=before
                ).key_values.last(columns - self.size)
            block, here = tokens[row : row + 1], where[row : row + 1]
            out = self.model(
                torch.cat((block, torch.full_like(block, self.mask_id)), 1),
                t=t[row : row + 1].repeat(1, 2).float(),
                positions=torch.cat((own, own), 1),
                where=torch.cat((torch.zeros_like(here), here), 1),
                attend=Shadow(),
                past=read,
            )
            logits.append(without_mask(out.logits, self.mask_id))
        return torch.cat(logits)

    def select(self, rows: Tensor) -> "Reread":
        return replace(self, texts=tuple(self.texts[row] for row in rows.tolist()))
