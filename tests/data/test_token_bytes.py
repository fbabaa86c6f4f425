"""The bytes that tokens stand for."""

import pytest
from tiny_lm import tokenizer as tiny_tokenizer

from sfumato.data.token_bytes import token_bytes


def test_bytes_of_tokens_spell_what_they_decode_to():
    tokenizer = tiny_tokenizer()
    words = token_bytes(tokenizer, len(tokenizer) + 2)
    assert words[len(tokenizer) :] == [None, None]
    text = "A caf\u00e9 had a \u2603 on \t its roof.\n\u00ad\u00a0\x00\x7f"
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    assert b"".join(words[i] for i in ids) == text.encode()
    assert [i for i, word in enumerate(words[:-2]) if word is None] == sorted(
        tokenizer.all_special_ids
    )


def test_other_tokenizers_are_refused_by_what_they_lack():
    from tokenizers import decoders

    tokenizer = tiny_tokenizer().__class__(
        tokenizer_object=type(tiny_tokenizer().backend_tokenizer).from_str(
            tiny_tokenizer().backend_tokenizer.to_str()
        )
    )
    tokenizer.backend_tokenizer.decoder = decoders.Metaspace()
    with pytest.raises(ValueError, match="needs a byte-level tokenizer"):
        token_bytes(tokenizer, 400)
