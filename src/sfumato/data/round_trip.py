"""Whether a tokenizer gives text back as it was: proved by its parts, or seen in every document.

Tokenizers of others compose accents, lower letters, join spaces, or have no token for a character.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sfumato.data.token_bytes import bytes_by_letter
from sfumato.data.tokenizer import encode, fast_backend
from sfumato.errors import TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

AROUND = 12  # characters shown on each side of a change
SPLITTERS = ("Split", "Digits", "ByteLevel")


@dataclass(frozen=True)
class Changes:
    """Documents that do not come back as they were."""

    documents: int = 0
    last: int = -1  # the number of the last of them: a further piece of it is no other document
    example: str | None = None

    def plus(self, numbers: Sequence[int], example: str | None) -> "Changes":
        """With those of what was read next, in order."""
        new = [number for number in numbers if number > self.last]
        last = new[-1] if new else self.last
        return Changes(self.documents + len(new), last, self.example or example)


def is_lossless(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether every text survives, by construction: a BPE over all bytes, and nothing before it."""
    parts = json.loads(fast_backend(tokenizer).to_str())
    model = parts["model"]
    return (
        not parts["normalizer"]
        and _keeps_all(parts["pre_tokenizer"])
        and (parts["decoder"] or {}).get("type") == "ByteLevel"
        and model["type"] == "BPE"
        and not (model["continuing_subword_prefix"] or model["end_of_word_suffix"])
        and bytes_by_letter().keys() <= model["vocab"].keys()
        # others are found in the text before it is split, and may take the spaces around them
        and all(added["special"] for added in parts["added_tokens"])
    )


def _keeps_all(splitter: dict[str, Any] | None) -> bool:
    """Whether text is split without loss, and then written as bytes."""
    every = [splitter or {}]
    if every[0].get("type") == "Sequence":
        every = every[0]["pretokenizers"]
    kinds = [each.get("type") for each in every]
    return (
        all(kind in SPLITTERS for kind in kinds)
        and [n for n, kind in enumerate(kinds) if kind == "ByteLevel"] == [len(kinds) - 1]
        and not every[-1]["add_prefix_space"]
        and not any(each.get("behavior") == "Removed" for each in every)
    )


def read_back(tokenizer: "PreTrainedTokenizerFast", rows: Sequence[list[int]]) -> list[str]:
    """The texts that tokens stand for, as they are read everywhere."""
    return fast_backend(tokenizer).decode_batch(list(rows), skip_special_tokens=True)


def can_join(tokenizer: "PreTrainedTokenizerFast") -> bool:
    """Whether tokens of pieces are tokens of the whole, and their texts the whole text.

    Not if every text gets a space in front, or if decoding puts spaces between tokens.
    """
    texts = ["a b", "a", " b"]
    whole, *parts = encode(tokenizer, texts)
    if whole != parts[0] + parts[1]:
        return False
    return is_lossless(tokenizer) or read_back(tokenizer, parts) == texts[1:]


def difference(text: str, back: str) -> str:
    """Where a text and what came back differ first."""
    pairs = enumerate(zip(text, back, strict=False))
    place = next((n for n, (a, b) in pairs if a != b), min(len(text), len(back)))
    stretch = slice(max(0, place - AROUND), place + AROUND)
    return f"character {place + 1}: {text[stretch]!r} comes back as {back[stretch]!r}"


def refuse_changes(changes: Changes, read: int, name: str) -> None:
    """Raise if documents among the first `read` do not come back."""
    if changes.documents:
        raise TokenizerError(
            f"tokenizer {name} changes text: {changes.documents:,} of the first {read:,} documents "
            f"do not come back as they were; {changes.example}; take a tokenizer that keeps every "
            "byte, or accept it: --lossy (lossy=True) counts what changes and records it"
        )
