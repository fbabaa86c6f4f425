"""Turn a trained run into the model that comes with the package.

    python recipes/ship_stories.py runs/stories-4 src/sfumato/shipped/stories

Writes the weights as bfloat16 (half the size; the bound moves by less than its error), the
tokenizer, and the generation defaults below: those that `sfumato calibrate` chose. The model card
beside them is written by hand.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from sfumato.pipeline import DiffusionLM

DEFAULTS = {
    "step": "entropy_bound",
    "step_options": {"gamma": 0.4},
    "temperature": 0.9,
    "top_p": 0.9,
}


def main(run: str, out: str) -> None:
    lm = DiffusionLM.from_pretrained(run, dtype=torch.bfloat16)
    lm.options = replace(lm.options, **DEFAULTS)
    lm.save(out)
    size = (Path(out) / "model.safetensors").stat().st_size
    print(f"{lm.model.num_weights():,} weights, {size / 1e6:.1f} MB in {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
