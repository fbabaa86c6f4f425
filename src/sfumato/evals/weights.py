"""The weight files of a model, wherever it is."""

from pathlib import Path

from sfumato.errors import CheckpointError, ConfigError, told
from sfumato.storage.publish import recover


def find_weights(path: str | Path) -> list[Path]:
    """The weight files of a local model, or of a hub model, which is downloaded first.

    Safetensors or GGUF: formats that hold numbers only. Pickled weights can run code: refused.
    """
    place = Path(path).expanduser()
    if place.suffix == ".gguf" and place.is_file():
        return [place]
    recover(place)
    folder = place if place.is_dir() else _download(str(path))
    for ending in (".safetensors", ".gguf"):
        files = sorted(folder.glob(f"*{ending}"))
        if ending == ".gguf" and len(files) > 1:
            names = ", ".join(file.name for file in files)
            raise ConfigError(f"{path} holds several GGUF models ({names}); give the path of one")
        if files:
            return files
    raise CheckpointError(
        f"{path} holds no .safetensors or .gguf file; pickled weights (.bin, .pt) are not opened, "
        "as they can run code: convert them with save_pretrained"
    )


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
        return Path(snapshot_download(name, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{name} is neither a local model nor one that the hub gave: {told(error)}; check the "
            "spelling and the connection"
        ) from error
