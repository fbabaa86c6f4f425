"""Folders of transformers' own models: which class, whose code, and what is missing."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # type: ignore[attr-defined]
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from sfumato.errors import CheckpointError
from sfumato.models.hub import HubNetwork, read_as

KINDS = frozenset(CONFIG_MAPPING_NAMES)  # types of models that transformers has code for


def read_hub_config(folder: Path) -> Any:
    """The config of a folder, by transformers' own class; code in the folder is never run."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return read_as(config, causal=not is_masked(config, folder))


def load_hub(folder: Path, config: Any, dtype: "torch.dtype | str") -> HubNetwork:
    """A masked or causal language model, with every weight that its config asks for."""
    auto = AutoModelForMaskedLM if is_masked(config, folder) else AutoModelForCausalLM
    loaded: Any = auto.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    model, told = loaded
    _check_told(folder, told)
    return HubNetwork.of(model).eval()


def is_masked(config: Any, folder: Path) -> bool:
    """Whether a model fills in masks; a causal one continues. Raises for what does neither."""
    masked = set(_flat(MODEL_FOR_MASKED_LM_MAPPING_NAMES))
    causal = set(_flat(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    for name in config.architectures or ():
        if name in masked or name in causal:
            return name in masked
    if config.architectures:
        raise CheckpointError(
            f"the model in {folder} is a {config.architectures[0]} of type {config.model_type}; "
            "expected a masked or a causal language model of transformers"
        )
    kind = config.model_type
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return True
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return False
    raise CheckpointError(f"transformers has no language model of type {kind}, that of {folder}")


def _flat(names: Any) -> list[str]:
    found = []
    for value in names.values():
        found += [value] if isinstance(value, str) else list(value)
    return found


def _check_told(folder: Path, told: dict[str, Any]) -> None:
    """Raise for weights that are missing, or of another shape."""
    missing, odd = sorted(told["missing_keys"]), sorted(map(str, told["mismatched_keys"]))
    if not (missing or odd):
        return
    name, near = (missing or odd)[0], ""
    close = get_close_matches(name, map(str, told["unexpected_keys"]), 1)
    if missing and close:
        near = f" (it has {close[0]})"
    raise CheckpointError(
        f"the weights in {folder} are not those of its config.json: "
        f"{'no weight' if missing else 'another shape of'} {name}{near}"
        + (f", and {len(missing) + len(odd) - 1} more" if len(missing) + len(odd) > 1 else "")
        + "; copy or download both again"
    )
