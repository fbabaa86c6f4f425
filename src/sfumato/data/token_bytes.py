"""The bytes that each token of a byte-level tokenizer stands for."""

import json
from typing import TYPE_CHECKING

from sfumato.data.tokenizer import fast_backend
from sfumato.errors import TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def token_bytes(tokenizer: "PreTrainedTokenizerFast", size: int) -> list[bytes | None]:
    """The bytes that ids from 0 to size - 1 stand for, wherever they stand; None for special
    tokens and for ids without one.

    Only byte-level tokenizers have such bytes: others put spaces between tokens, or take them away.
    """
    parts = json.loads(fast_backend(tokenizer).to_str())["decoder"] or {}
    kinds = [parts.get("type"), *(part["type"] for part in parts.get("decoders", []))]
    if kinds not in (["ByteLevel"], ["Sequence", "ByteLevel"]):
        raise TokenizerError(
            f"a grammar needs a byte-level tokenizer, in which a token is always the same bytes; "
            f"this one decodes by {parts.get('type')}; use a model with a byte-level BPE"
        )
    byte = bytes_by_letter()
    spelt = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    words: list[bytes | None] = [None] * size
    for token, letters in enumerate(spelt):
        # what was added to the vocabulary is spelt as it is, if there is a letter that is no byte
        known = all(letter in byte for letter in letters)
        words[token] = bytes(map(byte.__getitem__, letters)) if known else letters.encode()
    for token, added in tokenizer.added_tokens_decoder.items():
        if added.special:
            words[token] = None
    return words


def bytes_by_letter() -> dict[str, int]:
    """Byte-level BPE writes a byte as the letter of its number if that can be seen (in Latin-1),
    and others in their order as the letters from 256 on (GPT-2)."""
    seen = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(b): b for b in seen} | {chr(256 + n): b for n, b in enumerate(others)}
