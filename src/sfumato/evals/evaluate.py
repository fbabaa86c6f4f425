"""Measure a model on held-out text: likelihood, accuracy and, with a judge, what it writes.

Every number names its estimator and has a standard error; the record holds all settings, seeds and
versions, so that it can be made again.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.data.pairs import PreparedPairs, holds_pairs
from sfumato.data.prepared import JOURNAL, PREPARED, Prepared
from sfumato.data.rows import open_rows
from sfumato.data.sources import Source
from sfumato.errors import ConfigError, DataError, MissingExtra
from sfumato.estimates import ratio
from sfumato.evals.judge import Judge
from sfumato.evals.record import record
from sfumato.evals.text import text_report
from sfumato.folders import find_folder
from sfumato.likelihood import Likelihood, bound, by_decoder, left_to_right
from sfumato.options import GenerationOptions
from sfumato.pipeline import DiffusionLM
from sfumato.rng import Rng
from sfumato.types import Batch, PairBatch

BATCH = 16  # rows in one forward pass, texts written at a time
REFERENCES = 1024  # most held-out texts that BLEU compares with
BEFORE = 8  # tokens: more than those that can share a character of 4 bytes

Estimator = Callable[[Batch], Likelihood]


@dataclass(frozen=True)
class EvaluateOptions:
    """What to measure, and how long."""

    rows: int = 256  # held-out rows or texts, at most
    num_samples: int = 8  # random maskings of each row
    exact: bool = False  # the exact likelihood under a step rule, one forward pass a step
    step: str | None = None  # of `exact` (None: margin) and of texts (None: the model's own)
    num_steps: int | None = None
    temperature: float | None = None
    shuffled: bool = False  # of pairs, also the likelihood given another row's source
    judge: str | None = None  # a causal language model by path
    num_texts: int = 64  # to generate for the judge
    seed: int = 0

    def __post_init__(self):
        for name in ("rows", "num_samples", "num_texts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        GenerationOptions(**self.generation())  # its own checks

    def generation(self) -> dict[str, Any]:
        """What differs from the model's own way of writing."""
        changes = {name: getattr(self, name) for name in ("step", "num_steps", "temperature")}
        chosen = {name: value for name, value in changes.items() if value is not None}
        return {**chosen, "seed": self.seed}


@dataclass(frozen=True)
class Held:
    """Held-out rows, how much text each of them is, and whole texts to compare with."""

    batch: Batch
    text_tokens: Tensor  # [B] tokens up to and with the end: filling is no text
    text_bytes: Tensor  # [B] UTF-8 bytes that they spell
    texts: list[str]
    name: dict[str, Any]

    def parts(self) -> Iterator[Batch]:
        """A few rows at a time."""
        columns = vars(self.batch).values()
        for parts in zip(*(column.split(BATCH) for column in columns), strict=True):
            yield type(self.batch)(*parts)


def evaluate(
    lm: DiffusionLM,
    data: str | Path | Source,
    options: EvaluateOptions,
    *,
    model_name: str,
    progress: Callable[[str], None] = lambda doing: None,
) -> dict[str, Any]:
    """The record of a model on prepared data (its validation split) or on texts from a source.

    `model_name`: where `lm` was loaded from. `progress` is told what is being done.
    """
    models: dict[str, str | Path] = {"model": find_folder(model_name)}
    held = _held_out(lm, data, options)
    other = _shuffled(held) if options.shuffled else None
    judge = None
    if options.judge is not None:
        models["judge"] = options.judge
        _check_judged(lm, held.texts, options)
        progress("loading the judge")
        judge = Judge.load(options.judge, device=lm.device)
    results: dict[str, Any] = {"rows": len(held.text_tokens)}
    with lm.inference():
        estimator, scored = _estimator(lm, options)
        if options.exact and not lm.autoregressive:  # first: it may be refused
            exact = _measure("exact likelihood", _decoder(lm, options), held, progress)
            results["exact_likelihood"] = _report(exact, held, "tokens when they are decided")
        likelihood = _measure("likelihood", estimator, held, progress)
        results["likelihood"] = _report(likelihood, held, scored)
        if other is not None:
            swapped = _measure("another row's source", estimator, other, progress)
            results["shuffled_likelihood"] = _report(swapped, held, scored)
            # the same draws: what is left is the source's, and the error that of the difference
            gain = ratio(swapped.nats - likelihood.nats, held.text_tokens)
            results["nats_from_source"] = asdict(gain)
        if options.exact:
            results.setdefault("exact_likelihood", results["likelihood"])
    if judge is not None:
        results["texts"] = _judged(lm, held.texts, judge, options, progress)
    made = record(
        sys.argv,
        {"data": held.name, "options": asdict(options), "generation": asdict(lm.options)},
        results,
        seed=options.seed,
        device=lm.device,
        models=models,
    )
    made["models"]["model"]["path"] = model_name
    return made


def _shuffled(held: Held) -> Held:
    """Every row with the source of the next one that has another source."""
    if not isinstance(held.batch, PairBatch):
        raise ConfigError("shuffled is for pairs: give a folder that was prepared with them")
    sources = held.batch.source.tolist()
    taken = []
    for row, own in enumerate(sources):
        others = (n % len(sources) for n in range(row + 1, row + len(sources)))
        found = next((n for n in others if sources[n] != own), None)
        if found is None:
            raise DataError("all held-out rows have the same source; there is nothing to shuffle")
        taken.append(found)
    return replace(held, batch=replace(held.batch, source=held.batch.source[taken]))


def _estimator(lm: DiffusionLM, options: EvaluateOptions) -> tuple[Estimator, str]:
    """How this model's likelihood is measured, and what its accuracy is then about."""
    if lm.autoregressive:
        return partial(left_to_right, lm.denoiser), "next tokens"
    estimator = partial(
        bound,
        lm.denoiser,
        lm.corruption,
        rng=Rng.from_seed(options.seed, device=lm.device),
        samples=options.num_samples,
    )
    if lm.corruption.absorbing:
        return estimator, "masked tokens: k of n masked, k spread evenly over 1 to n"
    return estimator, "replaced tokens: times spread evenly over (0, 1)"


def _decoder(lm: DiffusionLM, options: EvaluateOptions) -> Estimator:
    chosen = lm.options.with_changes(**{"step": "margin", **options.generation()})
    return partial(
        by_decoder,
        lm.denoiser,
        lm.corruption,
        step=chosen.rule(lm.corruption),
        num_steps=chosen.num_steps,
        block=chosen.block,
        lookahead=chosen.lookahead,
        filters=chosen.filters(()),
    )


def _measure(
    what: str, estimator: Estimator, held: Held, progress: Callable[[str], None]
) -> Likelihood:
    each, rows = [], len(held.text_tokens)
    for number, batch in enumerate(held.parts()):
        progress(f"{what}: {number * BATCH} of {rows} rows")
        each.append(estimator(batch))
    return Likelihood.join(each)


def _report(likelihood: Likelihood, held: Held, scored: str) -> dict[str, Any]:
    per_token = ratio(likelihood.nats, held.text_tokens)
    return {
        "estimator": likelihood.estimator,
        "nats_per_token": asdict(per_token),
        "perplexity": asdict(per_token.exp()),
        "bits_per_byte": asdict(likelihood.bits_per_byte(held.text_bytes)),
        "accuracy": likelihood.accuracy,
        "accuracy_of": scored,
        "tokens": int(held.text_tokens.sum()),
        "bytes": int(held.text_bytes.sum()),
    }


def _check_judged(lm: DiffusionLM, held_out: Sequence[str], options: EvaluateOptions) -> None:
    """Raise what would be raised after hours of work."""
    if find_spec("sacrebleu") is None:
        raise MissingExtra("sacrebleu", "eval", "BLEU and Self-BLEU")
    if len(held_out) < 2:
        raise DataError(
            f"judged texts are compared with held-out ones: expected at least 2, got "
            f"{len(held_out)}; hold out more, or leave out the judge"
        )
    lm.start(**options.generation())


def _judged(
    lm: DiffusionLM,
    held_out: Sequence[str],
    judge: Judge,
    options: EvaluateOptions,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """What the judge says of generated texts, and of held-out ones; both beside other real ones."""
    real = list(held_out[: min(options.num_texts, len(held_out) // 2)])
    others = list(held_out[len(real) :])
    texts: list[str] = []
    seeds = range(options.seed, options.seed + -(-options.num_texts // BATCH))
    for seed in seeds:
        progress(f"writing text {len(texts) + 1} of {options.num_texts}")
        count = min(BATCH, options.num_texts - len(texts))
        changes = {**options.generation(), "seed": seed}
        texts += lm.generate(num_samples=count, **changes).texts
    progress("judging")
    return {
        "generation": asdict(lm.options.with_changes(**options.generation())),
        "seeds": list(seeds),  # one for every 16 texts
        "generated": text_report(texts, others, judge),
        "held_out": text_report(real, others, judge),
    }


# --- what is measured on ---


def _held_out(lm: DiffusionLM, data: str | Path | Source, options: EvaluateOptions) -> Held:
    source = data if isinstance(data, Source) else Source(str(data))
    wanted = options.num_texts + REFERENCES if options.judge is not None else 0
    folder = Path(source.name).expanduser()
    if holds_pairs(folder):
        if options.judge is not None:
            raise ConfigError("a judge reads texts, not pairs; leave it out, or give other data")
        return _from_pairs(lm, folder, options.rows)
    if (folder / PREPARED).exists() or (folder / JOURNAL).exists():
        return _from_prepared(lm, folder, options.rows, wanted)
    limit = min(max(options.rows, wanted), source.limit or sys.maxsize)
    texts = list(replace(source, limit=limit).documents())
    if not texts:
        raise DataError(f"{source.name} holds no text to evaluate on")
    batch, text, _ = lm.rows(texts[: options.rows])
    return _held(lm, batch, text, [_cut(lm, t) for t in texts[:wanted]], asdict(source))


def _from_prepared(lm: DiffusionLM, folder: Path, limit: int, wanted: int) -> Held:
    prepared = Prepared.open(folder, lm.tokenizer)
    batch, text = _first_rows(lm, folder, limit)
    split = prepared.split("validation")
    stops = split.ends[:wanted].tolist()
    texts = [
        _decoded(lm, split.tokens[start:stop].astype(np.int64).tolist())
        for start, stop in zip([0, *stops], stops, strict=False)
    ]
    name = {"folder": str(folder), "split": "validation", "fingerprint": prepared.fingerprint}
    return _held(lm, batch, text, texts, name)


def _from_pairs(lm: DiffusionLM, folder: Path, limit: int) -> Held:
    prepared = PreparedPairs.open(folder)
    prepared.check_tokenizer(lm.tokenizer)
    batch, text = _first_rows(lm, folder, limit)
    name = {"folder": str(folder), "split": "validation", "fingerprint": prepared.fingerprint}
    return _held(lm, batch, text, [], name)


def _first_rows(lm: DiffusionLM, folder: Path, limit: int) -> tuple[Batch, Tensor]:
    """Held-out rows as the model has learnt them, and where they are text [B, L]."""
    layout: Any = lm.options.layout
    rows = open_rows(folder, "validation", length=_canvas(lm), layout=layout)
    taken = rows.batch(np.arange(min(limit, len(rows))))
    columns = {name: torch.from_numpy(values).to(lm.device) for name, values in taken.items()}
    columns["slots"] = columns.pop("row")  # they count from 0
    batch = PairBatch(**columns) if "source" in columns else Batch(**columns)
    text = batch.trainable
    if lm.options.layout == "padded":  # filling follows the first end
        ends = (batch.tokens == lm.special.eos).long()
        text = text & (ends.cumsum(1) - ends == 0)
    return batch, text


def _held(
    lm: DiffusionLM, batch: Batch, text: Tensor, texts: list[str], name: dict[str, Any]
) -> Held:
    kept = [row[at].tolist() for row, at in zip(batch.tokens.cpu(), text.cpu(), strict=True)]
    sizes = torch.tensor(count_bytes(lm, kept), device=batch.tokens.device)
    return Held(batch, text.sum(1), sizes, texts, name)


def count_bytes(lm: DiffusionLM, rows: Sequence[Sequence[int]]) -> list[int]:
    """UTF-8 bytes that rows spell, each going on where the one before it stopped.

    A character whose bytes lie in two rows counts in the second. A document ends with eos.
    """
    sizes, before = [], []
    for row in rows:
        size = 0
        for part in _documents(row, lm.special.eos):
            ended = part[-1] == lm.special.eos
            size += _spelt(lm, [*before, *part], ended) - _spelt(lm, before, False)
            before = [] if ended else [*before, *part][-BEFORE:]
        sizes.append(size)
    return sizes


def _documents(row: Sequence[int], eos: int) -> Iterator[Sequence[int]]:
    start = 0
    for stop in [place + 1 for place, token in enumerate(row) if token == eos] + [len(row)]:
        if stop > start:
            yield row[start:stop]
        start = stop


def _spelt(lm: DiffusionLM, ids: Sequence[int], ended: bool) -> int:
    text = lm.reader.decode(list(ids))
    return len((text if ended else text.removesuffix("\ufffd")).encode())


def _canvas(lm: DiffusionLM) -> int:
    return lm.options.canvas or lm.model.config.max_position_embeddings


def _cut(lm: DiffusionLM, text: str) -> str:
    """As much of a text as the model could have written itself."""
    encoding = lm.encode([text])[0]
    return text if len(encoding) < _canvas(lm) else _decoded(lm, encoding)


def _decoded(lm: DiffusionLM, ids: Sequence[int]) -> str:
    kept = list(ids[: _canvas(lm)])
    text = lm.reader.decode(kept)
    return text if len(kept) == len(ids) else text.removesuffix("\ufffd")
