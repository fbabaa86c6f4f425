"""Where models come from: folders, the Hugging Face Hub, and this package itself.

A model folder is a plain Hugging Face one: config.json, safetensors weights, the tokenizer's files
and generation_config.json. Nothing in it is run or unpickled.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from sfumato.data.tokenizer import SpecialIds
    from sfumato.options import GenerationOptions

SHIPPED = Path(__file__).parent / "shipped"  # the models that come with the package:
STORIES, STORIES_INFILL = "stories", "stories-infill"  # one of blocks, one of full attention


def load_folder(
    name_or_path: str | Path, dtype: "torch.dtype"
) -> "tuple[Any, PreTrainedTokenizerFast, GenerationOptions]":
    """A model, its tokenizer and its generation options, on the CPU."""
    from sfumato.data.tokenizer import load_tokenizer
    from sfumato.options import read_generation_config

    folder = find_folder(name_or_path)
    return (
        _load_model(folder, str(name_or_path), dtype),
        load_tokenizer(folder),
        read_generation_config(folder),
    )


def find_folder(name_or_path: str | Path) -> Path:
    """The folder of a model: here, or downloaded from the Hub, or a shipped one by name."""
    name, folder = str(name_or_path), Path(name_or_path).expanduser()
    if name in (STORIES, STORIES_INFILL) and not folder.exists():
        if not (SHIPPED / name).exists():
            raise CheckpointError(
                f"the model {name} that comes with sfumato is missing; reinstall sfumato"
            )
        return SHIPPED / name
    if not (folder.exists() or name.startswith((".", "/", "~"))):
        return _download(name)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"no model in {name}: expected a folder with config.json, model.safetensors and "
            "tokenizer.json"
        )
    return folder


def check_tokenizer(
    config: Any, tokenizer: "PreTrainedTokenizerFast", special: "SpecialIds"
) -> None:
    """Raise if a tokenizer is not the one that a model was trained with."""
    if config.vocab_size < len(tokenizer):
        raise CheckpointError(
            f"the tokenizer has {len(tokenizer)} tokens, but the model only {config.vocab_size}: "
            "they do not belong together"
        )
    if config.mask_token_id not in (None, special.mask):
        raise CheckpointError(
            f"the tokenizer's mask token has id {special.mask}, but the model's has "
            f"{config.mask_token_id}: they do not belong together"
        )


def _load_model(folder: Path, name: str, dtype: "torch.dtype") -> Any:
    from sfumato.models import FAMILIES

    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the config.json of {name} is not that of a model ({type(error).__name__}: {error}); "
            "copy or download it again"
        ) from None
    if kind not in FAMILIES:
        raise CheckpointError(
            f"{name} holds a model of type '{kind}'; expected one of: {', '.join(FAMILIES)}"
        )
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{name} holds no model.safetensors; pickled weights (.bin, .pt) are not opened, as "
            "they can run code: convert them with save_pretrained"
        )
    try:
        loaded: Any = FAMILIES[kind][1].from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # whatever a damaged file makes the readers raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"cannot load the model in {name}: {reason}; copy or download it again"
        ) from error
    model, report = loaded
    wrong = [*report["missing_keys"], *report["unexpected_keys"]]
    if wrong:
        raise CheckpointError(
            f"the weights in {name} are not those of its config.json: they differ in "
            f"{', '.join(sorted(wrong)[:3])}; copy or download both again"
        )
    return model


def _download(name: str) -> Path:
    """A model's files from the Hub; never its code, never pickles."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.jinja"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted))
    except (HFValidationError, RepositoryNotFoundError):
        raise CheckpointError(
            f"'{name}' is neither a folder here nor a model on the Hugging Face Hub (or it is "
            "private); check the spelling"
        ) from None
    except OSError as error:  # no network, no space, not in the cache
        reason = str(error).splitlines()[0].split(". ")[0]
        raise CheckpointError(
            f"'{name}' is no folder here, and the Hugging Face Hub cannot give it: {reason}"
        ) from error
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"'{name}' on the Hugging Face Hub holds no config.json, so no model")
    return folder
