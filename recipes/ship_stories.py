"""Make the models that come with the package, from the stories on: one command.

    python recipes/ship_stories.py STORIES... --work WORK [--twins]

STORIES is TinyStories as it is found: its files (.txt, .jsonl, .parquet), folders of them, or a
name on the Hub. `stories-hashes.txt` says which of its stories are taken, and in what order. All
that is made goes into WORK: data/, runs/ and, in the end, models/stories and models/stories-infill.
The same command given again goes on where it was stopped. Then `calibrate_stories.py MODEL DATA`
makes the record by which a model warns of settings that lose too much.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sfumato.data.sentences import cut_first
from sfumato.data.shards import assign
from sfumato.data.sources import Source
from sfumato.errors import DataError
from sfumato.lm.model import DiffusionLM
from sfumato.rng import Rng

HERE = Path(__file__).parent
HASHES = HERE / "stories-hashes.txt"
HELD_OUT = 0.05  # the share that `sfumato data prepare` holds out by default


@dataclass(frozen=True)
class Stage:
    """A run file and how many minutes it takes on one CPU core with bfloat16."""

    run: str
    minutes: int
    changes: Sequence[str] = ()


STAGES = (
    Stage("stories.yaml", 45),
    Stage("stories-2.yaml", 110),
    Stage("stories-3.yaml", 85),
    Stage("stories-4.yaml", 90),
    Stage("stories-5.yaml", 60),
)
SHORT = ("output=runs/stories-twin-short", "train.max_steps=3700", "train.decay_steps=1300")
TWINS = (Stage("stories-twin.yaml", 160), Stage("stories-twin.yaml", 55, SHORT))
# the run that each model is taken from, and the generation defaults that `sfumato calibrate` chose
MODELS = {
    "stories": (
        "runs/stories-5",
        {"step": "entropy_bound", "step_options": {"gamma": 0.4}, "temperature": 0.9, "top_p": 0.9},
    ),
    "stories-infill": (
        "runs/stories-2",
        {"step": "probability", "num_steps": 256, "block": 16, "temperature": 0.8},
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stories", nargs="+", help="files, folders, or a name on the Hub")
    parser.add_argument("--work", type=Path, required=True, help="folder for all that is made")
    parser.add_argument("--twins", action="store_true", help="also the autoregressive twins")
    options = parser.parse_args()
    stages = STAGES + (TWINS if options.twins else ())
    minutes = sum(stage.minutes for stage in stages)
    print(
        f"{len(stages)} runs, some {minutes / 60:.1f} hours on one CPU core with bfloat16 (float32 "
        f"alone: three times as long), 3 GB of memory and 1 GB in {options.work}"
    )
    options.work.mkdir(parents=True, exist_ok=True)
    prepare(options.stories, options.work)
    for stage in stages:
        command(options.work, "train", str(HERE.resolve() / stage.run), *stage.changes)
    for name, (run, defaults) in MODELS.items():
        ship(options.work / run, options.work / "models" / name, defaults)


def command(work: Path, *words: str) -> None:
    """Run one of Sfumato's commands in the folder `work`."""
    subprocess.run([sys.executable, "-m", "sfumato", *words], cwd=work, check=True)


# --- the data ---


def prepare(stories: Sequence[str], work: Path) -> None:
    """data/stories, and data/fragments, which holds fragments of its stories too."""
    texts = chosen(stories, HASHES.read_text().split())
    write(texts, work / "stories.jsonl")
    write(with_fragments(texts), work / "fragments.jsonl")
    command(work, "data", "prepare", "stories.jsonl", "data/stories", "--vocab-size", "4096")
    tokenizer = ("--tokenizer", "data/stories/tokenizer")
    command(work, "data", "prepare", "fragments.jsonl", "data/fragments", *tokenizer)


def digest(text: str) -> str:
    """What a story is known by, however its white space is written."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=6).hexdigest()


def chosen(stories: Sequence[str], hashes: Sequence[str]) -> list[str]:
    """The stories of these hashes, in their order."""
    wanted, found = set(hashes), {}
    for name in stories:
        for text in Source(name).documents():
            known = digest(text)
            if known in wanted:
                found.setdefault(known, text)
    missing = len(hashes) - len(found)
    if missing > len(hashes) / 10:
        raise DataError(
            f"{len(found):,} of {len(hashes):,} stories are in {', '.join(stories)}; give all "
            "files of TinyStories, both versions, training and validation"
        )
    said = f"; without the {missing:,} others figures will differ" if missing else ""
    print(f"{len(found):,} of {len(hashes):,} stories found{said}")
    return [found[known] for known in hashes if known in found]


def with_fragments(texts: Sequence[str]) -> Iterator[str]:
    """Every text, and of each that is learnt from also its end from some sentence on.

    So a model learns where texts end that do not begin as stories do. None of a held-out text.
    """
    for number, text in enumerate(texts):
        yield text
        rests, rest = [], cut_first(text)[1]
        while rest:
            rests.append(rest)
            rest = cut_first(rest)[1]
        if not rests or is_held_out(text):
            continue
        u = Rng.for_rows(0, torch.tensor([number])).uniform(1).item()
        fragment = rests[int(u * len(rests))]
        if not is_held_out(fragment):
            yield fragment


def is_held_out(text: str) -> bool:
    """Whether preparation puts a text into the validation split."""
    return next(assign([(text, True, None)], HELD_OUT)).split != "train"


def write(texts: Sequence[str] | Iterator[str], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for text in texts:
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")


# --- the models ---


def ship(run: Path, out: Path, defaults: dict) -> None:
    """A run's best model with bfloat16 weights: half the size; the bound moves by less than its
    error. The model card beside it is written by hand."""
    lm = DiffusionLM.from_pretrained(run, dtype=torch.bfloat16)
    lm.options = replace(lm.options, **defaults)
    lm.save(out)
    size = (out / "model.safetensors").stat().st_size
    print(f"{lm.model.num_weights():,} weights, {size / 1e6:.1f} MB in {out}")


if __name__ == "__main__":
    main()
