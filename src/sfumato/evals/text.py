"""What a set of texts looks like: variety, repetition, overlap, and what a judge makes of it.

Generative perplexity alone is easily fooled: a model that repeats itself scores better than real
text (arXiv 2409.02908, 2606.08417). So `text_report` gives it only together with the rest.
"""

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict

from sfumato.errors import DataError, MissingExtra
from sfumato.evals.judge import Judge

Tokens = Sequence[Hashable]  # one text: ids of a tokenizer, or words
_Gram = tuple[Hashable, ...]


def text_report(texts: Sequence[str], references: Sequence[str], judge: Judge) -> dict[str, object]:
    """Every measure of generated texts beside real ones; an empty text is counted, not scored.

    Entropy is in nats over the judge's tokens; distinct n-grams and repetition are over `words`.
    """
    written = [text for text in texts if text.strip()]
    if not written:
        raise DataError(f"expected texts to evaluate, got {len(texts)} without a word in them")
    verdict = judge(written)
    tokens = judge.tokenize(written)
    spelled = [words(text) for text in written]
    return {
        "texts": len(texts),
        "empty": len(texts) - len(written),
        "references": len(references),
        "judge": judge.settings(),
        "truncated": verdict.truncated,
        "perplexity": asdict(verdict.perplexity),
        "bits_per_byte": asdict(verdict.bits_per_byte),
        "entropy": entropy(tokens),
        "pooled_entropy": pooled_entropy(tokens),
        "distinct": {str(n): distinct_n(spelled, n) for n in (1, 2, 3)},
        "repetition": repetition(spelled),
        "bleu": bleu(written, references),
        "self_bleu": self_bleu(written),
        "mean_tokens": mean_length(tokens),
        "mean_words": mean_length(spelled),
    }


def words(text: str) -> list[str]:
    """Runs of letters and digits, an apostrophe inside included, and single punctuation marks."""
    return re.findall(r"\w+(?:['\u2019]\w+)*|[^\w\s]", text)


def entropy(texts: Sequence[Tokens]) -> float:
    """Entropy in nats of the tokens within one text, averaged over texts that have any.

    At most the logarithm of a text's length, so compare texts of equal length only. This is the
    'unigram entropy' printed beside generative perplexity (e.g. arXiv 2409.02908).
    """
    return _mean([pooled_entropy([text]) for text in texts if len(text)])


def pooled_entropy(texts: Sequence[Tokens]) -> float:
    """Entropy in nats of all tokens of all texts taken together."""
    counts = Counter(token for text in texts for token in text)
    total = counts.total()
    return sum(n / total * math.log(total / n) for n in counts.values()) if total else math.nan


def distinct_n(texts: Sequence[Tokens], n: int) -> float:
    """Different n-grams over all n-grams, of all texts together (Li et al., arXiv 1510.03055).

    Falls as there is more text, so compare equal amounts only.
    """
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else math.nan


def repetition(texts: Sequence[Tokens], n: int = 4) -> float:
    """Share of a text's n-grams that stood in it before, averaged (seq-rep-n, arXiv 1908.04319)."""
    return _mean([1 - distinct_n([text], n) for text in texts if len(text) >= n])


def mean_length(texts: Sequence[Tokens]) -> float:
    """Tokens a text."""
    return _mean([float(len(text)) for text in texts])


def bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    """Mean sentence BLEU, 0 to 100, of every text against all references at once.

    An n-gram counts as often as in the one reference that has it most often (Papineni et al.,
    2002, section 2.1). Tokens (13a) and smoothing (exponential) are sacrebleu's defaults.
    """
    if not references:
        raise DataError("BLEU expected at least one reference text, got none")
    peaks = _Peaks(references)
    return _mean([peaks.bleu(text) for text in texts])


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU of every text against all the others: how alike they are (arXiv 1802.01886)."""
    if len(texts) < 2:
        return math.nan
    peaks = _Peaks(texts)
    return _mean([peaks.bleu(text, without=place) for place, text in enumerate(texts)])


class _Peaks:
    """The two highest counts of every n-gram over texts, so that leaving one text out is free."""

    def __init__(self, texts: Sequence[str]):
        try:
            from sacrebleu.metrics.bleu import BLEU
            from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
        except ImportError as error:
            raise MissingExtra("sacrebleu", "eval", "BLEU") from error
        self.tokenize, self.score = Tokenizer13a(), BLEU.compute_bleu
        self.lengths = []
        self.highest: dict[_Gram, tuple[int, int]] = {}  # n-gram -> count, place of its text
        self.second: Counter[_Gram] = Counter()
        for place, text in enumerate(texts):
            tokens, grams = self.read(text)
            self.lengths.append(len(tokens))
            for gram, count in grams.items():
                peak, _ = self.highest.get(gram, (0, place))
                if count > peak:
                    self.highest[gram], count = (count, place), peak
                self.second[gram] = max(self.second[gram], count)

    def read(self, text: str) -> tuple[list[str], Counter[_Gram]]:
        tokens = self.tokenize(text.rstrip()).split()
        return tokens, Counter(gram for n in range(1, 5) for gram in _grams(tokens, n))

    def bleu(self, text: str, without: int | None = None) -> float:
        """Sentence BLEU against all texts, or all but the one at place `without`."""
        tokens, grams = self.read(text)
        correct, total = [0] * 4, [0] * 4
        for gram, count in grams.items():
            peak, owner = self.highest.get(gram, (0, None))
            limit = self.second[gram] if owner == without else peak
            total[len(gram) - 1] += count
            correct[len(gram) - 1] += min(count, limit)
        others = (n for place, n in enumerate(self.lengths) if place != without)
        closest = min(others, key=lambda n: (abs(n - len(tokens)), n))
        return self.score(
            correct, total, len(tokens), closest, smooth_method="exp", effective_order=True
        ).score


def _grams(tokens: Tokens, n: int) -> Iterator[_Gram]:
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
