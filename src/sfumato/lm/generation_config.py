"""A model's defaults of generation: generation_config.json in its folder."""

import json
from dataclasses import asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.rules import rule_name
from sfumato.errors import CheckpointError, ConfigError, near
from sfumato.storage.files import Remedy, foreign
from sfumato.storage.structured import read_object

DEFAULTS = Remedy(CheckpointError, "mend it there, or take it away: it holds a model's defaults")


def write_generation_config(folder: str | Path, options: GenerationOptions, **ids: int) -> None:
    """Save a model's defaults as generation_config.json; `ids` are its special tokens."""
    if not (options.step is None or isinstance(options.step, str)) or ":" in (options.step or ""):
        raise ConfigError(
            f"step {rule_name(options.step)} is code, and a model's folder holds none: save with a "
            "rule by its name, and give yours to every generation"
        )
    values = {k: v for k, v in asdict(options).items() if v not in (None, (), {})}
    text = json.dumps({**ids, **values}, indent=2, sort_keys=True)
    (Path(folder) / "generation_config.json").write_text(text + "\n", encoding="utf-8")


def read_generation_config(folder: str | Path) -> GenerationOptions:
    """A model's defaults. Keys that are not ours are left alone, but those that look misspelt."""
    path = Path(folder) / "generation_config.json"
    if not path.exists():
        return GenerationOptions()
    values = read_object(path, DEFAULTS)
    known = {f.name for f in fields(GenerationOptions)}
    for key in values:
        if key not in known and get_close_matches(key, known, 1, 0.85) and not _is_standard(key):
            raise DEFAULTS.fault(path, f"unknown key '{key}'{near(key, known)}")
    ours: dict[str, Any] = {k: v for k, v in values.items() if k in known and v is not None}
    if ":" in str(ours.get("step")):
        raise DEFAULTS.fault(
            path, f"step '{ours['step']}' is code, and no code of a model's is run"
        )
    with foreign(path, DEFAULTS):
        try:
            return GenerationOptions(**ours)
        except ConfigError as error:
            raise DEFAULTS.fault(path, str(error)) from None


def _is_standard(key: str) -> bool:
    """Whether Hugging Face writes such a key into a generation_config.json."""
    from transformers import GenerationConfig

    return key in vars(GenerationConfig()) or key.startswith("_") or key.endswith("_token_id")
