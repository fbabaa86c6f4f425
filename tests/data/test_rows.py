"""Rows are exactly the stored tokens, cut at the length."""

import json
import pickle

import numpy as np
import pytest
from torch.utils.data import DataLoader

from sfumato.data import Prepared, Rows, prepare
from sfumato.errors import ConfigError, DataError

STORIES = [
    "Tom had a red ball.",
    "",
    "Once upon a time there was a cat who liked to sleep in the sun. " * 5,
    "Hi!",
    "The dog ran. The dog sat.\n\nThe end.",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    source = folder / "stories.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in STORIES))
    prepare(source, folder / "out", vocab_size=300, validation=0)
    return folder / "out"


def documents(folder) -> list[list[int]]:
    """The slow and obvious reading of the files."""
    split = Prepared.open(folder).split("train")
    begins = [0, *split.ends[:-1].tolist()]
    return [split.tokens[a:b].tolist() for a, b in zip(begins, split.ends.tolist(), strict=True)]


def test_documents_are_bos_text_eos(folder):
    tokenizer = Prepared.open(folder).tokenizer()
    stored = documents(folder)
    assert [tokenizer.decode(d, skip_special_tokens=True) for d in stored] == list(
        filter(None, STORIES)
    )
    assert all(d[0] == tokenizer.bos_token_id and d[-1] == tokenizer.eos_token_id for d in stored)


@pytest.mark.parametrize("length", [1, 7, 16, 1000])
def test_packed_rows_are_the_stream_cut_at_the_length(folder, length):
    stream = [(token, n) for n, d in enumerate(documents(folder)) for token in d]
    rows = Rows(folder, length=length)
    assert len(rows) == -(-len(stream) // length)
    for i in range(len(rows)):
        expected = stream[i * length : (i + 1) * length]
        row = rows[i]
        size = len(expected)
        assert row["tokens"][:size].tolist() == [token for token, _ in expected]
        assert row["segments"][:size].tolist() == [n - expected[0][1] for _, n in expected]
        assert row["trainable"].tolist() == [True] * size + [False] * (length - size)
        assert (row["tokens"][size:] == rows.filler).all()
        assert (row["segments"][size:] > row["segments"][size - 1]).all()
        assert row["row"] == i


@pytest.mark.parametrize("length", [1, 7, 16, 1000])
def test_padded_rows_are_documents_filled_up(folder, length):
    rows = Rows(folder, length=length, layout="padded")
    expected = [
        (d[start : start + length] + [rows.filler] * length)[:length]
        for d in documents(folder)
        for start in range(0, len(d), length)
    ]
    batch = rows.batch(range(len(rows)))
    assert batch["tokens"].tolist() == expected
    assert batch["trainable"].all()
    assert not batch["segments"].any()


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_batch_is_its_rows_one_by_one(folder, layout):
    rows = Rows(folder, length=9, layout=layout)
    indices = [3, 0, -1, 3]
    batch = rows.batch(indices)
    for b, index in enumerate(indices):
        for name, value in rows[index].items():
            np.testing.assert_array_equal(batch[name][b], value)
    assert batch["row"].tolist() == [3, 0, len(rows) - 1, 3]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_nats_become_bits_per_byte(folder, layout):
    rows = Rows(folder, length=8, layout=layout)
    trainable = rows.batch(range(len(rows)))["trainable"].sum()
    assert rows.num_trainable == trainable
    assert rows.num_bytes == sum(len(text.encode()) for text in STORIES)
    one_bit_each = rows.bits_per_byte(np.log(2))
    assert one_bit_each == pytest.approx(trainable / rows.num_bytes, rel=1e-12)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_rows_go_through_a_data_loader_with_workers(folder, layout):
    rows = Rows(folder, length=8, layout=layout)
    loader = DataLoader(rows, batch_size=3, num_workers=2)  # type: ignore[arg-type]
    tokens = np.concatenate([batch["tokens"].numpy() for batch in loader])
    np.testing.assert_array_equal(tokens, rows.batch(range(len(rows)))["tokens"])


def test_pickled_rows_carry_no_data(folder):
    rows = Rows(folder, length=8, layout="padded")
    data = pickle.dumps(rows)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data)[2]["tokens"], rows[2]["tokens"])


def test_bad_arguments_are_named(folder):
    with pytest.raises(ConfigError, match="length must be at least 1 token, got 0"):
        Rows(folder, length=0)
    with pytest.raises(ConfigError, match="no layout 'paded'; did you mean padded"):
        Rows(folder, length=8, layout="paded")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no split 'valid'; did you mean validation"):
        Rows(folder, "valid", length=8)
    with pytest.raises(DataError, match=r"split 'validation' .* is empty"):
        Rows(folder, "validation", length=8)
    with pytest.raises(IndexError, match="there are"):
        Rows(folder, length=8)[10**6]
