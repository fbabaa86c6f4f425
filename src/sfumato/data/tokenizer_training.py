"""Learning a byte-level BPE from text."""

import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sfumato.arguments import COUNT, shown
from sfumato.data.special_tokens import BOS, EOS, MASK, PAD, SPECIAL
from sfumato.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SMALLEST = 256 + len(SPECIAL)  # every byte and the special tokens


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, min_frequency: int = 2
) -> "PreTrainedTokenizerFast":
    """Learn a byte-level BPE of at most `vocab_size` tokens, special tokens included.

    It is lossless on any text, and the same texts give the same tokenizer. Little text gives
    fewer tokens than asked for: a pair that occurs less than `min_frequency` times is not merged.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    vocab_size = COUNT.check("vocab_size", vocab_size)
    min_frequency = COUNT.check("min_frequency", min_frequency)
    if vocab_size < SMALLEST:
        raise ConfigError(
            f"vocab_size must be at least {SMALLEST} (256 bytes, {len(SPECIAL)} special tokens); "
            f"got {vocab_size}"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = _texts(texts)
    first = next(texts, None)
    if first is None:
        raise DataError(
            "no text to learn a tokenizer from: every document is blank; give some text"
        )
    try:
        backend.train_from_iterator(itertools.chain([first], texts), trainer)
    except UnicodeEncodeError as error:
        raise DataError(f"a text has half a character in it ({error}); give whole ones") from error
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        mask_token=MASK,
        clean_up_tokenization_spaces=False,
    )


def _texts(given: Iterable[str]) -> Iterator[str]:
    try:
        texts = None if isinstance(given, str | bytes) else iter(given)
    except TypeError:
        texts = None
    if texts is None:
        raise DataError(f"a tokenizer is learnt from a list of texts, got {shown(given)}")
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            raise DataError(f"text {number} must be text, got {shown(text)}")
        yield text
