"""Measure a model on held-out text: likelihood, accuracy and, with a judge, what it writes.

Every number names its estimator and has a standard error; the record holds all settings, seeds and
versions, so that it can be made again.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.data.prepared import PREPARED, Prepared
from sfumato.data.rows import Rows
from sfumato.data.sources import Source
from sfumato.errors import ConfigError, DataError
from sfumato.evals.judge import Judge
from sfumato.evals.record import record
from sfumato.evals.text import text_report
from sfumato.likelihood import Likelihood, bound, by_decoder, left_to_right, ratio
from sfumato.pipeline import SHIPPED, DiffusionLM
from sfumato.rng import Rng
from sfumato.types import Batch

BATCH = 16  # rows in one forward pass


@dataclass(frozen=True)
class EvaluateOptions:
    """What to measure, and how long."""

    rows: int = 256  # held-out rows or texts, at most
    num_samples: int = 8  # random maskings of each row
    exact: bool = False  # the exact likelihood under a step rule, one forward pass a step
    step: str | None = None  # that rule, and the one texts are generated with
    num_steps: int | None = None
    temperature: float | None = None
    judge: str | None = None  # a causal language model by path
    num_texts: int = 64  # to generate for the judge
    seed: int = 0

    def __post_init__(self):
        for name in ("rows", "num_samples", "num_texts"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Held:
    """Held-out rows, with how much text each of them is."""

    batch: Batch
    text_tokens: Tensor  # [B] tokens up to and with the end: filling is no text
    text_bytes: Tensor  # [B] UTF-8 bytes

    def parts(self) -> Iterator[Batch]:
        """A few rows at a time."""
        for start in range(0, len(self.batch.tokens), BATCH):
            part = slice(start, start + BATCH)
            batch = self.batch
            yield Batch(
                batch.tokens[part],
                batch.trainable[part],
                batch.segments[part],
                batch.slots[part],
            )


def evaluate(
    lm: DiffusionLM, data: str | Path, options: EvaluateOptions, *, model_name: str
) -> dict[str, Any]:
    """The record of a model on prepared data (its validation split) or on texts from a source."""
    held, references = _held_out(lm, data, options.rows)
    results: dict[str, Any] = {"rows": len(held.text_tokens)}
    rng = Rng.from_seed(options.seed, device=lm.device)
    if lm.model.config.objective == "next_token":
        likelihood = Likelihood.join([left_to_right(lm.denoiser, b) for b in held.parts()])
    else:
        each = [
            bound(lm.denoiser, lm.corruption, batch, rng, samples=options.num_samples)
            for batch in held.parts()
        ]
        likelihood = Likelihood.join(each)
    results["likelihood"] = _report(likelihood, held)
    if options.exact:
        results["exact_likelihood"] = _report(_by_decoder(lm, held, options), held)
    if options.judge is not None:
        results["texts"] = _judged(lm, references, options)
    models = {"model": _path_of(model_name)}
    if options.judge is not None:
        models["judge"] = options.judge
    return record(
        sys.argv,
        {"data": str(data), **asdict(options)},
        results,
        seed=options.seed,
        device=lm.device,
        models=models,
    )


def _path_of(model_name: str) -> str | Path:
    return SHIPPED if model_name == "stories" and not Path(model_name).exists() else model_name


def _report(likelihood: Likelihood, held: Held) -> dict[str, Any]:
    per_token = ratio(likelihood.nats, held.text_tokens)
    return {
        "estimator": likelihood.estimator,
        "nats_per_token": asdict(per_token),
        "perplexity": asdict(per_token.exp()),
        "bits_per_byte": asdict(likelihood.bits_per_byte(held.text_bytes)),
        "accuracy": likelihood.accuracy,
        "tokens": int(held.text_tokens.sum()),
        "bytes": int(held.text_bytes.sum()),
    }


def _by_decoder(lm: DiffusionLM, held: Held, options: EvaluateOptions) -> Likelihood:
    changes = {"step": options.step or "margin", "num_steps": options.num_steps}
    chosen = replace(lm.options, **changes)
    if options.temperature is not None:
        chosen = replace(chosen, temperature=options.temperature)
    rule, filters = chosen.rule(lm.corruption), chosen.filters(())
    each = [
        by_decoder(
            lm.denoiser, lm.corruption, batch, rule, num_steps=chosen.num_steps, filters=filters
        )
        for batch in held.parts()
    ]
    return Likelihood.join(each)


def _judged(lm: DiffusionLM, references: Sequence[str], options: EvaluateOptions) -> dict[str, Any]:
    """What the judge says of generated texts, and of as many held-out ones."""
    changes = {"num_steps": options.num_steps, "step": options.step}
    changes |= {"temperature": options.temperature, "seed": options.seed}
    chosen = {name: value for name, value in changes.items() if value is not None}
    texts: list[str] = []
    for start in range(0, options.num_texts, BATCH):
        count = min(BATCH, options.num_texts - start)
        chosen["seed"] = options.seed + start
        texts += lm.generate(num_samples=count, **chosen).texts
    judge = Judge.load(str(options.judge), device=lm.device)
    real = list(references)[: options.num_texts]
    others = list(references)[options.num_texts :] or real
    return {
        "generation": asdict(replace(lm.options, **chosen)),
        "generated": text_report(texts, others, judge),
        "held_out": text_report(real, others, judge),
    }


def _held_out(lm: DiffusionLM, data: str | Path, limit: int) -> tuple[Held, list[str]]:
    """Rows to measure on, and whole texts to compare with."""
    length = lm.options.canvas or lm.model.config.max_position_embeddings
    if not (Path(data) / PREPARED).exists():
        texts = list(Source(str(data), limit=limit).documents())
        if not texts:
            raise DataError(f"{data} holds no text to evaluate on")
        batch, text, _ = lm.rows(texts)
        return _held(lm, batch, text), texts
    prepared = Prepared.open(data, lm.tokenizer)
    layout: Any = lm.options.layout
    rows = Rows(data, "validation", length=length, layout=layout)
    taken = rows.batch(np.arange(min(limit, len(rows))))
    batch = Batch(
        *(torch.from_numpy(taken[name]).to(lm.device) for name in ("tokens", "trainable")),
        torch.from_numpy(taken["segments"]).to(lm.device),
        torch.arange(len(taken["tokens"]), device=lm.device),
    )
    text = batch.trainable
    if lm.options.layout == "padded":  # filling follows the first eos
        text = text & ((batch.tokens == lm.special.eos).long().cumsum(1).roll(1, 1) < 1)
        text[:, 0] = True
    split = prepared.split("validation")
    starts = [0, *split.ends[: 4 * limit - 1].tolist()]
    texts = [
        lm.tokenizer.decode(split.tokens[a:b].astype(np.int64), skip_special_tokens=True)
        for a, b in zip(starts, split.ends[: 4 * limit].tolist(), strict=False)
    ]
    return _held(lm, batch, text), texts


def _held(lm: DiffusionLM, batch: Batch, text: Tensor) -> Held:
    """Count the text in each row: its tokens, and the bytes that they spell."""
    sizes = [
        len(lm.tokenizer.decode(row[kept], skip_special_tokens=True).encode())
        for row, kept in zip(batch.tokens.cpu(), text.cpu(), strict=True)
    ]
    return Held(batch, text.sum(1), torch.tensor(sizes, device=batch.tokens.device))
