"""A few hundred words of prepared text and the smallest run on it, for tests of training."""

import json
import random
from pathlib import Path
from typing import Any

from sfumato.data.preparation import prepare
from sfumato.train import Run, load_run, training
from sfumato.train.events import Event, Stepped

WORDS = [
    *("the", "a", "cat", "dog", "tree", "house", "ran", "sat", "saw", "found"),
    *("big", "small", "red", "and", "then", "it", "was", "happy"),
]

SEARCH = ("objective.name=block", "model.block_size=8", "objective.search_steps=5")


def prepare_words(folder: Path, seed: int = 0, vocab_size: int = 280) -> Path:
    """Prepared sentences of random words; another seed, other data."""
    draw = random.Random(seed)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(4, 30))) + "." for _ in range(160)]
    source = folder.with_suffix(".jsonl")
    source.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    prepare(source, folder, vocab_size=vocab_size, validation=0.2, workers=1)
    return folder


def small_run(words: Path, output: Path, *overrides: str, **sections: Any) -> Run:
    """Ten steps of a network of 16 dimensions, in float32; sections and overrides change it."""
    keys: dict[str, Any] = {
        "output": output,
        "data": {"folder": words, "length": 32},
        "model": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        "train": {"max_steps": 10, "warmup_steps": 2, "batch_size": 8, "precision": "fp32"},
        "evaluate": {"eval_steps": 5, "rows": 12},
        "log": {"logging_steps": 1},
    }
    merged = {**keys, **{k: {**keys.get(k, {}), **v} for k, v in sections.items()}}
    return load_run(merged, overrides)


def run_all(run: Run) -> list[Event]:
    return list(training(run))


def of_kind(events: list[Event], kind: type) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def golden_losses(folder: Path) -> dict[str, list[float]]:
    """Twenty losses of each objective: what `golden/training.json` holds."""
    words = prepare_words(folder / "words")
    kinds = {
        "masked": [],
        "block": ["objective.name=block", "model.block_size=8"],
        "uniform": ["corruption.name=uniform", "objective.name=bound"],
        "next_token": ["objective.name=next_token", "train.optimizer=adamw"],
    }
    found = {}
    for name, overrides in kinds.items():
        run = small_run(words, folder / name, "train.max_steps=20", *overrides)
        found[name] = [round(event.loss, 6) for event in of_kind(run_all(run), Stepped)]
    return found


def stepped(step: int) -> Stepped:
    return Stepped(
        step=step,
        loss=5 - step / 10,
        bound=4.0,
        accuracy=0.25,
        grad_norm=1.0,
        learning_rate=0.1,
        tokens=100 * step,
        tokens_per_second=12345.6,
        seconds=1.0,
        seconds_left=3725.4,
    )
