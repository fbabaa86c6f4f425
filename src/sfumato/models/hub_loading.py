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

from sfumato.errors import CheckpointError, ConfigError, near, told
from sfumato.models.hub import HubNetwork, read_as
from sfumato.models.memory import check_memory

KINDS = frozenset(CONFIG_MAPPING_NAMES)  # types of models that transformers has code for


def read_hub_config(folder: Path) -> Any:
    """The config of a folder, by transformers' own class; code in the folder is never run."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    causal = not is_masked(config, folder)
    if causal and not hasattr(config, "objective"):
        raise CheckpointError(
            f"the model in {folder} is a causal one, of which nobody has made a diffusion model; "
            "expected a masked language model, or one that a run has trained"
        )
    return read_as(config, causal=causal)


def new_hub_network(kind: str, reading: dict[str, Any], keys: dict[str, Any]) -> HubNetwork:
    """Fresh weights for a type of model; `reading` as in `models.hub.READING`.

    Raises ConfigError for keys that do not go together, as transformers says it.
    """
    auto = AutoModelForCausalLM
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        auto = AutoModelForMaskedLM
    elif kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigError(f"transformers has no language model of type {kind}")
    known = set(AutoConfig.for_model(kind).to_dict())
    for key in keys:
        if key not in known:
            raise ConfigError(f"{kind} has no key model.config.{key}{near(key, known)}")
    try:
        config = AutoConfig.for_model(kind, **keys)
        with torch.device("meta"):
            weights = sum(each.numel() for each in auto.from_config(config).parameters())
    except Exception as error:  # of whatever kind
        raise ConfigError(f"transformers makes no {kind} of model.config: {told(error)}") from error
    check_memory(weights)
    for name, value in reading.items():
        setattr(config, name, value)
    return HubNetwork.of(auto.from_config(config))


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
