"""A result as a JSON that says how it came about: command, settings, seeds, models, versions."""

import json
import math
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import DataError
from sfumato.evals.weights import find_weights
from sfumato.storage.replace import write_text
from sfumato.storage.tensors import fingerprint


def record(
    command: Sequence[str],
    settings: Mapping[str, Any],
    results: Mapping[str, Any],
    *,
    seed: int | Sequence[int],
    device: torch.device | str = "cpu",
    models: Mapping[str, str | Path] | None = None,
) -> dict[str, Any]:
    """Everything needed to get `results` again.

    `command` is like `sys.argv`; of its first word only the file name is kept. `models` maps the
    part a model played to its path. Paths are written as given, never resolved, so that the record
    tells no more about a machine than its user did.
    """
    words = [Path(command[0]).name, *command[1:]]
    return {
        "command": shlex.join(words),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": _plain(settings),
        "seed": _plain(seed),
        "models": {
            part: {"path": str(path), "sha256": fingerprint(find_weights(path))}
            for part, path in (models or {}).items()
        },
        "device": _describe(torch.device(device)),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("sfumato", "torch", "transformers", "tokenizers")},
        },
        "results": _plain(results),
    }


def write(record: Mapping[str, Any], path: str | Path) -> None:
    """Write as JSON, whole or not at all: a reader never meets half a file."""
    text = json.dumps(_plain(record), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n", DataError)


def _plain(value: Any) -> Any:
    """The value in JSON's types; what has none there is given by its `repr`, which can be read."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Tensor):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no nan and no infinity; float() reads these
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value) if isinstance(value, (Path, torch.device, torch.dtype)) else repr(value)


def _describe(device: torch.device) -> dict[str, Any]:
    described = {"type": device.type, "machine": platform.machine(), "system": sys.platform}
    if device.type == "cuda":
        return {**described, "name": torch.cuda.get_device_name(device)}
    return {**described, "threads": torch.get_num_threads()}
