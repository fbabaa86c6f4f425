"""Measure a model on held-out text: likelihood, accuracy and, with a judge, what it writes.

Every number names its estimator and has a standard error, over texts; the record holds all
settings, seeds and versions, so that it can be made again.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from sfumato.arguments import PATH, Amount, Count, Kind, Place, Seed, check_fields
from sfumato.data.sources import Source
from sfumato.decoding.filters import Heat
from sfumato.decoding.options import GenerationOptions
from sfumato.errors import CheckpointError, DataError, MissingExtra
from sfumato.evals.held_out import BATCH, Held, held_out, shuffled
from sfumato.evals.judge import Judge
from sfumato.evals.record import record
from sfumato.evals.text import text_report
from sfumato.likelihood.bounds import bound
from sfumato.likelihood.exact import by_decoder, left_to_right
from sfumato.likelihood.result import Likelihood
from sfumato.lm.folders import find_folder
from sfumato.lm.model import DiffusionLM
from sfumato.rng import Rng
from sfumato.types import Batch

REFERENCES = 1024  # most held-out texts that BLEU compares with

Estimator = Callable[[Batch], Likelihood]


@dataclass(frozen=True)
class EvaluateOptions:
    """What to measure, and how long."""

    rows: Amount = 256  # held-out rows or texts, at most
    num_samples: Count = 8  # random maskings of each row
    exact: bool = False  # the exact likelihood under a step rule, one forward pass a step
    step: str | None = None  # of `exact` (None: margin) and of texts (None: the model's own)
    num_steps: Count | None = None
    temperature: Heat | None = None
    shuffled: bool = False  # of pairs, also the likelihood given another row's source
    judge: str | None = None  # a causal language model by path
    num_texts: Count = 64  # to generate for the judge
    seed: Seed = 0

    def __post_init__(self):
        check_fields(self)
        GenerationOptions(**self.generation())  # its own checks

    def generation(self) -> dict[str, Any]:
        """What differs from the model's own way of writing."""
        changes = {name: getattr(self, name) for name in ("step", "num_steps", "temperature")}
        chosen = {name: value for name, value in changes.items() if value is not None}
        return {**chosen, "seed": self.seed}


MODEL, OPTIONS = Kind(DiffusionLM), Kind(EvaluateOptions)
DATA = Kind(Annotated[Place | Source, Field(title="a path or a Source")])


def evaluate(
    lm: DiffusionLM,
    data: str | Path | Source,
    options: EvaluateOptions,
    *,
    model_name: str | Path,
    progress: Callable[[str], None] = lambda doing: None,
) -> dict[str, Any]:
    """The record of a model on prepared data (its validation split) or on texts from a source.

    `model_name`: where `lm` was loaded from. `progress` is told what is being done.
    """
    lm, data = MODEL.check("lm", lm), DATA.check("data", data)
    options, model_name = OPTIONS.check("options", options), PATH.check("model_name", model_name)
    models: dict[str, str | Path] = {"model": find_folder(model_name)}
    judged = options.num_texts + REFERENCES if options.judge is not None else 0
    held = held_out(lm, data, options.rows, judged)
    other = shuffled(held) if options.shuffled else None
    judge = None
    if options.judge is not None:
        models["judge"] = options.judge
        _check_judged(lm, held.texts, options)
        progress("loading the judge")
        judge = Judge.load(options.judge, device=lm.device)
    results: dict[str, Any] = {"rows": len(held.part), "documents": held.num_documents}
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
            gain = other.per_token(swapped.each - likelihood.each)
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
    made["models"]["model"]["path"] = str(model_name)
    return made


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
    changes: dict[str, Any] = {"step": "margin", **options.generation()}
    chosen = lm.options.with_changes(**changes)
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
    each, rows = [], len(held.part)
    for number, batch in enumerate(held.batches()):
        progress(f"{what}: {number * BATCH} of {rows} rows")
        each.append(estimator(batch))
    whole = Likelihood.join(each)
    if bool(whole.nats.isnan().any()):
        raise CheckpointError(
            f"the {what} of {int(whole.nats.isnan().sum())} of {rows} rows is no number: the "
            "model's weights are damaged, or its training fell apart; take an older checkpoint"
        )
    return whole


def _report(likelihood: Likelihood, held: Held, scored: str) -> dict[str, Any]:
    per_token = held.per_token(likelihood.each)
    return {
        "estimator": likelihood.estimator,
        "nats_per_token": asdict(per_token),
        "perplexity": asdict(per_token.exp()),
        "bits_per_byte": asdict(held.per_byte(likelihood.each).scaled(1 / math.log(2))),
        "accuracy": likelihood.accuracy,
        "accuracy_of": scored,
        "tokens": int(held.tokens.sum()),
        "bytes": round(float(held.bytes.sum())),
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
