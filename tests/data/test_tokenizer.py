"""Tokenizers lose nothing, invent nothing, and never read text as a special token."""

import json
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_hub import environment, serve

from sfumato.data import (
    encode,
    fingerprint,
    load_tokenizer,
    save_tokenizer,
    special_ids,
    train_tokenizer,
)
from sfumato.data.special_tokens import SPECIAL
from sfumato.data.tokenizer_training import SMALLEST
from sfumato.errors import ConfigError, DataError, TokenizerError

STORY = (
    "Once upon a time there was a little girl named Lily. She loved her red ball.\n\n"
    "One day the ball rolled into the forest, where a friendly bear was sleeping under a tree."
)
ODD_TEXTS = [
    "two  spaces, a tab\tand a trailing space ",
    "\n\nline ends\r\n\n",
    "caf\u00e9 na\u00efve \u4f60\u597d e\u0301 \u2029",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "nul \x00 and \x7f",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([STORY] * 3, 320)


@settings(max_examples=200, deadline=None)
@given(text=st.text())
def test_any_text_survives(tokenizer, text):
    [ids] = encode(tokenizer, [text])
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(special_ids(tokenizer).all)


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_text_survives(tokenizer, text):
    assert tokenizer.decode(encode(tokenizer, [text])[0]) == text


def test_the_vocabulary_has_the_size_asked_for_and_the_special_tokens(tokenizer):
    assert len(tokenizer) == 320
    ids = special_ids(tokenizer)
    assert [ids.pad, ids.bos, ids.eos, ids.mask] == tokenizer.convert_tokens_to_ids(list(SPECIAL))
    assert ids.filler == ids.pad
    assert tokenizer.unk_token is None


@pytest.mark.parametrize("spelling", SPECIAL)
def test_the_spelling_of_a_special_token_is_text(tokenizer, spelling):
    text = f"he wrote {spelling}{spelling} on the wall"
    [ids] = encode(tokenizer, [text])
    assert not set(ids) & set(special_ids(tokenizer).all)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_encode_adds_and_cuts_nothing_whatever_the_tokenizer_did_before(tokenizer):
    expected = encode(tokenizer, [STORY, "a"])
    tokenizer([STORY, "a"], truncation=True, max_length=4, padding=True)
    assert tokenizer.backend_tokenizer.truncation is not None
    assert encode(tokenizer, [STORY, "a"]) == expected


def test_training_is_deterministic_across_processes():
    texts = [STORY, "abc abd abe acd ace"] * 2
    script = (
        f"from sfumato.data import *\nprint(fingerprint(train_tokenizer({texts!r}, 300)), end='')"
    )
    other = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert other.stdout.decode() == fingerprint(train_tokenizer(texts, 300))


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert fingerprint(loaded) == fingerprint(tokenizer)
    assert special_ids(loaded) == special_ids(tokenizer)
    assert encode(loaded, ODD_TEXTS) == encode(tokenizer, ODD_TEXTS)
    # The name and form that transformers 4 can read.
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in config


def test_the_fingerprint_tells_tokenizers_apart(tokenizer, tmp_path):
    smaller = train_tokenizer([STORY] * 3, 319)
    save_tokenizer(tokenizer, tmp_path)
    roles = load_tokenizer(tmp_path)
    roles.pad_token = roles.eos_token
    assert len({fingerprint(t) for t in (tokenizer, smaller, roles)}) == 3
    tokenizer([STORY], truncation=True, max_length=4)
    assert fingerprint(tokenizer) == fingerprint(train_tokenizer([STORY] * 3, 320))


def test_a_small_vocabulary_or_no_text_is_refused():
    with pytest.raises(ConfigError, match=f"at least {SMALLEST} .* got 259"):
        train_tokenizer([STORY], SMALLEST - 1)
    with pytest.raises(DataError, match="no text to learn a tokenizer from"):
        train_tokenizer([], 300)
    assert len(train_tokenizer(["ab"], SMALLEST)) == SMALLEST


def without_mask(folder: Path, **roles: str):
    """A saved tokenizer that lacks a mask token."""
    from transformers import PreTrainedTokenizerFast

    whole = train_tokenizer([STORY], 270)
    PreTrainedTokenizerFast(tokenizer_object=whole.backend_tokenizer, **roles).save_pretrained(
        folder
    )
    return folder


def test_a_missing_mask_token_is_named_and_can_be_added(tmp_path):
    folder = without_mask(tmp_path, eos_token="<|eos|>")
    with pytest.raises(TokenizerError, match=r"no mask token.*add_mask_token=True"):
        special_ids(load_tokenizer(folder))
    mended = load_tokenizer(folder, add_mask_token=True)
    # Its own special token that says "mask" gets the role; the vocabulary does not grow.
    assert special_ids(mended).mask == 3
    assert len(mended) == 270
    assert special_ids(mended).filler == mended.eos_token_id


def test_a_mask_token_is_added_where_there_is_nothing_like_it(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "<": 2}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(tmp_path)
    mended = load_tokenizer(tmp_path, add_mask_token=True)
    assert mended.mask_token == "<|mask|>"
    assert special_ids(mended).mask == len(mended) - 1 == 4
    save_tokenizer(mended, tmp_path / "mended")
    assert fingerprint(load_tokenizer(tmp_path / "mended")) == fingerprint(mended)


def test_a_tokenizer_that_ends_nothing_is_told_what_does(tmp_path):
    folder = without_mask(tmp_path)
    with pytest.raises(TokenizerError, match=r"no eos token.* --eos-token"):
        special_ids(load_tokenizer(folder, add_mask_token=True))
    mended = load_tokenizer(folder, add_mask_token=True, eos_token="<|eos|>")
    assert special_ids(mended).eos == 2
    assert len(mended) == 270, "it is one of its own"
    mended.save_pretrained(tmp_path / "mended")
    again = load_tokenizer(tmp_path / "mended", eos_token="<|eos|>")
    assert fingerprint(again) == fingerprint(mended)
    with pytest.raises(TokenizerError, match=r"ends documents with <\|eos\|>; leave </s> out"):
        load_tokenizer(tmp_path / "mended", eos_token="</s>")


def test_a_tokenizer_with_code_of_its_own_is_refused(tmp_path):
    save_tokenizer(train_tokenizer([STORY], 270), tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    path.write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(TokenizerError, match="needs its own Python code, never run here; give"):
        load_tokenizer(tmp_path)


def test_other_unfit_tokenizers_are_named(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

    with pytest.raises(TokenizerError, match="no eos token"):
        special_ids(load_tokenizer(without_mask(tmp_path, mask_token="<|mask|>")))
    both = train_tokenizer([STORY], 300)
    both.pad_token = both.mask_token
    with pytest.raises(TokenizerError, match="id 3 as mask token and for another purpose"):
        special_ids(both)
    words = Tokenizer(models.WordLevel({"<mask>": 0, "<end>": 1, "?": 2}, unk_token="?"))
    reads = PreTrainedTokenizerFast(tokenizer_object=words, mask_token="<mask>", eos_token="<end>")
    with pytest.raises(TokenizerError, match="reads the text '<mask>' as a special token"):
        special_ids(reads)
    with pytest.raises(TokenizerError, match="ByT5Tokenizer is no fast tokenizer"):
        encode(ByT5Tokenizer(), ["a"])


def test_a_tokenizer_that_is_not_there_is_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"no tokenizer folder at [.]/nowhere"):
        load_tokenizer("./nowhere")
    with pytest.raises(TokenizerError, match=f"cannot load a tokenizer from {tmp_path}"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_is_loaded_by_its_name_on_the_hub(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "models" / "some" / "tokenizer")
    script = (
        "from sfumato.data import fingerprint, load_tokenizer\n"
        "print(fingerprint(load_tokenizer('some/tokenizer')))"
    )
    with serve(tmp_path) as url:
        answer = subprocess.run(
            [sys.executable, "-c", script],
            check=True,
            env=environment(url, tmp_path / "cache"),
            stdout=subprocess.PIPE,
            text=True,
        )
    assert answer.stdout.strip() == fingerprint(tokenizer)


def foreign(folder: Path):
    if folder.name == "dream-7b-qwen2":
        from transformers import Qwen2Tokenizer

        return Qwen2Tokenizer.from_pretrained(folder)
    eos = "<|endoftext|>" if folder.name == "gpt2" else None  # its tokenizer.json names none
    return load_tokenizer(folder, add_mask_token=True, eos_token=eos)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["gpt2", "smollm2", "dream-7b-qwen2"])
def test_foreign_tokenizers_keep_text_apart_from_special_tokens(name, shared, tmp_path):
    tokenizer = foreign(shared / "tokenizers" / name)
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    ids = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    assert set(special_ids(tokenizer).all) <= ids
    for text in [f"a{s} {s}b" for s in special] + ODD_TEXTS:
        [tokens] = encode(tokenizer, [text])
        assert not set(tokens) & ids
        # Qwen's tokenizer composes accents, and says so in its normalizer.
        text = unicodedata.normalize("NFC", text) if name.endswith("qwen2") else text
        assert tokenizer.decode(tokens, skip_special_tokens=True) == text
    save_tokenizer(tokenizer, tmp_path)
    assert fingerprint(load_tokenizer(tmp_path)) == fingerprint(tokenizer)


def test_how_a_tokenizer_was_loaded_is_not_kept(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "first")
    save_tokenizer(load_tokenizer(tmp_path / "first"), tmp_path / "second")
    names = ("first", "second")
    kept = [json.loads((tmp_path / n / "tokenizer_config.json").read_text()) for n in names]
    assert not {"is_local", "local_files_only"} & set(kept[1])
