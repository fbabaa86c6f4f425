"""Where models come from: folders, the Hugging Face Hub, and this package itself.

A model folder is a plain Hugging Face one: config.json, safetensors weights, the tokenizer's files
and generation_config.json. Nothing in it is run or unpickled; a schedule of one's own is named
there, and imported from where the user has it.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.errors import CheckpointError, ConfigError
from sfumato.storage.files import Remedy, brief, check_folder, foreign
from sfumato.storage.hub import HERE, Place, download
from sfumato.storage.publish import read_whole, recover
from sfumato.storage.structured import check_shape, read_object
from sfumato.user_parts import is_own

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from sfumato.data.special_tokens import SpecialIds
    from sfumato.decoding.options import GenerationOptions
    from sfumato.lm.calibrated import Calibration

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FLOATS = ("F64", "F32", "F16", "BF16")
MODEL = Remedy(CheckpointError, "copy or download the model again")
SETTINGS = Remedy(CheckpointError, "mend it there, or copy or download the model again")
SHIPPED = Path(__file__).parents[1] / "shipped"  # the models that come with the package:
STORIES, STORIES_INFILL = "stories", "stories-infill"  # one of blocks, one of full attention


def load_folder(
    name_or_path: str | Path, dtype: "torch.dtype | str", place: Place = HERE
) -> "tuple[Any, PreTrainedTokenizerFast, GenerationOptions, Calibration | None]":
    """A model, its tokenizer, its generation options and the record of its calibration.

    On the CPU; dtype "auto": as stored.
    """
    from sfumato.data.tokenizer_files import load_tokenizer
    from sfumato.lm.calibrated import Calibration
    from sfumato.lm.generation_config import read_generation_config

    folder = find_folder(name_or_path, place)

    def read() -> "tuple[Any, PreTrainedTokenizerFast, GenerationOptions, Calibration | None]":
        model = _load_model(folder, str(name_or_path), dtype)
        calibration = Calibration.read(folder, model.config)
        return model, load_tokenizer(folder), read_generation_config(folder), calibration

    return read_whole(folder, read)


def find_folder(name_or_path: str | Path, place: Place = HERE) -> Path:
    """The folder of a model: here, or downloaded from the Hub, or a shipped one by name."""
    if not isinstance(name_or_path, str | Path):
        from sfumato.arguments import shown  # loads torch

        raise ConfigError(f"a model is the name or path of a folder, got {shown(name_or_path)}")
    name, folder = str(name_or_path), _folder(name_or_path)
    if name in (STORIES, STORIES_INFILL) and not folder.exists():
        if not (SHIPPED / name).exists():
            raise CheckpointError(
                f"the model {name} that comes with sfumato is missing; reinstall sfumato"
            )
        return SHIPPED / name
    if not (folder.exists() or name.startswith((".", "/", "~"))):
        return _without_code(download(name, place), name)
    if place.revision is not None:
        raise ConfigError(f"{name} is a folder here and has no revisions; leave out revision")
    recover(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"no model in {name}: expected a folder with config.json, model.safetensors and "
            "tokenizer.json"
        )
    return folder


def _without_code(folder: Path, name: str) -> Path:
    """A downloaded folder, if its config names no code that this process has not imported.

    A folder here may name a schedule of the user's own, which is then imported.
    """
    pending: list[Any] = [read_object(folder / CONFIG, MODEL).get("corruption")]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending += value.values()
        elif is_own(value) and value.partition(":")[0] not in sys.modules:
            raise CheckpointError(
                f"{name} of the Hub was trained with {value}, code that does not come with it, and "
                f"none is imported because a download says so; if you know it, import "
                f"{value.partition(':')[0]} before you load the model"
            )
    return folder


def _folder(name: str | Path) -> Path:
    """A path as the system has it."""
    try:
        folder = Path(name).expanduser()
        folder.exists()
    except (ValueError, RuntimeError, OSError) as error:  # NUL, a home that is none, too long
        from sfumato.arguments import shown  # loads torch

        raise CheckpointError(f"{shown(name)} is no path: {error}; give that of a folder") from None
    return folder


def check_tokenizer(
    config: Any, tokenizer: "PreTrainedTokenizerFast", special: "SpecialIds"
) -> None:
    """Raise if a tokenizer is not the one that a model was trained with."""
    from sfumato.data.tokenizer import vocabulary_digest

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
    known = getattr(config, "vocabulary_digest", None)
    # tokens that were added behind them later change no number
    if known is not None and known != vocabulary_digest(tokenizer, int(known.split("-")[0])):
        raise CheckpointError(
            "the tokenizer's vocabulary is another one than the model was trained with: they do "
            "not belong together; take the tokenizer from the model's own folder"
        )


def _load_model(folder: Path, name: str, dtype: "torch.dtype | str") -> Any:
    from sfumato.models import FAMILIES

    check_folder(folder, MODEL)
    config = read_config(folder)
    if config.model_type in FAMILIES:
        check_weights(folder, config)
    with foreign(f"cannot load the model in {name}", MODEL):
        return load_weights(folder, config, dtype)


def load_weights(folder: Path, config: Any, dtype: "torch.dtype | str" = "auto") -> Any:
    """The network of a folder whose config has been read; raises for numbers that are none."""
    from sfumato.models import FAMILIES
    from sfumato.models.hub_loading import load_hub
    from sfumato.storage.tensors import check_finite

    weight_files(folder)  # raises where there are none but pickled ones
    if config.model_type in FAMILIES:
        family: Any = FAMILIES[config.model_type][1]
        own = {"config": config, "dtype": dtype, "use_safetensors": True}
        model = family.from_pretrained(folder, **own)
    else:
        model = load_hub(folder, config, dtype)
    check_finite(model.named_parameters(), folder)
    return model


def read_config(folder: Path) -> Any:
    """The config of a model folder, every key of it checked."""
    from sfumato.models import FAMILIES, EncoderDecoderConfig
    from sfumato.models.config import config_problem, encoder_problem

    path = folder / CONFIG
    keys = read_object(path, MODEL)
    kind = keys.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        from sfumato.models.hub_loading import KINDS, read_hub_config

        if isinstance(kind, str) and kind in KINDS:
            with foreign(path, MODEL):
                return read_hub_config(folder)
        own_code = "; it brings its own code, which is never run" if "auto_map" in keys else ""
        raise CheckpointError(
            f"{path} is that of a model of type {brief(kind)}{own_code}; expected one of: "
            f"{', '.join(FAMILIES)}, or a type that transformers has code for"
        )
    family = FAMILIES[kind][0]
    own, encoder = dict(keys), None
    if family is EncoderDecoderConfig:
        encoder = own.pop("encoder", None)
    problem = config_problem(own) or (None if encoder is None else encoder_problem(encoder))
    if problem:
        raise SETTINGS.fault(path, problem)
    with foreign(path, MODEL):
        return family(**keys)


def write_model(
    folder: Path, model: Any, weights: "Mapping[str, torch.Tensor]", tokenizer: Any
) -> None:
    """A model's config and weights, which say whose tokenizer and which values are theirs."""
    from sfumato.data.tokenizer import vocabulary_digest

    model.config.vocabulary_digest = vocabulary_digest(tokenizer)
    model.write(folder, weights)


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights: one, or those that an index lists."""
    one, index = folder / WEIGHTS, folder / f"{WEIGHTS}.index.json"
    if one.exists():
        return [one]
    if not index.exists():
        raise CheckpointError(
            f"{folder} holds no {WEIGHTS}; pickled weights (.bin, .pt) are not opened, as "
            "they can run code: convert them with save_pretrained"
        )
    whole = read_object(index, MODEL)
    check_shape(whole, {"weight_map": dict}, index, MODEL)
    listed = whole["weight_map"]
    names = set(listed.values()) if all(isinstance(v, str) for v in listed.values()) else {""}
    if not names or any(Path(name).name != name or not name for name in names):
        raise MODEL.fault(index, "'weight_map' must give the name of a file for every weight")
    return [folder / name for name in sorted(names)]


def check_weights(folder: Path, config: Any) -> None:
    """Raise unless the weights have the names and shapes that the config asks for.

    Before a network is built: sizes that are wrong may be larger than the machine.
    """
    import torch

    from sfumato.models import FAMILIES
    from sfumato.storage.tensors import read_header

    headers = [read_header(path, MODEL) for path in weight_files(folder)]
    found = {name: shape for header in headers for name, shape in header.shapes.items()}
    integers = [name for one in headers for name, kind in one.types.items() if kind not in FLOATS]
    family: Any = FAMILIES[config.model_type][1]
    with torch.device("meta"), foreign(folder / CONFIG, MODEL):
        network = family(config)
    wanted = {name: tuple(weight.shape) for name, weight in network.named_parameters()}
    also = {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
    wrong = [name for name, shape in wanted.items() if found.get(name) != shape]
    wrong += [name for name, shape in found.items() if also.get(name) != shape]
    if wrong := sorted({*wrong, *integers}):
        name = wrong[0]
        raise CheckpointError(
            f"the weights in {folder} are not those of its config.json: they differ in "
            f"{', '.join(wrong[:3])} ({name}: expected {also.get(name, 'none')}, got "
            f"{found.get(name, 'none')}); copy or download both again"
        )
