import json
import pickle

import numpy as np
import pytest

from sfumato.data import PairRows, Pairs, PreparedPairs, Rows, Source, prepare, prepare_pairs
from sfumato.data.journal import Progress
from sfumato.data.rows import open_rows
from sfumato.data.sentences import cut_first
from sfumato.data.special_tokens import special_ids
from sfumato.data.tokenizer import encode
from sfumato.errors import ConfigError, DataError
from sfumato.types import ABSENT

STORIES = [f"Tom saw {n} cats. He gave them milk. Then {n} dogs came." for n in range(40)]


def jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Source(str(path))


def two_fields(tmp_path, records=None, **options) -> Pairs:
    records = records or [
        {"ask": f"How many? {n}", "say": f"It is {n} of them."} for n in range(40)
    ]
    return Pairs(jsonl(tmp_path / "pairs.jsonl", records), "ask", "say", **options)


def stories(tmp_path, texts=STORIES, **options) -> Pairs:
    return Pairs(jsonl(tmp_path / "stories.jsonl", [{"text": text} for text in texts]), **options)


def made(pairs, out, **options) -> PreparedPairs:
    return prepare_pairs(
        pairs, out, **{"vocab_size": 300, "validation": 0.2, "workers": 1} | options
    )


def documents(side, split):
    tokens, ends = side.split(split)
    return [part.tolist() for part in np.split(tokens, ends)[:-1]]


@pytest.mark.parametrize(
    ("text", "first", "rest"),
    [
        ("A cat sat. It ran.", "A cat sat.", "It ran."),
        ('"Hello!" said Tom. He left.', '"Hello!" said Tom.', "He left."),
        ('He said, "Go." She went.', 'He said, "Go."', "She went."),
        ("Mr. Fox met Dr. Bear. They ate.", "Mr. Fox met Dr. Bear.", "They ate."),
        ("It cost 3.50 pounds. Wow!", "It cost 3.50 pounds.", "Wow!"),
        ("What?! No... Yes.", "What?!", "No... Yes."),
        ("The Cat\n\nonce upon a time", "The Cat", "once upon a time"),
        ("  \n\nA cat.\nA dog. ", "A cat.", "A dog."),
        ("Only one.", "Only one.", ""),
        ("no end at all", "no end at all", ""),
        (
            "\u5f7c\u306f\u884c\u3063\u305f\u3002\u6765\u305f\u3002",
            "\u5f7c\u306f\u884c\u3063\u305f\u3002",
            "\u6765\u305f\u3002",
        ),
        ("\u00c9t\u00e9 ici. \u00c9mile part.", "\u00c9t\u00e9 ici.", "\u00c9mile part."),
        ("", "", ""),
    ],
)
def test_the_first_sentence(text, first, rest):
    assert cut_first(text) == (first, rest)


@pytest.mark.parametrize("kind", [two_fields, stories])
def test_every_pair_is_there_once_side_by_side(kind, tmp_path):
    pairs = kind(tmp_path)
    done = made(pairs, tmp_path / "out")
    tokenizer = done.tokenizer()
    special = special_ids(tokenizer)
    found = []
    for split in ("train", "validation"):
        sides = [documents(side, split) for side in (done.sources, done.targets)]
        assert len(sides[0]) == len(sides[1]) == done.facts["pairs"][split] > 0
        found += list(zip(*sides, strict=True))
    wanted = []
    for pair in pairs:
        texts = encode(tokenizer, [pair.source, pair.target])
        # one begin and one end, never two
        wanted.append(tuple([special.bos, *ids, special.eos] for ids in texts))
    assert sorted(found) == sorted(wanted)
    assert len(wanted) == 40
    assert done.facts["skipped"] == {}


def test_stories_are_held_out_where_they_are_held_out_whole(tmp_path):
    pairs = stories(tmp_path)
    done = made(pairs, tmp_path / "out")
    whole = prepare(pairs.source, tmp_path / "whole", done.tokenizer(), validation=0.2, workers=1)
    for split in ("train", "validation"):
        texts = [done.tokenizer().decode(ids[1:-1]) for ids in documents(whole, split)]
        sides = [
            [done.tokenizer().decode(ids[1:-1]) for ids in documents(side, split)]
            for side in (done.sources, done.targets)
        ]
        assert texts == [f"{first} {rest}" for first, rest in zip(*sides, strict=True)]
    alone = prepare(pairs.source, tmp_path / "trained", vocab_size=300, workers=1)
    assert alone.facts["tokenizer"]["fingerprint"] == done.targets.facts["tokenizer"]["fingerprint"]


EMPTY = [
    {"ask": "a b", "say": "c d"},
    {"ask": " ", "say": "c"},
    {"ask": "a", "say": None},
    {"ask": "", "say": ""},
    {"ask": "x", "say": "y"},
]


def test_an_empty_side_is_an_error_that_names_the_record(tmp_path):
    with pytest.raises(DataError, match=r"record 2: empty source in a pair; .*--skip-empty"):
        made(two_fields(tmp_path, EMPTY), tmp_path / "out")
    with pytest.raises(DataError, match="record 1: empty target"):
        made(two_fields(tmp_path, EMPTY[2:]), tmp_path / "out2")
    with pytest.raises(DataError, match="document 2: empty target"):
        made(stories(tmp_path, ["One. Two.", "Only one."]), tmp_path / "out3")


def test_or_it_is_counted_with_its_reason(tmp_path):
    done = made(two_fields(tmp_path, EMPTY, skip_empty=True), tmp_path / "out", validation=0)
    assert done.facts["pairs"] == {"train": 2, "validation": 0}
    assert done.facts["skipped"] == {"empty source": 1, "empty target": 1, "blank": 1}
    blank = made(two_fields(tmp_path, [EMPTY[0], EMPTY[3]]), tmp_path / "blank", validation=0)
    assert blank.facts["skipped"] == {"blank": 1}
    with pytest.raises(DataError, match="no text in"):
        made(two_fields(tmp_path, EMPTY[1:3], skip_empty=True), tmp_path / "none")


def test_bad_input_is_refused_with_its_place(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b'{"ask": "a", "say": "b"}\n{"ask": "caf\xe9", "say": "b"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2: not UTF-8"):
        made(Pairs(Source(str(bad)), "ask", "say"), tmp_path / "out")
    with pytest.raises(DataError, match="no field 'reply'; choose one of the fields there are"):
        made(replace_target(two_fields(tmp_path), "reply"), tmp_path / "out2")
    text = tmp_path / "a.txt"
    text.write_text("a\nb\n")
    with pytest.raises(DataError, match="has no fields"):
        made(Pairs(Source(str(text)), "ask", "say"), tmp_path / "out3")
    with pytest.raises(ConfigError, match="give both"):
        Pairs(Source(str(text)), "ask")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.md").write_text("mine")
    with pytest.raises(DataError, match=r"holds other files \(notes\.md\)"):
        made(two_fields(tmp_path), tmp_path / "full")


def replace_target(pairs: Pairs, field: str) -> Pairs:
    return Pairs(pairs.source, pairs.source_field, field)


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [1, 3, 9, 11])
def test_a_killed_preparation_goes_on_to_the_same_bytes(tmp_path, after):
    pairs = two_fields(tmp_path)
    whole = made(pairs, tmp_path / "whole", shard=100)
    seen = []

    def kill(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == after:
            raise Killed

    with pytest.raises(Killed):
        made(pairs, tmp_path / "out", shard=100, progress=kill)
    with pytest.raises(DataError, match="interrupted; run the same prepare"):
        PreparedPairs.open(tmp_path / "out")
    again = made(pairs, tmp_path / "out", shard=100)
    assert again.fingerprint == whole.fingerprint
    assert again.facts == whole.facts
    assert made(pairs, tmp_path / "out", shard=100).facts == whole.facts
    with pytest.raises(DataError, match="holds another preparation"):
        made(Pairs(pairs.source, "say", "ask"), tmp_path / "out", shard=100)


def test_a_limit_counts_records(tmp_path):
    pairs = two_fields(tmp_path)
    limited = Pairs(Source(pairs.source.name, limit=7), "ask", "say")
    assert [pair.target for pair in limited] == [pair.target for pair in pairs][:7]


def test_rows_come_with_their_sources(tmp_path):
    texts = [*STORIES, "Long. " + "He ran and ran. " * 8]
    done = made(stories(tmp_path, texts), tmp_path / "out", validation=0)
    rows = PairRows(done.folder, length=24)
    plain = Rows(done.folder / "targets", length=24, layout="padded")
    assert len(rows) == len(plain) > len(texts)
    taken = rows.batch(np.arange(len(rows)))
    for name, values in plain.batch(np.arange(len(rows))).items():
        assert np.array_equal(taken[name], values)
    sources = documents(done.sources, "train")
    targets = documents(done.targets, "train")
    expected = [s for s, t in zip(sources, targets, strict=True) for _ in range(-(-len(t) // 24))]
    for row, wanted in zip(taken["source"].tolist(), expected, strict=True):
        assert row == [ABSENT] * (len(row) - len(wanted)) + wanted
    assert done.longest_source == max(map(len, sources)) == taken["source"].shape[1]
    narrow = rows.batch([0])["source"]
    assert narrow.tolist() == [sources[0]]
    again = pickle.loads(pickle.dumps(rows))
    assert np.array_equal(again[3]["source"], rows[3]["source"])
    assert isinstance(open_rows(done.folder, "train", length=24, layout="padded"), PairRows)
    with pytest.raises(ConfigError, match="pairs need a row of their own each"):
        open_rows(done.folder, "train", length=24, layout="packed")


def test_sides_that_do_not_belong_together_are_refused(tmp_path):
    done = made(two_fields(tmp_path), tmp_path / "one")
    other = made(stories(tmp_path), tmp_path / "two")
    (done.folder / "sources").rename(tmp_path / "old")
    (other.folder / "sources").rename(done.folder / "sources")
    with pytest.raises(DataError, match="do not belong together"):
        PreparedPairs.open(done.folder)
