"""Which text every part of every held-out row is of, and errors over texts."""

import json

import numpy as np
import pytest
import torch
from tiny_lm import SENTENCES, tiny_lm, tokenizer

from sfumato.data import Pairs
from sfumato.data.preparation import prepare
from sfumato.data.prepared import Prepared
from sfumato.data.prepared_pairs import prepare_pairs
from sfumato.data.rows import open_rows
from sfumato.data.sources import Source
from sfumato.estimates import ratio
from sfumato.evals.held_out import held_out, shuffled

TEXTS = [" ".join([*SENTENCES[n % 4 :], *[str(n)] * (n % 7)]) for n in range(40)]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def data(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "prepared"
    prepare(text, out, tokenizer(), validation=0.5, workers=1)
    return out


def spelled(held, document):
    """All tokens of one text, put together from its parts."""
    parts = (held.owners[0] == document).nonzero()[:, 0]
    at = torch.isin(held.part, parts) & held.batch.trainable
    return held.batch.tokens[at].tolist()


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_parts_of_a_prepared_text_are_the_text(data, layout):
    lm = tiny_lm(layout=layout)
    held = held_out(lm, data, 10_000, 0)
    split = Prepared.open(data, lm.tokenizer).split("validation")
    assert held.num_documents == len(split.ends)
    assert held.tokens.sum() == len(split.tokens)
    starts = [0, *split.ends[:-1].tolist()]
    for document, (start, stop) in enumerate(zip(starts, split.ends.tolist(), strict=True)):
        whole = split.tokens[start:stop].astype(np.int64).tolist()
        assert spelled(held, document)[: len(whole)] == whole
        assert int(held.tokens[held.owners[0] == document].sum()) == len(whole)
    assert len(held.owners) == (2 if layout == "packed" else 1)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_rows_know_the_document_they_begin_with(data, layout):
    rows = open_rows(data, "validation", length=7, layout=layout)
    split = Prepared.open(data).split("validation")
    taken = rows.batch(np.arange(len(rows)))
    found = rows.documents(taken["row"])[:, None] + taken["segments"]
    number = np.repeat(np.arange(len(split.ends)), np.diff(split.ends, prepend=0))
    if layout == "packed":
        assert (found[taken["trainable"]] == number).all()
    else:
        assert (np.bincount(found[:, 0]) == -(-np.bincount(number) // 7)).all()


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_texts_are_what_errors_are_over(text, layout):
    lm = tiny_lm(layout=layout)
    held = held_out(lm, Source(str(text)), 20, 0)
    count = held.num_documents
    assert count < len(held.part) == 20
    each = torch.rand(held.part.shape, generator=torch.Generator().manual_seed(0)).double()
    each *= held.batch.trainable
    nats, tokens = torch.zeros(count).double(), torch.zeros(count).double()
    nats.index_add_(0, held.owners[0][held.part[:, 0]], each.sum(1))
    tokens.index_add_(0, held.owners[0], held.tokens.double())
    found = held.per_token(each)
    assert found.error == pytest.approx(ratio(nats, tokens).error)
    assert found.value == pytest.approx(float(each.sum() / held.tokens.sum()))


def test_pairs_with_one_source_are_one_and_swapped_ones_depend_on_both(tmp_path):
    pairs = [{"s": f"from {n // 2}", "t": f"{SENTENCES[n % 4]} {n}"} for n in range(24)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    asked = Pairs(Source(str(path)), "s", "t")
    prepare_pairs(asked, tmp_path / "out", tokenizer(), validation=0.5, workers=1)
    held = held_out(tiny_lm(layout="padded"), tmp_path / "out", 100, 0)
    sources = held.batch.source.tolist()
    assert held.num_documents == len({str(source) for source in sources}) < len(sources)
    swapped = shuffled(held)
    own, other = swapped.owners
    assert (own != other).all()
    for row, source in enumerate(swapped.batch.source.tolist()):
        assert source == sources[held.owners[0].tolist().index(int(other[row]))]
