"""Preparation stores every document once, goes on after any stop, and guards its folder."""

import filecmp
import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sfumato.data import (
    Prepared,
    Source,
    encode,
    fingerprint,
    prepare,
    save_tokenizer,
    special_ids,
    train_tokenizer,
)
from sfumato.data.documents import PIECE
from sfumato.data.prepared import SPLITS, token_dtype
from sfumato.errors import ConfigError, DataError, TokenizerError

WORDS = ["the", "cat", "dog", "ran", "sat", "saw", "red", "ball", "tree", "sun", "and", "she", "no"]


def stories(count: int, seed: int = 0, copies: int = 1) -> list[str]:
    draw = random.Random(seed)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(3, 30))) + "." for _ in range(count)]
    return texts * copies


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(stories(50), 320)


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "stories.jsonl", stories(60))


def documents(prepared: Prepared, split: str) -> list[list[int]]:
    tokens, ends = prepared.split(split)
    begins = [0, *ends[:-1].tolist()]
    return [tokens[a:b].tolist() for a, b in zip(begins, ends.tolist(), strict=True)]


def texts(prepared: Prepared, split: str) -> list[str]:
    tokenizer = prepared.tokenizer()
    return [tokenizer.decode(d, skip_special_tokens=True) for d in documents(prepared, split)]


def same_folders(one: Path, other: Path) -> bool:
    def files(folder: Path) -> list[Path]:
        return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())

    equal = [filecmp.cmp(one / p, other / p, shallow=False) for p in files(one)]
    return files(one) == files(other) and all(equal)


class Stop(Exception):
    pass


def stop_after(count: int):
    seen = []

    def progress(state):
        seen.append(state)
        if len(seen) == count:
            raise Stop

    return progress


def test_every_document_is_in_one_split_whole(source, tmp_path, tokenizer):
    prepared = prepare(source, tmp_path / "out", tokenizer, validation=0.3)
    stored = {split: texts(prepared, split) for split in SPLITS}
    assert Counter(stored["train"] + stored["validation"]) == Counter(stories(60))
    # Within a split the source's order is kept.
    for split in SPLITS:
        assert stored[split] == [text for text in stories(60) if text in stored[split]]


def test_copies_are_never_in_both_splits_and_the_share_is_right(tmp_path, tokenizer):
    source = write(tmp_path / "a.jsonl", stories(2000, copies=2))
    prepared = prepare(source, tmp_path / "out", tokenizer, validation=0.1)
    held_out = texts(prepared, "validation")
    assert not set(held_out) & set(texts(prepared, "train"))
    # Of 2000 draws at 0.1: 200 and 4 standard deviations of 13.4.
    assert abs(len(set(held_out)) - 200) < 54


def test_the_split_of_a_document_depends_on_its_text_alone(tmp_path, tokenizer):
    few = prepare(write(tmp_path / "a.jsonl", stories(300)), tmp_path / "a", tokenizer)
    shuffled = stories(300)[::-1] + stories(50, seed=1)
    more = prepare(write(tmp_path / "b.jsonl", shuffled), tmp_path / "b", tokenizer)
    assert set(texts(few, "validation")) <= set(texts(more, "validation"))
    assert set(texts(few, "train")) <= set(texts(more, "train"))


def test_a_long_document_gives_its_share_to_validation(tmp_path, tokenizer):
    long = " ".join(random.Random(0).choices(WORDS, k=PIECE * 5))
    source = tmp_path / "book.txt"
    source.write_text(long + "\n")
    prepared = prepare(source, tmp_path / "out", tokenizer, validation=0.1)
    stored = {split: texts(prepared, split) for split in SPLITS}
    sizes = {split: sum(map(len, stored[split])) for split in SPLITS}
    assert sum(sizes.values()) == len(long)
    assert sizes["validation"] / len(long) == pytest.approx(0.1, abs=0.06)
    for text in stored["train"] + stored["validation"]:
        assert text in long
    # bos and eos are where the document begins and ends, and nowhere else.
    stored_ids = documents(prepared, "train") + documents(prepared, "validation")
    assert sum(ids[0] == tokenizer.bos_token_id for ids in stored_ids) == 1
    assert sum(ids[-1] == tokenizer.eos_token_id for ids in stored_ids) == 1
    assert sum(ids.count(tokenizer.bos_token_id) for ids in stored_ids) == 1


def test_a_long_document_without_validation_is_one(tmp_path, tokenizer):
    long = " ".join(random.Random(0).choices(WORDS, k=PIECE))
    source = write(tmp_path / "a.jsonl", ["before", long, "after"])
    prepared = prepare(source, tmp_path / "out", tokenizer, validation=0)
    [expected] = encode(tokenizer, [long])
    assert documents(prepared, "train")[1] == [
        tokenizer.bos_token_id,
        *expected,
        tokenizer.eos_token_id,
    ]
    assert texts(prepared, "train") == ["before", long, "after"]


def test_a_tokenizer_that_puts_a_space_before_every_text_gets_documents_whole(tmp_path):
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    # Llama 2's way; decoding takes the first space away again.
    vocab = {"\u2581": 0, "a": 1, "b": 2, "?": 3}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="?"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|eos|>", mask_token="<|mask|>"
    )
    long = "ab a b " * PIECE + "ab"
    source = write(tmp_path / "a.jsonl", [long])
    prepared = prepare(source, tmp_path / "out", tokenizer, validation=0)
    assert texts(prepared, "train") == [long]


def test_special_spellings_in_text_stay_text(tmp_path, tokenizer):
    text = "she wrote <|mask|><|eos|> and <|bos|> on the <|pad|>"
    prepared = prepare(
        write(tmp_path / "a.jsonl", [text]), tmp_path / "out", tokenizer, validation=0
    )
    [[bos, *ids, eos]] = documents(prepared, "train")
    special = special_ids(tokenizer)
    assert (bos, eos) == (special.bos, special.eos)
    assert not set(ids) & set(special.all)
    assert texts(prepared, "train") == [text]


def test_statistics_are_those_of_the_documents(source, tmp_path, tokenizer):
    prepared = prepare(source, tmp_path / "out", tokenizer, validation=0.3)
    for split in SPLITS:
        facts = prepared.facts["splits"][split]
        lengths = [len(ids) for ids in documents(prepared, split)]
        num_bytes = sum(len(text.encode()) for text in texts(prepared, split))
        assert facts["documents"] == len(lengths)
        assert facts["tokens"] == sum(lengths)
        assert facts["bytes"] == num_bytes
        assert facts["bytes_per_token"] == pytest.approx(num_bytes / sum(lengths), rel=1e-12)
        assert facts["lengths"]["mean"] == pytest.approx(np.mean(lengths), rel=1e-12)
        for percent in (1, 50, 95, 100):
            expected = np.percentile(lengths, percent, method="inverted_cdf")
            assert facts["lengths"][f"p{percent}"] == expected


def test_what_was_taken_and_left_out_is_recorded(tmp_path, tokenizer):
    folder = tmp_path / "texts"
    folder.mkdir()
    write(folder / "a.jsonl", [*stories(60), " "])
    (folder / "empty.txt").touch()
    (folder / "notes.md").write_text("mine")
    out = tmp_path / "out"
    with pytest.raises(Stop):
        prepare(folder, out, tokenizer, shard=600, progress=stop_after(3))
    found = prepare(folder, out, tokenizer, shard=600).facts["taken"]
    reasons = {"blank documents": 1, "empty files": 1, "files of other kinds": 1}
    assert found["files"] == {".jsonl": 1}
    assert found["left_out"] == reasons, "those of the part before the stop, too"


def test_a_tokenizer_is_trained_where_none_is_given(source, tmp_path):
    prepared = prepare(source, tmp_path / "out", vocab_size=300)
    assert fingerprint(prepared.tokenizer()) == fingerprint(train_tokenizer(stories(60), 300))


def test_a_tokenizer_can_be_a_folder(source, tmp_path, tokenizer):
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    by_folder = prepare(source, tmp_path / "a", tmp_path / "tokenizer")
    by_value = prepare(source, tmp_path / "b", tokenizer)
    assert by_folder.fingerprint == by_value.fingerprint


def test_big_vocabularies_get_wider_files():
    assert token_dtype(2**16) == np.dtype("<u2")
    assert token_dtype(2**16 + 1) == np.dtype("<u4")


def test_shards_and_workers_leave_no_trace_in_the_data(source, tmp_path, tokenizer):
    whole = prepare(source, tmp_path / "whole", tokenizer, validation=0.3)
    shards = prepare(source, tmp_path / "b", tokenizer, validation=0.3, shard=600, workers=3)
    assert shards.fingerprint == whole.fingerprint
    assert shards.facts["splits"] == whole.facts["splits"]


# Stops, and going on


def test_a_run_stopped_after_any_shard_goes_on_to_the_same_bytes(source, tmp_path):
    options = {"vocab_size": 300, "shard": 600, "validation": 0.3}
    seen = []
    prepare(source, tmp_path / "whole", **options, progress=seen.append)
    assert len(seen) > 5
    for count in range(1, len(seen) + 1):
        out = tmp_path / f"stopped{count}"
        with pytest.raises(Stop):
            prepare(source, out, **options, workers=1, progress=stop_after(count))
        with pytest.raises(DataError, match="interrupted; run the same prepare command again"):
            Prepared.open(out)
        rest = []
        prepare(source, out, **options, workers=3, progress=rest.append)
        assert rest == seen[count:]
        assert same_folders(out, tmp_path / "whole")


def test_a_killed_process_goes_on_to_the_same_bytes(source, tmp_path):
    script = (
        "import os, signal, sys\n"
        "from sfumato.data import prepare\n"
        "seen = []\n"
        "def progress(state):\n"
        "    seen.append(state)\n"
        "    if len(seen) == 4:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "prepare(sys.argv[1], sys.argv[2], vocab_size=300, shard=600, progress=progress)\n"
    )
    command = [sys.executable, "-c", script, source, tmp_path / "killed"]
    killed = subprocess.run(command, check=False)
    assert killed.returncode == -signal.SIGKILL
    prepare(source, tmp_path / "killed", vocab_size=300, shard=600)
    prepare(source, tmp_path / "whole", vocab_size=300, shard=600)
    assert same_folders(tmp_path / "killed", tmp_path / "whole")


def test_a_half_written_shard_is_written_again(source, tmp_path, tokenizer):
    with pytest.raises(Stop):
        prepare(source, tmp_path / "out", tokenizer, shard=600, progress=stop_after(3))
    for split in SPLITS:
        for name in ("tokens.bin", "documents.bin"):
            with (tmp_path / "out" / split / name).open("ab") as file:
                file.write(b"torn")
    (tmp_path / "out" / ".journal.json.0a1b2c3d.part").write_text("{")
    prepare(source, tmp_path / "out", tokenizer, shard=600)
    prepare(source, tmp_path / "whole", tokenizer, shard=600)
    assert same_folders(tmp_path / "out", tmp_path / "whole")


def test_a_bad_line_can_be_mended_and_the_run_goes_on(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", stories(60))
    good = path.read_text()
    path.write_text(good + '{"text": ')
    seen = []
    with pytest.raises(DataError, match="line 61: broken JSON"):
        prepare(path, tmp_path / "out", tokenizer, shard=600, progress=seen.append)
    assert seen
    path.write_text(good)
    rest = []
    prepare(path, tmp_path / "out", tokenizer, shard=600, progress=rest.append)
    prepare(path, tmp_path / "whole", tokenizer, shard=600)
    assert same_folders(tmp_path / "out", tmp_path / "whole")
    assert rest
    assert rest[0].documents > seen[-1].documents


@pytest.mark.parametrize("trained", [True, False])
def test_a_bad_first_line_can_be_mended(tmp_path, tokenizer, trained):
    path = tmp_path / "a.jsonl"
    path.write_text("{")
    how = {"vocab_size": 300} if trained else {"tokenizer": tokenizer}
    with pytest.raises(DataError, match="line 1: broken JSON"):
        prepare(path, tmp_path / "out", **how)
    write(path, stories(9))
    prepare(path, tmp_path / "out", **how)
    prepare(path, tmp_path / "whole", **how)
    assert same_folders(tmp_path / "out", tmp_path / "whole")


def test_a_source_that_changed_under_a_stopped_run_is_refused(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", stories(60))
    with pytest.raises(Stop):
        prepare(path, tmp_path / "out", tokenizer, shard=600, progress=stop_after(3))
    write(path, [stories(60)[0].swapcase(), *stories(60)[1:]])
    with pytest.raises(DataError, match="the source has changed in the part that is already"):
        prepare(path, tmp_path / "out", tokenizer, shard=600)
    write(path, stories(2))
    with pytest.raises(DataError, match="the source has changed in the part that is already"):
        prepare(path, tmp_path / "out", tokenizer, shard=600)


def test_a_full_disk_is_named_and_nothing_is_lost(source, tmp_path, tokenizer):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(Stop):
        prepare(source, tmp_path / "out", tokenizer, shard=600, progress=stop_after(1))
    # No file may grow beyond this: what a write meets is what it meets on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1200, hard))
    try:
        with pytest.raises(
            DataError, match=r"cannot write to .*out: .*make room and give the same command again"
        ):
            prepare(source, tmp_path / "out", tokenizer, shard=600)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    prepare(source, tmp_path / "out", tokenizer, shard=600)
    prepare(source, tmp_path / "whole", tokenizer, shard=600)
    assert same_folders(tmp_path / "out", tmp_path / "whole")


# Whose folder it is


def test_a_finished_preparation_is_not_done_again(source, tmp_path, tokenizer):
    first = prepare(source, tmp_path / "out", tokenizer)
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    assert {p.name for p in files} == {
        *("prepared.json", "train", "validation", "tokens.bin", "documents.bin"),
        *("tokenizer", "tokenizer.json", "tokenizer_config.json"),
    }
    seen = []
    again = prepare(source, tmp_path / "out", tokenizer, progress=seen.append)
    assert again == first
    assert not seen
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == files


def test_a_kill_at_the_very_end_leaves_nothing_to_do_but_to_tidy(source, tmp_path, tokenizer):
    with pytest.raises(Stop):
        prepare(source, tmp_path / "out", tokenizer, progress=stop_after(1))
    journal = (tmp_path / "out" / "journal.json").read_text()
    prepare(source, tmp_path / "out", tokenizer)
    prepare(source, tmp_path / "whole", tokenizer)
    (tmp_path / "out" / "journal.json").write_text(journal)
    (tmp_path / "out" / "lock").touch()
    seen = []
    prepare(source, tmp_path / "out", tokenizer, progress=seen.append)
    assert not seen
    assert same_folders(tmp_path / "out", tmp_path / "whole")


def test_a_folder_with_another_preparation_is_refused(source, tmp_path, tokenizer):
    prepare(source, tmp_path / "out", tokenizer)
    with pytest.raises(DataError, match=r"another preparation \(validation 0.05 there, 0.1 here"):
        prepare(source, tmp_path / "out", tokenizer, validation=0.1)
    with pytest.raises(DataError, match=r"another preparation \(tokenizer "):
        prepare(source, tmp_path / "out", vocab_size=300)
    other = write(tmp_path / "other.jsonl", stories(5))
    with pytest.raises(DataError, match=r"another preparation \(source .*other.jsonl"):
        prepare(other, tmp_path / "out", tokenizer)
    with pytest.raises(DataError, match=r"another preparation \(source .*limit"):
        prepare(Source(str(source), limit=5), tmp_path / "out", tokenizer)
    write(source, stories(61))
    with pytest.raises(DataError, match=r"prepared from other text: stories.jsonl changed"):
        prepare(source, tmp_path / "out", tokenizer)


def test_a_stopped_preparation_is_not_overwritten_by_another(source, tmp_path, tokenizer):
    with pytest.raises(Stop):
        prepare(source, tmp_path / "out", tokenizer, shard=600, progress=stop_after(1))
    with pytest.raises(DataError, match="another preparation"):
        prepare(source, tmp_path / "out", tokenizer, shard=700)


def test_a_folder_with_other_files_is_refused(source, tmp_path, tokenizer):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("all my work")
    with pytest.raises(DataError, match=r"holds other files .thesis.tex.; give a new or an empty"):
        prepare(source, tmp_path / "out", tokenizer)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    with pytest.raises(DataError, match=r"cannot write to .*thesis.tex: File exists"):
        prepare(source, tmp_path / "out" / "thesis.tex", tokenizer)
    with pytest.raises(ConfigError, match="lies inside the source"):
        prepare(tmp_path, tmp_path / "new", tokenizer)


def test_the_environment_is_left_as_it_was(source, tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    before = dict(os.environ)
    with pytest.raises(Stop):
        prepare(source, tmp_path / "out", tokenizer, progress=stop_after(1))
    assert dict(os.environ) == before
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    prepare(source, tmp_path / "out", tokenizer)
    assert "TOKENIZERS_PARALLELISM" not in os.environ


def test_two_preparations_into_one_folder_at_once_are_refused(source, tmp_path, tokenizer):
    refused = []

    def progress(state):
        with pytest.raises(DataError, match="another process is preparing into"):
            prepare(source, tmp_path / "out", tokenizer)
        refused.append(state)

    prepare(source, tmp_path / "out", tokenizer, progress=progress)
    assert refused


# What is checked before training


def test_data_of_another_tokenizer_are_refused(source, tmp_path, tokenizer):
    prepare(source, tmp_path / "out", tokenizer)
    other = train_tokenizer(stories(50), 280)
    message = f"fingerprint {fingerprint(tokenizer)}.*fingerprint {fingerprint(other)}"
    with pytest.raises(DataError, match=message):
        Prepared.open(tmp_path / "out", other)
    assert Prepared.open(tmp_path / "out", tokenizer).facts["tokenizer"]["vocab_size"] == len(
        tokenizer
    )


def test_damage_is_found(source, tmp_path, tokenizer):
    out = tmp_path / "out"
    prepared = prepare(source, out, tokenizer)
    prepared.verify()
    tokens = out / "train" / "tokens.bin"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=f"tokens.bin is damaged: expected {len(whole)} bytes, got"):
        Prepared.open(out)
    tokens.unlink()
    with pytest.raises(DataError, match=r"tokens.bin is damaged: .* it is missing"):
        Prepared.open(out)
    tokens.write_bytes(whole[:-1] + b"\xff")
    with pytest.raises(DataError, match="are damaged: fingerprint"):
        Prepared.open(out).verify()
    facts = json.loads((out / "prepared.json").read_text())
    (out / "prepared.json").write_text(json.dumps(facts | {"format": 99}))
    with pytest.raises(DataError, match="has format 99, expected 2"):
        Prepared.open(out)
    (out / "prepared.json").write_text("{")
    with pytest.raises(DataError, match=r"prepared.json.*; prepare into a new folder"):
        Prepared.open(out)
    with pytest.raises(DataError, match=r"no prepared data in .*; run: sfumato data prepare"):
        Prepared.open(tmp_path)


def test_a_source_without_text_is_refused(tmp_path, tokenizer):
    source = write(tmp_path / "a.jsonl", ["", " ", "\n"])
    with pytest.raises(DataError, match=r"no text in .*a.jsonl: every document is blank"):
        prepare(source, tmp_path / "out", tokenizer)
    with pytest.raises(DataError, match="no text to learn a tokenizer from"):
        prepare(source, tmp_path / "out2", vocab_size=300)


def test_bad_options_are_named(source, tmp_path, tokenizer):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="give a tokenizer, or the vocab_size"):
        prepare(source, out)
    with pytest.raises(ConfigError, match="give a tokenizer, or the vocab_size"):
        prepare(source, out, tokenizer, vocab_size=300)
    with pytest.raises(ConfigError, match=r"validation must be a share of the text .*, got 1"):
        prepare(source, out, tokenizer, validation=1)
    with pytest.raises(ConfigError, match="workers must be at least 1, got 0"):
        prepare(source, out, tokenizer, workers=0)
    maskless = train_tokenizer(stories(9), 300)
    maskless.mask_token = None
    with pytest.raises(TokenizerError, match="has no mask token"):
        prepare(source, out, maskless)
    assert not out.exists()
