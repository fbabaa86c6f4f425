"""Pairs in which the source tells the target, and the three runs on them, for tests."""

import json
import random
from pathlib import Path
from typing import Any

from small_runs import WORDS, small_run

from sfumato.data import Pairs, Source, prepare_pairs
from sfumato.train import Run


def prepare_word_pairs(folder: Path, seed: int = 0) -> Path:
    """Two random words; the target says them over and over."""
    draw = random.Random(seed)
    records = []
    for _ in range(160):
        one, two = draw.choices(WORDS, k=2)
        length = draw.randint(1, 5)
        records.append({"ask": f"{one} {two}", "say": " ".join([one, two] * length) + "."})
    path = folder.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    pairs = Pairs(Source(str(path)), "ask", "say")
    prepare_pairs(pairs, folder, vocab_size=280, validation=0.2, workers=1)
    return folder


ENCODER = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def stage(number: int, pairs: Path, out: Path, *overrides: str, **sections: Any) -> Run:
    """Run 1, 2 or 3 of the three; `out` holds all of them."""
    keys: dict[str, Any] = {"data": {"length": 32, "layout": "padded"}, **sections}
    if number == 1:
        return small_run(pairs / "targets", out / "1", *overrides, **keys)
    own: dict[str, Any] = {"init_from": str(out / str(number - 1))}
    if number == 2:
        own |= {"encoder": ENCODER, "freeze_decoder": True}
    run = small_run(pairs, out / str(number), *overrides, **keys)
    model = {**own, **sections.get("model", {})}
    return Run.model_validate({**run.model_dump(), "model": model})
