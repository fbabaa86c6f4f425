"""Measure what ways to decode lose, for the record beside the models that come with the package.

    python recipes/calibrate_stories.py MODEL DATA

Writes MODEL/calibration.json, by which the model warns of settings that lose too much; nothing else
changes. DATA is the prepared folder with the held-out stories. Some 5 minutes of one CPU core for
`stories`, 10 for `stories-infill`, whose texts are read one pass after another.
"""

import sys
from pathlib import Path

from sfumato.evals.calibrate import CalibrateOptions, calibrate
from sfumato.evals.record import write
from sfumato.lm.calibrated import RECORD
from sfumato.lm.model import DiffusionLM

# what a user types: fixed numbers of steps, and bolder values of the rules that dare
BLOCKS = CalibrateOptions(
    rows=64,
    num_texts=1,
    step=(
        *("own", "probability", "margin", "entropy", "random"),
        "threshold=0.95,0.9,0.8,0.7,0.5,0.3",
        "entropy_bound=0.1,0.4,0.7,1,1.5,2,3",
        "factor=0.4,1,1.5",
    ),
)
FULL = CalibrateOptions(
    rows=48,
    num_texts=1,
    step=("own", "margin", "threshold=0.95,0.9,0.7,0.5,0.3", "entropy_bound=0.1,0.4,1"),
    block=(16,),
)


def main(model: str, data: str) -> None:
    lm = DiffusionLM.from_pretrained(model)
    options = BLOCKS if lm.block_size else FULL
    made = calibrate(lm, data, options, model_name=model, progress=told)
    write(made, Path(model) / RECORD)
    for row in made["results"]["settings"]:
        if "excess" in row:
            excess, pace = row["excess"]["value"], row["tokens_per_forward"]
            print(f"{row['name']:40} {excess:+.3f} nats a token, {pace:.2f} tokens a pass")
    print(Path(model) / RECORD)


def told(doing: str) -> None:
    print(f"\r{doing}   ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
