"""A tokenizer: from text to ids, and what tells one from another.

Text is never parsed for special tokens: somebody's story may say "<|mask|>", and that is nine
characters of text. Special ids enter token streams by number only.
"""

import hashlib
import json
from typing import TYPE_CHECKING

from sfumato.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast


def encode(tokenizer: "PreTrainedTokenizerFast", texts: list[str]) -> list[list[int]]:
    """Token ids of each text: nothing is added, nothing is cut, nothing is read as special."""
    backend = fast_backend(tokenizer)
    # Set only where needed: a change while another thread encodes is an error in the library.
    if not backend.encode_special_tokens:
        backend.encode_special_tokens = True
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def fast_backend(tokenizer: "PreTrainedTokenizerFast") -> "Tokenizer":
    """What is inside a fast tokenizer: only these are taken."""
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(
            f"{type(tokenizer).__name__} is no fast tokenizer; expected one with a tokenizer.json"
        )
    return tokenizer.backend_tokenizer


def vocabulary_digest(tokenizer: "PreTrainedTokenizerFast", first: int | None = None) -> str:
    """How many tokens there are, and a hash of them in their order; or of the first ones alone.

    A model's config keeps it: which tokens its numbers mean.
    """
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    kept = [f"{number} {word}" for word, number in words][:first]
    made = hashlib.blake2b("\0".join(kept).encode("utf-8", "surrogatepass"), digest_size=8)
    return f"{len(kept)}-{made.hexdigest()}"


def fingerprint(tokenizer: "PreTrainedTokenizerFast") -> str:
    """A hash of what decides which ids a text gets, and of the special ids' roles.

    Equal for a tokenizer and its saved copy. How a text is wrapped (post-processor) and cut or
    padded is left out, because `encode` uses neither.
    """
    parts = json.loads(fast_backend(tokenizer).to_str())
    model = parts["model"]
    # Older files join the two halves of a merge with a space.
    model["merges"] = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
    kept = {key: parts[key] for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    kept["roles"] = {
        role: getattr(tokenizer, f"{role}_token_id")
        for role in ("mask", "pad", "bos", "eos", "cls", "sep", "unk")
    }
    text = json.dumps(kept, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
