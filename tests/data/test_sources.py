"""Sources give every document once, whole and unchanged, and name what they cannot read."""

import bz2
import csv
import gzip
import itertools
import json
import lzma
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from local_hub import COMMIT, environment, serve

from sfumato.data import Source, encode, train_tokenizer
from sfumato.data.documents import PIECE, Piece, cut, split_text
from sfumato.data.tally import Tally, tell
from sfumato.errors import ConfigError, DataError

TEXTS = [
    "One day, a cat sat.",
    'He said "hi",\nand then <|endoftext|> went on.\n\nEnd.',
    "caf\u00e9 \U0001f600",
]


def write(path, texts=TEXTS, field="text"):
    """The texts in the format that the name's ending asks for."""
    opened, name = gzip.open if path.suffix == ".gz" else open, path.name.lower()
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"n": range(len(texts)), field: texts}), path)
        return path
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        if ".json" in name or ".ndjson" in name:
            file.writelines(json.dumps({"n": n, field: t}) + "\n" for n, t in enumerate(texts))
        elif ".csv" in name or ".tsv" in name:
            writer = csv.writer(file, delimiter="\t" if ".tsv" in name else ",")
            writer.writerow(["n", field])
            writer.writerows(enumerate(texts))
        else:
            file.write("\n<|endoftext|>\n".join(texts))
    return path


FORMATS = [
    "a.txt",
    "a.jsonl",
    "a.csv",
    "a.parquet",
    "a.txt.gz",
    "a.jsonl.gz",
    "a.csv.gz",
    "A.JSONL",
    "a.ndjson",
    "a.json",
    "a.tsv",
    "a.json.gz",
]


@pytest.mark.parametrize("name", FORMATS)
def test_documents_come_back_unchanged(tmp_path, name):
    path = write(tmp_path / name)
    assert list(Source(str(path)).documents()) == TEXTS


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_another_field_can_be_chosen(tmp_path, name):
    path = write(tmp_path / name, field="story")
    assert list(Source(str(path), field="story").documents()) == TEXTS
    with pytest.raises(DataError, match=r"no field 'text'; .* there are: n, story"):
        list(Source(str(path)).documents())


def test_a_folder_is_read_in_the_order_of_names(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".cache").mkdir()
    write(tmp_path / "b.jsonl", ["second"])
    write(tmp_path / "a.txt", ["first"])
    write(tmp_path / "sub" / "c.csv", ["third"])
    write(tmp_path / ".cache" / "hidden.txt", ["never"])
    (tmp_path / "notes.md").write_text("never")
    assert list(Source(str(tmp_path)).documents()) == ["first", "second", "third"]


def test_a_sample_takes_from_every_file(tmp_path):
    write(tmp_path / "a.jsonl", ["a" * 10] * 1000)
    write(tmp_path / "b.jsonl", ["b" * 10] * 1000)
    write(tmp_path / "c.jsonl", ["c" * 10] * 2)
    text = "".join(Source(str(tmp_path)).sample(320))
    assert {letter: text.count(letter) for letter in "abc"} == {"a": 150, "b": 150, "c": 20}
    limited = Source(str(tmp_path), limit=3)
    assert list(limited.sample(10**6)) == list(limited.documents())


def test_blank_documents_are_left_out_and_the_limit_counts_the_rest(tmp_path):
    path = write(tmp_path / "a.jsonl", ["", "one", " \n", None, "two", "three"])
    assert list(Source(str(path)).documents()) == ["one", "two", "three"]
    assert list(Source(str(path), limit=2).documents()) == ["one", "two"]
    with pytest.raises(ConfigError, match="limit of a source must be at least 1 document, got 0"):
        Source(str(path), limit=0)


@pytest.mark.parametrize(
    ("separator", "documents"),
    [
        ("<|endoftext|>", ["a\n\nb", "c <|endoftext|> d\n---\ne\r\nf"]),
        ("---", ["a\n\nb\n<|endoftext|>\nc <|endoftext|> d", "e\r\nf"]),
        ("", ["a", "b\n<|endoftext|>\nc <|endoftext|> d\n---\ne\r\nf"]),
        ("\n", ["a", "b", "<|endoftext|>", "c <|endoftext|> d", "---", "e", "f"]),
        (None, ["a\n\nb\n<|endoftext|>\nc <|endoftext|> d\n---\ne\r\nf"]),
    ],
)
def test_a_text_file_is_split_at_lines_that_are_the_separator(tmp_path, separator, documents):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\n\nb\n<|endoftext|>\nc <|endoftext|> d\n---\ne\r\nf\n")
    assert list(Source(str(path), separator=separator).documents()) == documents


def split_whole_text(text: str, separator: str | None) -> list[str]:
    """Line by line over the whole text: slow and obvious."""
    documents = [""]
    for line in re.findall(r"[^\n]*\n|[^\n]+$", text):
        content = line.removesuffix("\n").removesuffix("\r")
        if separator == "\n":
            documents += [content]
        elif separator is not None and content.rstrip(" \t") == separator:
            documents += [""]
        else:
            documents[-1] += line
    return [d.strip("\r\n") for d in documents if d.strip()]


@settings(max_examples=500, deadline=None)
@given(
    text=st.text(alphabet="a# \n\r\t", max_size=40),
    separator=st.sampled_from(["##", "", "\n", None]),
    cuts=st.lists(st.integers(0, 40), max_size=6),
)
def test_splitting_does_not_depend_on_how_the_file_is_read(text, separator, cuts):
    text = re.sub(r"\r(?!\n)", "", text)  # line ends are \n or \r\n
    places = [0, *sorted(min(c, len(text)) for c in cuts), len(text)]
    blocks = [text[a:b] for a, b in itertools.pairwise(places)]
    documents = [piece.text for piece in cut(split_text(blocks, separator), None)]
    assert documents == split_whole_text(text, separator)


@settings(max_examples=300, deadline=None)
@given(
    chunks=st.lists(st.tuples(st.text(alphabet="ab \n", max_size=12), st.booleans()), max_size=12),
    size=st.integers(1, 9),
)
def test_pieces_join_to_the_documents(chunks, size):
    chunks = [*(Piece(*chunk) for chunk in chunks), Piece("end", True)]
    whole = [piece.text for piece in cut(chunks, None)]
    joined = [""]
    for piece in cut(chunks, size):
        assert 1 <= len(piece.text) <= size
        joined[-1] += piece.text
        joined += [""] if piece.ends else []
    # A long blank document comes through in pieces; it is only dropped when it fits in one.
    assert [text for text in joined[:-1] if text.strip()] == whole


def test_cutting_changes_no_token():
    draw = random.Random(0)
    words = ["Lily", "ran,", "and (then)", "she's", "'I can't!'", "12", "Did she?\n\n", "\tend."]
    text = "".join(draw.choice(words) + " " * draw.randrange(5) for _ in range(800))
    tokenizer = train_tokenizer([text] * 2, 400)
    pieces = [piece.text for piece in cut([Piece(text, True)], 50)]
    assert len(pieces) > 40
    assert (
        list(itertools.chain.from_iterable(encode(tokenizer, pieces)))
        == encode(tokenizer, [text])[0]
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize("end", [" ", "\n\n"], ids=["one line", "paragraphs"])
def test_a_document_of_any_size_passes_through_bounded_memory(tmp_path, end):
    path = tmp_path / "long.txt"
    with path.open("w") as file:
        for _ in range(40):
            file.write(("word " * 199 + "word" + end) * 1000)
    script = (
        "import re, sys\n"
        "from sfumato.data.sources import Source\n"
        "peak = lambda: int(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "size = early = 0\n"
        "for piece in Source(sys.argv[1], separator=None).pieces():\n"
        "    size += len(piece.text)\n"
        "    early = early or (size > 5e6 and peak())\n"
        "print(size, peak() / early)"
    )
    command = [sys.executable, "-c", script, path]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert int(answer[0]) == 40_000_000 + 40_000 * (len(end) - 1) - len(end.strip(" "))
    assert float(answer[1]) < 1.5


def test_long_documents_come_in_pieces_and_short_ones_whole(tmp_path):
    long = "word " * PIECE
    path = write(tmp_path / "a.jsonl", ["short", long])
    pieces = list(Source(str(path)).pieces())
    assert pieces[0] == Piece("short", True)
    assert "".join(piece.text for piece in pieces[1:]) == long
    assert [piece.ends for piece in pieces[1:]] == [False] * (len(pieces) - 2) + [True]
    assert list(Source(str(path)).documents()) == ["short", long]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt is empty"),
        ("a.txt", b"\x89PNG\x00\x00", "a.txt is a binary file"),
        ("a.txt", b"text " * 2000 + b"\0", "a.txt is a binary file .a zero byte after byte 0"),
        ("a.txt", b"text " * 20000 + b"\0", "a.txt is a binary file .a zero byte after byte 65536"),
        ("a.csv", b"text\n" + b"text " * 2000 + b"\0", "a.csv is a binary file"),
        ("a.jsonl", b'{"text": "a"}\n' * 999 + b"\0", "a.jsonl is a binary .* in line 1000"),
        ("a.txt", b"o\0n\0e\0", "binary file .*, or UTF-16 without a byte order mark"),
        (
            "a.txt",
            gzip.compress(b"text", mtime=0),
            r"a.txt is gzip data; name it as such: \.gz at the end",
        ),
        ("a.jsonl", bz2.compress(b"text"), "a.jsonl is packed by bzip2; unpack it"),
        ("a.csv", lzma.compress(b"text"), "a.csv is packed by xz; unpack it"),
        ("a.txt", b"good\ncaf\xe9 noir", "a.txt, byte 8: not UTF-8 .* iconv -f cp1252 -t utf-8"),
        ("a.txt", b"He said \x93hi\x94", "a.txt, byte 8: not UTF-8 .* iconv -f cp1252 -t utf-8"),
        ("a.txt", "split at the end: \u00e9".encode()[:-1], "a.txt, byte 18: not UTF-8"),
        ("a.txt.gz", b"no gzip at all", "a.txt.gz is not a whole gzip file"),
        (
            "a.txt.gz",
            gzip.compress(b"word " * 9999, mtime=0)[:-20],
            "a.txt.gz is not a whole gzip file",
        ),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', "a.jsonl, line 2: broken JSON .* column"),
        ("a.jsonl", b'{"text": "a', r"line 1: broken JSON \(Unterminated string.* at column 10\)"),
        ("a.jsonl", b'{"text": "a"}\n\n["b"]\n', "a.jsonl, line 3: a JSON list; expected an obj"),
        ("a.jsonl", b'{"story": "a", "n": 1}', "line 1: no field 'text'; .* there are: n, story"),
        ("a.jsonl", b'{"text": 5}', "line 1: expected text in field 'text', got 5"),
        ("a.jsonl", b'{"text": ["a"]}', "line 1: expected text in field 'text', got ..a"),
        ("a.jsonl", b'[\n  {"text": "a"}\n]', r"line 1: broken JSON .* column 2.*file named .json"),
        ("a.jsonl", b'{\n"text": "a"}', r"line 1: broken JSON .* column 2.*file named .json"),
        (
            "a.jsonl",
            b'{"n": %s, "text": ""}' % (b"9" * 4301),
            "a number of too many digits",
        ),
        ("a.jsonl", b'{"n": %s' % (b"[" * 99999), "line 1: JSON nested too deeply"),
        ("a.jsonl", b'{"text": "a", "text": "b"}', "line 1: the field 'text' stands there twice"),
        (
            "a.jsonl",
            b'{"text": "a", "te\\u0078t": "b"}',
            "the field 'text' stands there twice",
        ),
        ("a.json", b'[{"text": "a"}, 5]', "a.json, item 2: a JSON int; expected an object"),
        ("a.json", b'{"data": [{"text": "a"}]}', "without the field 'text'.*the one under 'data'"),
        ("a.json", b'[{"text": "a"},\n{"text"]', "a.json, line 2: broken JSON .* at column 8"),
        ("a.json", b'[{"text": "a", "text": "b"}]', "item 1: the field 'text' stands there twice"),
        ("a.csv", b"text,n,text\na,1,b\n", "line 1: the field 'text' stands there twice"),
        ("a.csv", b'text;n\n"a" b;1\n', "line 2: broken CSV .* hold ';' or quotes"),
        ("a.tsv", b"n\ttext\n1\ta\tb\n", "a.tsv, line 2: expected 2 fields as in line 1, got 3"),
        ("a.jsonl", b'{"text": "caf\xe9"}', "a.jsonl, line 1: not UTF-8"),
        ("a.jsonl", b'{"text": "\\ud83d"}', "line 1: half a surrogate pair"),
        ("a.csv", b"n,text\n1,a\n2,b,c\n", "a.csv, line 3: expected 2 fields"),
        ("a.csv", b"n,text\n1,a\n2\n", "a.csv, line 3: expected 2 fields"),
        ("a.csv", b'n,text\n1,"a" b\n', "a.csv, line 2: broken CSV .*; quote texts"),
        ("a.csv", b"n,story\n1,a\n", "a.csv, line 1: no field 'text'; .* there are: n, story"),
        ("a.csv", b"\n", "a.csv, line 1: no field 'text'; .* there are: none"),
        ("a.parquet", b"PAR1 no more", "a.parquet is not a whole parquet file"),
        ("a.pdf", b"%PDF", "a.pdf: unknown format; expected one of .txt, .jsonl"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(Source(str(path)).documents())


def test_two_columns_of_one_name_in_parquet_are_refused_where_they_are_wanted(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [pa.array(values) for values in (["a"], ["b"], ["1"], ["2"], ["3"])]
    table = pa.Table.from_arrays(columns, names=["text", "text", "n", "n", "story"])
    pq.write_table(table, tmp_path / "a.parquet")
    name = str(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: the field 'text' stands there twice"):
        list(Source(name).documents())
    assert list(Source(name, field="story").documents()) == ["3"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "one\n<|endoftext|>\ncaf\u00e9"),
        ("a.jsonl", '{"text": "one"}\n\n{"text": "caf\u00e9"}\n'),
        ("a.ndjson", '{"text": "one"}\n{"text": "caf\u00e9"}\n'),
        ("a.json", '[\n{"text": "one"},\n{"text": "caf\u00e9"}\n]'),
        ("a.json", '{"text": "one"}\n{"text": "caf\u00e9", "n": 1}\n'),
        ("a.csv", "n,text\n1,one\n\n2,caf\u00e9\n"),
        ("a.csv", "n;text\n1;one\n2;caf\u00e9\n"),
        ("a.tsv", "n\ttext\n1\tone\n2\tcaf\u00e9\n"),
        ("a.tsv", "text,n\none,1\ncaf\u00e9,2\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
def test_a_byte_order_mark_says_how_text_is_spelt(tmp_path, name, content, encoding):
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    path = tmp_path / name
    path.write_bytes((mark + content).encode(encoding))
    tally = Tally()
    assert [p.text for p in Source(str(path)).pieces(tally=tally)] == ["one", "caf\u00e9"]
    assert any("UTF-" in note for note in tally.notes) == (not encoding.startswith("utf-8"))
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert list(Source(str(tmp_path / f"{name}.gz")).documents()) == ["one", "caf\u00e9"]


def test_what_is_left_out_is_counted(tmp_path):
    for name in ("empty.txt", "empty.jsonl", ".hidden.txt", "notes.md", "README", "b.md"):
        (tmp_path / name).write_text("never" if "empty" not in name else "")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden.txt").write_text("never")
    (tmp_path / "broken.txt").symlink_to("nowhere")
    (tmp_path / "linked").symlink_to(tmp_path / ".git")
    (tmp_path / "blank.txt").write_text("\n \n")
    (tmp_path / "a.jsonl").write_text('{"text": "one", "n": 1}\n\n{"text": " "}\n{"text": null}\n')
    (tmp_path / "c.csv").write_text("id,text\n1,two\n\n2,\n")
    tally = Tally()
    assert [p.text for p in Source(str(tmp_path)).pieces(tally=tally)] == ["one", "two"]
    found = tally.as_dict()
    assert found == {
        "files": {".csv": 1, ".jsonl": 1, ".txt": 1},
        "left_out": {
            "blank documents": 4,
            "blank lines": 2,
            "empty files": 2,
            "files of other kinds": 3,
            "files without text": 1,
            "hidden files and folders": 2,
            "links to folders or to nothing": 2,
        },
        "other_kinds": {".md": 2, "README": 1},
        "columns_not_taken": ["id", "n"],
    }
    assert tell(found)[0] == "read: 1 .csv, 1 .jsonl, 1 .txt"
    assert "left out, files of other kinds: 3 (.md 2, README 1)" in tell(found)
    assert tell(found)[-1] == "columns not taken: id, n"


@pytest.mark.parametrize(
    ("text", "separator", "blank"),
    [
        ("a\n\nb\n", "\n", 1),
        ("\n\na\n \n", "\n", 3),
        ("##\na\n##\n##\nb\n##\n", "##", 1),
        ("\n\na\n\n\n\nb\n\n", "", 0),
    ],
)
def test_blank_lines_and_documents_of_text_are_counted(tmp_path, text, separator, blank):
    (tmp_path / "a.txt").write_text(text)
    tally = Tally()
    pieces = Source(str(tmp_path / "a.txt"), separator=separator).pieces(tally=tally)
    assert [piece.text for piece in pieces] == ["a", "b"][: 1 + ("b" in text)]
    assert tally.left_out["blank documents"] == blank


def test_a_folder_of_nothing_but_empty_files_is_refused(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(DataError, match="holds no file of a known format with something in it"):
        Source(str(tmp_path)).files()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": 5}, "name of a source must be text, got 5"),
        ({"name": ""}, "got ''"),
        ({"name": "a\0b"}, "a source is a file, a folder or a data set's name"),
        ({"name": "a", "field": None}, "field of a source must be text, got None"),
        ({"name": "a", "separator": 1}, "separator of a source must be text, got 1"),
        ({"name": "a", "limit": "3"}, "limit of a source must be at least 1 document, got '3'"),
        ({"name": "a", "limit": True}, "limit of a source must be at least 1 document, got True"),
        ({"name": "a", "streaming": 1}, "streaming of a source must be True or False, got 1"),
    ],
)
def test_options_of_a_wrong_type_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        Source(**options)


def test_a_file_that_goes_away_is_named(tmp_path):
    write(tmp_path / "a.txt", ["one"])
    path = write(tmp_path / "b.txt", ["two"])
    documents = Source(str(tmp_path)).documents()
    assert next(documents) == "one"
    path.unlink()
    with pytest.raises(DataError, match=r"cannot read .*b.txt: No such file"):
        next(documents)


def test_a_missing_place_is_named(tmp_path, monkeypatch):
    write(tmp_path / "stories.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no file or folder .*did you mean stories.jsonl"):
        Source(str(tmp_path / "storys.jsonl")).files()
    with pytest.raises(DataError, match=r"no file or folder .*nothing/like/it; check the path"):
        Source(str(tmp_path / "nothing" / "like" / "it")).files()
    monkeypatch.chdir(tmp_path)  # the name could be one on the hub
    with pytest.raises(DataError, match=r"jsnl here \(did you mean stories.jsonl\?\), and cannot"):
        list(Source("stories.jsnl").documents())
    with pytest.raises(DataError, match="holds no file of a known format"):
        Source(str(tmp_path / "empty")).files()
    assert Source("roneneldan/TinyStories").files() == []


def test_a_data_set_is_read_by_its_name_on_the_hub(tmp_path):
    name = "roneneldan/TinyStories"
    data = tmp_path / "datasets" / name / "data"
    data.mkdir(parents=True)
    write(data / "train-00000-of-00001.parquet")
    write(data / "validation-00000-of-00001.parquet", ["held out"])
    sources = [
        {"name": name},
        {"name": name, "streaming": False},
        {"name": name, "split": "validation"},
        {"name": name, "field": "story"},
        {"name": name, "split": "nosuch"},
        {"name": "roneneldan/TinyStorys"},
    ]
    script = (
        "import json, sys\n"
        "from sfumato.data import Source\n"
        "from sfumato.data.tally import Tally\n"
        "from sfumato.errors import DataError\n"
        "sources, tally = json.loads(sys.argv[1]), Tally()\n"
        "list(Source(**sources[0]).pieces(tally=tally))\n"
        "print(json.dumps(tally.as_dict()))\n"
        "for options in sources:\n"
        "    try:\n"
        "        print(json.dumps(list(Source(**options).documents())))\n"
        "    except DataError as error:\n"
        "        print(json.dumps(str(error)))\n"
    )
    # A process of its own: Hugging Face's libraries read the hub's address when imported.
    with serve(tmp_path) as url:
        answers = subprocess.run(
            [sys.executable, "-c", script, json.dumps(sources)],
            check=True,
            env=environment(url, tmp_path / "cache"),
            stdout=subprocess.PIPE,
            text=True,
        ).stdout.splitlines()
    taken, streamed, loaded, held_out, field, split, missing = map(json.loads, answers)
    assert streamed == loaded == TEXTS
    assert taken == {"revision": COMMIT}
    assert tell(taken) == [f"read at revision {COMMIT}"]
    assert held_out == ["held out"]
    assert field.endswith("no field 'story'; choose one of the fields there are: n, text")
    assert "Available splits: ['train', 'validation']; check the name, split, config" in split
    assert re.search("cannot read data set roneneldan/TinyStorys.*give a file", missing)
