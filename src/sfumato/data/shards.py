"""From pieces of documents to token arrays, in shards that are worked on independently."""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sfumato.data.documents import Piece
from sfumato.data.prepared import ENDS, SPLITS, token_dtype
from sfumato.data.round_trip import difference, read_back
from sfumato.data.special_tokens import SpecialIds
from sfumato.data.tokenizer import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BATCH = 64  # passages encoded at a time: the encodings take some 40 bytes for each character


class Passage(NamedTuple):
    """A piece of a document and its place in the files."""

    text: str
    split: str
    document: int  # its number, from 0
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
    kept_bytes: int  # of the text that the tokens stand for


class Checked(NamedTuple):
    """A shard's tokens, and what of its text they do not keep."""

    splits: dict[str, Encoded]
    changed: list[int]  # numbers of documents, in order
    example: str | None


def hold_end(pieces: Iterable[Piece], validation: float, characters: int) -> Iterator[Passage]:
    """The passages of one document of so many characters, of which the end is held out."""
    left = min(round(characters * (1 - validation)), characters - 1)  # to learn from
    begins = True
    for text, ends, _ in pieces:
        cut = text.rfind(" ", 1, left) if 0 < left < len(text) else left
        cut = min(max(cut if cut > 0 else left, 0), len(text))
        for part, split, last in ((text[:cut], "train", False), (text[cut:], "validation", ends)):
            if part or last:
                closes = last or (split == "train" and left <= len(text))
                yield Passage(part, split, 0, begins, last, closes)
                begins = False
        left -= len(text)


def assign(pieces: Iterable[Piece], validation: float) -> Iterator[Passage]:
    """Choose a split for every piece, by the text alone (or what stands for it, its key).

    A hash of its first piece gives each document a start u in [0, 1); piece n is held out if a
    whole number lies in (n v + u, (n + 1) v + u]. So a document of one piece is held out with
    probability v, and a long one gives its share of v to validation, evenly.
    """

    def split(number: int) -> str:
        before = math.floor(number * validation + start)
        return SPLITS[math.floor((number + 1) * validation + start) > before]

    number, start, document = 0, 0.0, 0
    for text, ends, key in pieces:
        if number == 0:
            digest = hashlib.blake2b((key or text).encode(), digest_size=6).digest()
            start = int.from_bytes(digest, "big") / 2**48
        here, following = split(number), split(number + 1)
        yield Passage(text, here, document, number == 0, ends, ends or here != following)
        number = 0 if ends else number + 1
        document += ends


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
    shard: Shard,
    tokenizer: "PreTrainedTokenizerFast",
    special: SpecialIds,
    *,
    verify: bool = False,
) -> Checked:
    """Tokens and document ends of each split; with `verify`, tokens are read back and compared."""
    bos = [] if special.bos is None else [special.bos]
    rows: dict[str, list[list[int]]] = {split: [] for split in SPLITS}
    ends: dict[str, list[int]] = {split: [] for split in SPLITS}
    sizes, kept = dict.fromkeys(SPLITS, 0), dict(shard.num_bytes)
    changed: list[int] = []
    example = None
    for first in range(0, len(shard.passages), BATCH):
        batch = shard.passages[first : first + BATCH]
        encoded = encode(tokenizer, [p.text for p in batch])
        for passage, ids in zip(batch, encoded, strict=True):
            row = bos * passage.begins + ids + [special.eos] * passage.ends
            rows[passage.split].append(row)
            sizes[passage.split] += len(row)
            if passage.closes:
                ends[passage.split].append(sizes[passage.split])
        backs = read_back(tokenizer, encoded) if verify else [p.text for p in batch]
        for passage, back in zip(batch, backs, strict=True):
            if back != passage.text:
                kept[passage.split] += len(back.encode()) - len(passage.text.encode())
                changed.append(passage.document)
                example = example or _example(passage, back)
    dtype = token_dtype(len(tokenizer))
    splits = {
        split: Encoded(
            tokens=np.fromiter(itertools.chain.from_iterable(rows[split]), dtype, sizes[split]),
            ends=np.array(ends[split], ENDS),
            kept_bytes=kept[split],
        )
        for split in SPLITS
    }
    return Checked(splits, sorted(set(changed)), example)


def _example(passage: Passage, back: str) -> str:
    piece = "" if passage.begins else "a later piece, "
    return f"document {passage.document + 1}, {piece}{difference(passage.text, back)}"
