"""Work is linear in the text: ten times the text takes ten times the time, not a hundred.

Each case is the shape of text that once took, or could take, the square of its size.
"""

import csv
import json
import time

import pytest

from sfumato.data import Source, encode, train_tokenizer
from sfumato.data.documents import split_text
from sfumato.data.sentences import cut_first

SMALL, LARGE = 20_000, 200_000  # characters
WORST = 30  # times the time: 10 when linear, 100 when quadratic


def growth(work, small, large) -> float:
    """How much more processor time the larger takes: the least of a few tries of each."""

    def seconds(value):
        tries = []
        for _ in range(3):
            start = time.process_time()
            work(value)
            tries.append(time.process_time() - start)
        return min(tries)

    return seconds(large) / max(seconds(small), 1e-4)


def one_record(folder, kind, size):
    text = "word " * (size // 5)
    path = folder / f"{size}{kind}"
    if kind == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": [text]}), path)
    elif kind in (".csv", ".tsv"):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["text"], [text + "\n" + text]])
    elif kind == ".txt":
        path.write_text(text)
    else:
        path.write_text(json.dumps({"text": text}))
    return Source(str(path))


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("size", [2**15, None], ids=["pieces", "whole"])
def test_one_long_record_is_read(tmp_path, kind, size):
    def read(source):
        assert sum(len(piece.text) for piece in source.pieces(size)) >= SMALL

    # far more than elsewhere: what would be quadratic here are copies, which are fast
    small, large = (one_record(tmp_path, kind, 40 * n) for n in (SMALL, LARGE))
    assert growth(read, small, large) < WORST


@pytest.mark.parametrize("unit", ["\n", "\r\n", " \n", "\n<", "\n<|endoftext|> x", "a", " ", "\r"])
@pytest.mark.parametrize("separator", ["<|endoftext|>", "", "\n", None])
def test_any_text_is_split(unit, separator):
    def split(text):
        blocks = (text[start : start + 2**16] for start in range(0, len(text), 2**16))
        for _ in split_text(blocks, separator):
            pass

    small, large = (unit * (n // len(unit)) for n in (SMALL, LARGE))
    assert growth(split, small, large) < WORST


@pytest.mark.parametrize(
    "unit", ["Mr. ", ".", "3.5", "\n", "a\n", "! a", "(", "\n \t", "Mr . ", "..a", "a"]
)
def test_any_text_is_cut_after_its_first_sentence(unit):
    small, large = (unit * (n // len(unit)) for n in (SMALL, LARGE))
    assert growth(cut_first, small, large) < WORST


@pytest.mark.parametrize("unit", ["word ", "a", " ", "\n", "ab1!"])
def test_any_text_is_tokenized_and_read_back(unit):
    tokenizer = train_tokenizer(["word ab1! a  \n\n" * 40], 280)

    def there_and_back(text):
        [ids] = encode(tokenizer, [text])
        assert tokenizer.decode(ids) == text

    small, large = (unit * (n // len(unit)) for n in (SMALL, LARGE))
    assert growth(there_and_back, small, large) < WORST
