"""Text to tokens: tokenizers, sources, preparation, rows."""

from sfumato.data.journal import Progress
from sfumato.data.pairs import Pairs
from sfumato.data.preparation import prepare
from sfumato.data.prepared import Prepared
from sfumato.data.prepared_pairs import PreparedPairs, prepare_pairs
from sfumato.data.rows import PairRows, Rows
from sfumato.data.sources import Source
from sfumato.data.special_tokens import SpecialIds, special_ids
from sfumato.data.tokenizer import encode, fingerprint
from sfumato.data.tokenizer_files import load_tokenizer, save_tokenizer
from sfumato.data.tokenizer_training import train_tokenizer

__all__ = [
    "PairRows",
    "Pairs",
    "Prepared",
    "PreparedPairs",
    "Progress",
    "Rows",
    "Source",
    "SpecialIds",
    "encode",
    "fingerprint",
    "load_tokenizer",
    "prepare",
    "prepare_pairs",
    "save_tokenizer",
    "special_ids",
    "train_tokenizer",
]
