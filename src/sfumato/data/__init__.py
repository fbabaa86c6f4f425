"""Text to tokens: tokenizers, sources, preparation, rows."""

from sfumato.data.prepared import Prepared
from sfumato.data.rows import Rows
from sfumato.data.sources import Source
from sfumato.data.text import Progress, prepare
from sfumato.data.tokenizer import (
    SpecialIds,
    encode,
    fingerprint,
    load_tokenizer,
    save_tokenizer,
    special_ids,
    train_tokenizer,
)

__all__ = [
    "Prepared",
    "Progress",
    "Rows",
    "Source",
    "SpecialIds",
    "encode",
    "fingerprint",
    "load_tokenizer",
    "prepare",
    "save_tokenizer",
    "special_ids",
    "train_tokenizer",
]
