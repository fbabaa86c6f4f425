"""What a tokenizer does not give back is refused, or counted; bytes are those of the original."""

import json
import math
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sfumato.data import Rows, encode, load_tokenizer, prepare, prepare_pairs, train_tokenizer
from sfumato.data.documents import PIECE
from sfumato.data.pairs import Pairs
from sfumato.data.round_trip import can_join, is_lossless, read_back
from sfumato.data.sources import Source
from sfumato.errors import TokenizerError

LETTERS = list("abcdefghijklmnopqrstuvwxyz .")
ROLES = {"eos_token": "<|eos|>", "mask_token": "<|mask|>", "unk_token": "[UNK]"}


def of(backend: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=backend, **ROLES)


def of_letters() -> PreTrainedTokenizerFast:
    """A BPE without merges over small letters: no token for anything else."""
    vocab = {letter: number for number, letter in enumerate(["[UNK]", *LETTERS])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="[UNK]"))
    backend.decoder = decoders.Fuse()
    return of(backend)


def of_bytes() -> Tokenizer:
    return train_tokenizer(["the cat sat"] * 3, 270).backend_tokenizer


def composing() -> PreTrainedTokenizerFast:
    """As Qwen's: accents are composed."""
    backend = of_bytes()
    backend.normalizer = normalizers.NFC()
    return of(backend)


def lowering() -> PreTrainedTokenizerFast:
    """As BERT's: small letters, words, single spaces."""
    words = ["[UNK]", "cat", "the", "sat", "##s", "a", "b", "."]
    backend = Tokenizer(models.WordPiece({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return of(backend)


def removing() -> PreTrainedTokenizerFast:
    backend = of_bytes()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("-", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return of(backend)


def spaced() -> PreTrainedTokenizerFast:
    backend = of_bytes()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return of(backend)


def swallowing() -> PreTrainedTokenizerFast:
    """A token that is no special one takes the space before it."""
    backend = of_bytes()
    backend.add_tokens([AddedToken("<tab>", lstrip=True)])
    return of(backend)


LOSSY = {
    "no token": (
        of_letters,
        "caf\u00e9",
        "document 2, character 4: 'caf\u00e9' comes back as 'caf'",
    ),
    "composed": (composing, "cafe\u0301", "document 2, character 4: 'cafe\u0301' comes back as"),
    "lowered": (lowering, "The cat", "document 2, character 1: 'The cat' comes back as 'the cat'"),
    "removed": (removing, "a-b", "document 2, character 2: 'a-b' comes back as 'ab'"),
    "spaced": (spaced, "a", "document 2, character 1: 'a' comes back as ' a'"),
    "swallowed": (swallowing, "a <tab>", "document 2, character 2: 'a <tab>' comes back as"),
}


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("kind", LOSSY)
def test_a_tokenizer_that_changes_text_is_refused_with_the_place(kind, tmp_path):
    make, text, message = LOSSY[kind]
    tokenizer, out = make(), tmp_path / "out"
    fine = "the cat sat" if kind != "spaced" else " the cat sat"
    source = write(tmp_path / "a.jsonl", [fine, text, fine, text])
    with pytest.raises(TokenizerError, match="2 of the first 4 documents") as refused:
        prepare(source, out, tokenizer, validation=0, workers=1)
    assert message in str(refused.value)
    # accepted, it is counted and recorded, and has to be accepted again
    facts = prepare(source, out, tokenizer, validation=0, workers=1, lossy=True).facts
    back = read_back(tokenizer, encode(tokenizer, [text]))[0]
    assert facts["changes"]["documents"] == 2
    counts = facts["splits"]["train"]
    assert counts["bytes"] == 2 * len(fine.encode()) + 2 * len(text.encode())
    assert counts["kept_bytes"] == counts["bytes"] + 2 * (len(back.encode()) - len(text.encode()))
    with pytest.raises(TokenizerError, match="2 of the first 4 documents"):
        prepare(source, out, tokenizer, validation=0, workers=1)
    rows = Rows(out, length=8)
    assert rows.bits_per_byte(math.log(2)) == rows.num_trainable / counts["bytes"]


def test_text_that_comes_back_is_taken_whatever_the_tokenizer(tmp_path):
    source = write(tmp_path / "a.jsonl", ["the cat sat", "cat"])
    for kind, (make, *_) in LOSSY.items():
        if kind != "spaced":
            assert prepare(source, tmp_path / kind, make()).facts["changes"]["documents"] == 0


def test_a_document_of_many_pieces_and_shards_counts_once(tmp_path):
    text = "caf\u00e9 " * PIECE
    source = write(tmp_path / "a.jsonl", ["cafe", text, "tea", text])
    found = prepare(source, tmp_path / "out", of_letters(), shard=100, lossy=True).facts
    assert found["changes"]["documents"] == 2
    assert found["changes"]["example"].startswith("document 2, character 4:")


def test_a_stop_leaves_the_count_as_it_was(tmp_path):
    class Stop(Exception):
        pass

    def stop(progress):
        raise Stop

    source = write(tmp_path / "a.jsonl", ["caf\u00e9", "tea"] * 9)
    options = {"tokenizer": of_letters(), "shard": 5, "lossy": True, "workers": 1}
    whole = prepare(source, tmp_path / "whole", **options)
    for _ in range(4):
        with pytest.raises(Stop):
            prepare(source, tmp_path / "out", **options, progress=stop)
    assert prepare(source, tmp_path / "out", **options).facts == whole.facts
    assert whole.facts["changes"]["documents"] == 9


def test_a_change_found_late_can_be_accepted_and_the_run_goes_on(tmp_path):
    source = write(tmp_path / "a.jsonl", ["tea"] * 9 + ["caf\u00e9"])
    options = {"tokenizer": of_letters(), "shard": 6, "workers": 1}
    with pytest.raises(TokenizerError, match="1 of the first 10 documents"):
        prepare(source, tmp_path / "out", **options)
    seen = []
    prepare(source, tmp_path / "out", **options, lossy=True, progress=seen.append)
    assert len(seen) == 1, "only the last shard was left"


def test_pairs_are_looked_at_too(tmp_path):
    pairs = Pairs(Source(str(write(tmp_path / "a.jsonl", ["tea is hot. One caf\u00e9."]))))
    with pytest.raises(TokenizerError, match="changes text"):
        prepare_pairs(pairs, tmp_path / "out", of_letters())
    found = prepare_pairs(pairs, tmp_path / "out", of_letters(), lossy=True)
    assert found.targets.facts["changes"]["documents"] == 1
    assert found.sources.facts["changes"]["documents"] == 0


def test_what_is_lossless_is_proved_and_the_rest_is_not():
    assert is_lossless(train_tokenizer(["the cat sat"], 270))
    assert is_lossless(of(of_bytes()))
    for make, *_ in LOSSY.values():
        assert not is_lossless(make())


@settings(max_examples=100, deadline=None)
@given(text=st.text())
def test_what_is_proved_is_true(text):
    digits = of_bytes()
    digits.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(" ", "merged_with_previous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for tokenizer in (of(of_bytes()), of(digits)):
        assert is_lossless(tokenizer)
        assert read_back(tokenizer, encode(tokenizer, [text])) == [text]


def test_words_that_get_spaces_between_them_are_not_joined():
    assert not can_join(lowering())
    assert can_join(composing())


@pytest.mark.shared
def test_qwen_composes_accents_gpt2_keeps_everything_and_smollm2_has_not_all_bytes(
    shared, tmp_path
):
    from transformers import Qwen2Tokenizer

    for name in ("gpt2", "smollm2"):
        eos = "<|endoftext|>" if name == "gpt2" else None
        other = load_tokenizer(shared / "tokenizers" / name, add_mask_token=True, eos_token=eos)
        assert is_lossless(other) == (name == "gpt2")  # SmolLM2 has no token for 21 bytes
    tokenizer = Qwen2Tokenizer.from_pretrained(shared / "tokenizers" / "dream-7b-qwen2")
    text = "cafe\u0301 na\u00efve re\u0301sume\u0301"
    source = write(tmp_path / "a.jsonl", ["plain", text])
    with pytest.raises(TokenizerError, match=r"1 of the first 2 documents .* document 2, char"):
        prepare(source, tmp_path / "out", tokenizer)
    found = prepare(source, tmp_path / "out", tokenizer, validation=0, lossy=True).facts
    kept = len("plain") + len(unicodedata.normalize("NFC", text).encode())
    assert found["splits"]["train"]["kept_bytes"] == kept
    assert found["splits"]["train"]["bytes"] == len("plain") + len(text.encode()) == kept + 3
