"""Jobs that write files, each in a folder that a test has made: what `faults.py` interrupts."""

import functools
from pathlib import Path

from small_runs import small_run
from tiny_lm import tiny_lm

import sfumato.evals.calibrate
from sfumato.cli import app
from sfumato.data.pairs import Pairs
from sfumato.data.preparation import prepare
from sfumato.data.prepared_pairs import prepare_pairs
from sfumato.data.sources import Source
from sfumato.data.tokenizer_files import save_tokenizer
from sfumato.data.tokenizer_training import train_tokenizer
from sfumato.lm.model import DiffusionLM
from sfumato.train import training

STORIES = ["Tom saw a red ball. He ran.", "The cat sat in the sun, and slept.", "Ann is happy!"] * 5


@functools.cache
def new_lm() -> DiffusionLM:
    return tiny_lm(num_hidden_layers=1)


def save(root: Path) -> None:
    """A model into a folder, whatever is in it."""
    new_lm().save(root / "out")


def train(root: Path) -> str:
    """Four steps on the words in `words`, with all that a run writes; its events' names."""
    sections = {
        "train": {"max_steps": 4, "save_steps": 2, "save_total_limit": 1, "ema_decay": 0.5},
        "evaluate": {"eval_steps": 2, "rows": 2},
        "samples": {"sample_steps": 2, "prompts": ["\u00fcber"], "length": 4, "num_steps": 2},
    }
    run = small_run(root / "words", root / "out", **sections)
    return " ".join(type(event).__name__ for event in training(run))


def prepare_texts(root: Path) -> None:
    """What is in `texts.jsonl`, with a tokenizer of its own."""
    prepare(root / "texts.jsonl", root / "out", vocab_size=270, workers=1, shard=150)


def tokenizer(root: Path) -> None:
    save_tokenizer(train_tokenizer(STORIES, 270), root / "out")


def pairs(root: Path) -> None:
    source = Pairs(Source(str(root / "texts.jsonl")))
    prepare_pairs(source, root / "out", vocab_size=270, workers=1, shard=300)


def calibrate(root: Path) -> None:
    """What the command writes into a model's folder, whatever was measured."""
    setting = {"step": "threshold", "step_options": {"level": 0.75}, "num_steps": None}
    made = {
        "settings": {
            "options": {"tolerance": 0.05},
            "generation": {"canvas": None, "lookahead": True},
        },
        "models": {"model": {"sha256": "0" * 64}},
        "results": {"chosen": 0, "settings": [{"setting": setting | {"block": None}}]},
    }
    sfumato.evals.calibrate.calibrate = lambda *args, **options: made
    words = ["calibrate", str(root / "out"), "texts.jsonl", "--no-plot", "--json"]
    app(words, standalone_mode=False)


JOBS = {
    "save": save,
    "train": train,
    "prepare": prepare_texts,
    "pairs": pairs,
    "tokenizer": tokenizer,
    "calibrate": calibrate,
}
