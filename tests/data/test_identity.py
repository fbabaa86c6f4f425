"""Prepared data are those of this text and no other: a digest of its content says so."""

import json
import os

import pytest

from sfumato.data import Pairs, Prepared, Source, prepare, prepare_pairs, train_tokenizer
from sfumato.data.identity import changed_names, digest_texts
from sfumato.data.tally import tell
from sfumato.errors import DataError

WORDS = "the cat sat on the red mat and saw the sun go down"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([WORDS], 280)


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def stories(count):
    return [f"{n:03} {WORDS}" for n in range(count)]


class Stop(Exception):
    pass


def stop_after(count):
    left = iter(range(count - 1))

    def progress(state):
        if next(left, None) is None:
            raise Stop

    return progress


@pytest.mark.parametrize("limit", [None, 9])
def test_other_text_of_the_same_size_and_date_is_not_taken_for_prepared(tmp_path, tokenizer, limit):
    path = write(tmp_path / "a.jsonl", stories(9))
    source, out = Source(str(path), limit=limit), tmp_path / "out"
    prepare(source, out, tokenizer)
    before = path.stat()
    path.write_text(path.read_text().replace("cat", "dog"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    name = "a.jsonl" if limit is None else "documents"
    with pytest.raises(DataError, match=f"from other text: {name} changed since; use another"):
        prepare(source, out, tokenizer)


def test_a_limit_does_not_read_what_it_leaves_out(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", stories(9))
    first = prepare(Source(str(path), limit=3), tmp_path / "out", tokenizer)
    write(path, [*stories(9), "more"])
    assert prepare(Source(str(path), limit=3), tmp_path / "out", tokenizer) == first


def test_the_same_text_elsewhere_is_the_same(tmp_path, tokenizer):
    for place in ("one", "two"):
        (tmp_path / place / "deep").mkdir(parents=True)
        write(tmp_path / place / "a.jsonl", stories(3))
        write(tmp_path / place / "deep" / "a.jsonl", stories(5))
    prepared = prepare(tmp_path / "one", tmp_path / "out", tokenizer)
    assert set(prepared.facts["request"]["content"]) == {"a.jsonl", "deep/a.jsonl"}
    assert prepare(tmp_path / "two", tmp_path / "out", tokenizer) == prepared
    (tmp_path / "two" / "empty.txt").touch()
    assert prepare(tmp_path / "two", tmp_path / "out", tokenizer) == prepared


@pytest.mark.parametrize("change", ["grown", "shrunk", "later", "earlier"])
def test_a_source_that_changed_after_a_stop_gives_what_a_fresh_preparation_gives(
    tmp_path, tokenizer, change
):
    path = write(tmp_path / "a.jsonl", stories(40))
    with pytest.raises(Stop):
        prepare(path, tmp_path / "out", tokenizer, shard=300, progress=stop_after(2))
    other = {
        "grown": stories(60),
        "shrunk": stories(30),
        "later": [*stories(39), "another end"],
        "earlier": ["another beginning", *stories(39)],
    }[change]
    write(path, other)
    fresh = prepare(path, tmp_path / "fresh", tokenizer, shard=300)
    if change == "earlier":
        with pytest.raises(DataError, match="has changed in the part that is already prepared"):
            prepare(path, tmp_path / "out", tokenizer, shard=300)
        return
    again = prepare(path, tmp_path / "out", tokenizer, shard=300)
    assert again.facts == fresh.facts
    assert prepare(path, tmp_path / "out", tokenizer, shard=300) == again


def test_a_tokenizer_learnt_from_text_that_changed_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", stories(40))
    with pytest.raises(Stop):
        prepare(path, tmp_path / "out", vocab_size=280, shard=300, progress=stop_after(2))
    write(path, stories(60))
    with pytest.raises(DataError, match=r"a.jsonl changed since .* its tokenizer was learnt from"):
        prepare(path, tmp_path / "out", vocab_size=280, shard=300)
    write(path, stories(40))
    prepare(path, tmp_path / "out", vocab_size=280, shard=300)


def test_a_source_that_is_written_to_meanwhile_is_refused(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", stories(40))

    def grow(progress):
        with path.open("a") as file:
            file.write('{"text": "more"}\n')

    with pytest.raises(DataError, match="was written to while it was prepared; when it is whole"):
        prepare(path, tmp_path / "out", tokenizer, progress=grow)
    with pytest.raises(DataError, match="interrupted"):
        Prepared.open(tmp_path / "out")


def test_pairs_of_other_text_are_refused(tmp_path):
    path = write(tmp_path / "a.jsonl", [f"One {n}. Two." for n in range(9)])
    pairs = Pairs(Source(str(path)))
    prepare_pairs(pairs, tmp_path / "out", vocab_size=280)
    path.write_text(path.read_text().replace("Two", "Ten"))
    with pytest.raises(DataError, match=r"other text: a\.jsonl changed since"):
        prepare_pairs(pairs, tmp_path / "out", vocab_size=280)


def test_data_of_an_older_version_are_named(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl", stories(40))
    out = tmp_path / "out"
    with pytest.raises(Stop):
        prepare(path, out, tokenizer, shard=300, progress=stop_after(2))
    journal = json.loads((out / "journal.json").read_text())
    whole = dict(journal)
    del journal["changes"]
    (out / "journal.json").write_text(json.dumps(journal))
    with pytest.raises(DataError, match=r"the key 'changes' is missing; delete .* again"):
        prepare(path, out, tokenizer, shard=300)
    (out / "journal.json").write_text(json.dumps(whole))
    facts = prepare(path, out, tokenizer, shard=300).facts
    (out / "prepared.json").write_text(json.dumps(facts | {"format": 1}))
    with pytest.raises(DataError, match="has format 1, expected 2; prepare it again"):
        prepare(path, out, tokenizer, shard=300)


def test_borders_count_in_a_digest_and_names_are_told():
    assert digest_texts(["ab", "c"]) != digest_texts(["a", "bc"])
    old = dict.fromkeys("abcde", "1")
    assert changed_names(old, {}) == "a, b, c and 2 more"
    assert changed_names(old, {**old, "b": "2"}) == "b"


# --- one big text file ---


def documents(prepared, split):
    tokens, ends = prepared.split(split)
    begins = [0, *ends[:-1].tolist()]
    pairs = zip(begins, ends.tolist(), strict=True)
    return [prepared.tokenizer().decode(tokens[a:b].tolist()) for a, b in pairs]


def test_one_text_file_is_cut_at_its_blank_lines(tmp_path, tokenizer):
    path = tmp_path / "big.txt"
    path.write_text("\n\n".join(stories(300)))
    prepared = prepare(path, tmp_path / "out", tokenizer)
    held = documents(prepared, "validation")
    assert len(held) + len(documents(prepared, "train")) == 300
    assert 3 <= len(held) <= 40
    [note] = prepared.facts["taken"]["notes"]
    assert note.startswith("big.txt has no line that is <|endoftext|>: cut at its blank lines")
    assert note in tell(prepared.facts["taken"])


@pytest.mark.parametrize("size", [100, 5000, 400_000])
@pytest.mark.parametrize("end", [" ", "\n"])
def test_of_one_text_without_borders_the_end_is_held_out(tmp_path, tokenizer, size, end):
    path = tmp_path / "big.txt"
    text = "".join(f"{WORDS[: 7 + n % 40]} {n}{end}" for n in range(size // 20))[:size].strip()
    path.write_text(text + "\n\n\n")
    options = {"validation": 0.1, "shard": 100_000, "workers": 1}
    prepared = prepare(path, tmp_path / "out", tokenizer, **options)
    [learnt], [held] = documents(prepared, "train"), documents(prepared, "validation")
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    assert learnt + held == f"{bos}{text}{eos}"
    assert len(held) - len(eos) == pytest.approx(0.1 * len(text), abs=60)
    assert "one document (see --separator)" in prepared.facts["taken"]["notes"][0]
    with pytest.raises(Stop):
        prepare(path, tmp_path / "again", tokenizer, **options, progress=stop_after(1))
    assert prepare(path, tmp_path / "again", tokenizer, **options).facts == prepared.facts
    whole = prepare(path, tmp_path / "whole", tokenizer, validation=0)
    assert documents(whole, "train") == [f"{bos}{text}{eos}"]


def test_a_stopped_preparation_of_one_text_does_not_go_on_when_it_grew(tmp_path, tokenizer):
    path = tmp_path / "big.txt"
    path.write_text(WORDS * 100)
    with pytest.raises(Stop):
        prepare(path, tmp_path / "out", tokenizer, shard=100, progress=stop_after(1))
    path.write_text(WORDS * 200)
    with pytest.raises(DataError, match=r"big.txt changed since .* the end to hold out was found"):
        prepare(path, tmp_path / "out", tokenizer, shard=100)


@pytest.mark.parametrize("files", [1, 2])
def test_texts_with_separators_and_several_files_are_as_they_were(tmp_path, files):
    text = "\n\n".join(stories(200))
    for number in range(files):
        marked = text.replace("100 the", "\n<|endoftext|>\n100 the") if files == 1 else text
        (tmp_path / f"{number}.txt").write_text(marked)
    found = list(Source(str(tmp_path)).documents())
    assert len(found) == 2
    assert Source(str(tmp_path)).one_text() is None
