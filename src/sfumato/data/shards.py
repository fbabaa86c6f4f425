"""From pieces of documents to token arrays, in shards that are worked on independently."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sfumato.data.documents import Piece
from sfumato.data.prepared import ENDS, SPLITS, token_dtype
from sfumato.data.tokenizer import SpecialIds, encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BATCH = 64  # passages encoded at a time: the encodings take some 40 bytes for each character


class Passage(NamedTuple):
    """A piece of a document and its place in the files."""

    text: str
    split: str
    begins: bool  # the document begins here: bos
    ends: bool  # the document ends here: eos
    closes: bool  # what follows in this split is another document


class Shard(NamedTuple):
    """Passages that are tokenized and written together."""

    passages: list[Passage]
    digest: str  # of all text of the source up to its end
    num_bytes: dict[str, int]  # by split, in UTF-8


class Encoded(NamedTuple):
    """A shard's tokens for one split."""

    tokens: np.ndarray  # [n] of the files' type
    ends: np.ndarray  # [documents that end here] int64, counted from the shard's start


def assign(pieces: Iterable[Piece], validation: float) -> Iterator[Passage]:
    """Choose a split for every piece, by the text alone (or what stands for it, its key).

    A hash of its first piece gives each document a start u in [0, 1); piece n is held out if a
    whole number lies in (n v + u, (n + 1) v + u]. So a document of one piece is held out with
    probability v, and a long one gives its share of v to validation, evenly.
    """

    def split(number: int) -> str:
        before = math.floor(number * validation + start)
        return SPLITS[math.floor((number + 1) * validation + start) > before]

    number, start = 0, 0.0
    for text, ends, key in pieces:
        if number == 0:
            digest = hashlib.blake2b((key or text).encode(), digest_size=6).digest()
            start = int.from_bytes(digest, "big") / 2**48
        here, following = split(number), split(number + 1)
        yield Passage(text, here, number == 0, ends, ends or here != following)
        number = 0 if ends else number + 1


def shards(passages: Iterable[Passage], size: int) -> Iterator[Shard]:
    """Group passages until they have `size` characters."""
    digest, characters = "", 0
    held: list[Passage] = []
    for passage in passages:
        held.append(passage)
        characters += len(passage.text)
        if characters >= size:
            shard = _shard(held, digest)
            yield shard
            digest, characters, held = shard.digest, 0, []
    if held:
        yield _shard(held, digest)


def _shard(passages: list[Passage], digest: str) -> Shard:
    hasher = hashlib.blake2b(digest.encode(), digest_size=16)
    num_bytes = dict.fromkeys(SPLITS, 0)
    for passage in passages:
        data = passage.text.encode()
        hasher.update(len(data).to_bytes(8, "big") + data)
        num_bytes[passage.split] += len(data)
    return Shard(passages, hasher.hexdigest(), num_bytes)


def encode_shard(
    shard: Shard, tokenizer: "PreTrainedTokenizerFast", special: SpecialIds
) -> dict[str, Encoded]:
    """Tokens and document ends of each split."""
    bos = [] if special.bos is None else [special.bos]
    rows: dict[str, list[list[int]]] = {split: [] for split in SPLITS}
    ends: dict[str, list[int]] = {split: [] for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    for first in range(0, len(shard.passages), BATCH):
        batch = shard.passages[first : first + BATCH]
        for passage, ids in zip(batch, encode(tokenizer, [p.text for p in batch]), strict=True):
            row = bos * passage.begins + ids + [special.eos] * passage.ends
            rows[passage.split].append(row)
            sizes[passage.split] += len(row)
            if passage.closes:
                ends[passage.split].append(sizes[passage.split])
    dtype = token_dtype(len(tokenizer))
    return {
        split: Encoded(
            tokens=np.fromiter(itertools.chain.from_iterable(rows[split]), dtype, sizes[split]),
            ends=np.array(ends[split], ENDS),
        )
        for split in SPLITS
    }
