"""A network as a plain Hugging Face folder."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.storage.tensors import save_tensors

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def save_network(folder: Path, config: Any, weights: Mapping[str, Tensor]) -> None:
    """Config and weights; whoever may read the one may read the other."""
    save_tensors(weights, folder / WEIGHTS)
    config.save_pretrained(folder)
    shutil.copymode(folder / CONFIG, folder / WEIGHTS)  # safetensors keeps its files to their owner
