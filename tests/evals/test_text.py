import math
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfumato.errors import DataError, MissingExtra
from sfumato.evals.text import (
    bleu,
    distinct_n,
    entropy,
    mean_length,
    pooled_entropy,
    repetition,
    self_bleu,
    words,
)

texts = st.lists(st.lists(st.integers(0, 4), max_size=12), min_size=1, max_size=6)
sentences = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "cat", "."]), min_size=1, max_size=9).map(" ".join),
    min_size=2,
    max_size=5,
)


def test_words_are_runs_of_letters_and_single_marks():
    assert words("Don't stop, Tom!\n42 caf\u00e9s.") == [
        *("Don't", "stop", ",", "Tom", "!", "42", "caf\u00e9s", "."),
    ]


def test_entropy_of_hand_made_texts():
    assert entropy([[7, 7, 7, 7]]) == 0
    assert entropy([[1, 2, 3, 4], [7, 7], []]) == pytest.approx(math.log(4) / 2)
    assert pooled_entropy([[1, 1], [2, 2]]) == pytest.approx(math.log(2))
    assert entropy([[1, 1], [2, 2]]) == 0


def test_measures_of_nothing_are_nan():
    for value in (entropy([[]]), pooled_entropy([[]]), distinct_n([[1]], 2), repetition([[1, 2]])):
        assert math.isnan(value)
    assert math.isnan(mean_length([]))
    assert math.isnan(self_bleu(["alone"]))


def test_distinct_n_of_hand_made_texts():
    assert distinct_n([[1, 2, 1, 2]], 2) == pytest.approx(2 / 3)
    assert distinct_n([[1, 2], [1, 2]], 2) == 0.5
    assert distinct_n([[1, 2], [3, 4]], 2) == 1, "n-grams never cross texts"


def test_repetition_of_hand_made_texts():
    assert repetition([[1, 2, 3, 4, 5]]) == 0
    assert repetition([[9] * 8]) == pytest.approx(4 / 5)
    assert repetition([[9] * 8, [1, 2, 3, 4], [1]]) == pytest.approx(2 / 5)


def test_mean_length():
    assert mean_length([[1, 2, 3], [4]]) == 2


@given(texts)
def test_entropy_is_at_most_the_logarithm_of_the_length_and_pooling_never_lowers_it(texts):
    longest = max(len(text) for text in texts)
    if longest == 0:
        return
    assert -1e-12 <= entropy(texts) <= math.log(longest) + 1e-12
    weights = [len(text) / sum(map(len, texts)) for text in texts]
    within = sum(w * pooled_entropy([text]) for w, text in zip(weights, texts, strict=True) if text)
    assert pooled_entropy(texts) >= within - 1e-12


@given(texts, st.integers(1, 4))
def test_distinct_n_is_a_share_and_falls_when_texts_are_said_twice(texts, n):
    share = distinct_n(texts, n)
    if math.isnan(share):
        return
    assert 0 < share <= 1
    assert distinct_n(texts * 2, n) == pytest.approx(share / 2)


def test_bleu_clips_by_the_reference_that_has_most_not_by_their_sum():
    # Precisions 1/4, then smoothed 1/(2*3), 1/(4*2), 1/(8*1); the candidate is the longer one.
    expected = 100 * (1 / 4 * 1 / 6 * 1 / 8 * 1 / 8) ** 0.25
    assert bleu(["5 5 5 5"], ["5"] * 4) == pytest.approx(expected)
    assert bleu(["5 5 5 5"], ["5", "5 5 5 5"]) == pytest.approx(100)


def test_self_bleu_leaves_the_text_itself_out():
    assert self_bleu(["a b c d", "e f g h"]) == 0
    assert self_bleu(["a b c d", "a b c d"]) == pytest.approx(100)
    assert self_bleu(["a b c d", "a b c d", "e f g h"]) == pytest.approx(200 / 3)


@given(sentences, sentences)
@settings(max_examples=60, deadline=None)
def test_bleu_equals_sacrebleu_text_by_text(texts, references):
    sacrebleu = pytest.importorskip("sacrebleu")
    metric = sacrebleu.metrics.BLEU(effective_order=True)
    each = [metric.sentence_score(text, references).score for text in texts]
    assert bleu(texts, references) == pytest.approx(sum(each) / len(each))
    each = [
        metric.sentence_score(text, texts[:i] + texts[i + 1 :]).score
        for i, text in enumerate(texts)
    ]
    assert self_bleu(texts) == pytest.approx(sum(each) / len(each))


def test_bleu_without_references_is_refused():
    with pytest.raises(DataError, match="at least one reference"):
        bleu(["a"], [])


def test_bleu_without_sacrebleu_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics.bleu", None)
    with pytest.raises(MissingExtra, match=r"sfumato\[eval\]"):
        bleu(["a"], ["a"])
