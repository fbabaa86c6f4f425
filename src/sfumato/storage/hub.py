"""The Hugging Face Hub: a model's files from it and to it, without other packages' bars.

Nothing but numbers and text is downloaded: never code, never pickles.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sfumato.errors import CheckpointError

WANTED = ["*.json", "*.safetensors", "*.jinja"]


@dataclass(frozen=True)
class Place:
    """Where on the Hub a model is looked for, and where on this machine it is kept."""

    revision: str | None = None  # a branch, a tag or a commit
    token: str | bool | None = None  # True: the one that `hf auth login` has stored
    cache_dir: str | Path | None = None


HERE = Place()


@contextmanager
def bars(shown: bool) -> Iterator[None]:
    """With the progress bars of transformers and the Hub, or as if they had none."""
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging

    had = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    if not shown and any(had):
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if not shown and all(had):
            logging.enable_progress_bar()


def download(name: str, place: Place) -> Path:
    """The folder with a model's files, from the Hub or from its cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    cache = None if place.cache_dir is None else Path(place.cache_dir).expanduser()
    try:
        found = snapshot_download(
            name,
            revision=place.revision,
            token=place.token,
            cache_dir=cache,
            allow_patterns=WANTED,
        )
    except RevisionNotFoundError:
        raise CheckpointError(
            f"'{name}' on the Hugging Face Hub has no revision '{place.revision}'; give a branch, "
            "a tag or a commit of it"
        ) from None
    except (HFValidationError, RepositoryNotFoundError):
        raise CheckpointError(
            f"'{name}' is neither a folder here nor a model on the Hugging Face Hub (or it is "
            "private); check the spelling"
        ) from None
    except (OSError, ValueError) as error:  # no network, no space, not in the cache
        raise CheckpointError(
            f"'{name}' is no folder here, and the Hugging Face Hub cannot give it: {_said(error)}"
        ) from error
    folder = Path(found)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"'{name}' on the Hugging Face Hub holds no config.json, so no model")
    return folder


def push(
    name: str, save: Callable[[Path], None], place: Place, private: bool | None, message: str
) -> str:
    """What `save` writes into a folder, as a model on the Hub; its address there."""
    from huggingface_hub import HfApi

    api = HfApi(token=place.token)
    try:
        repository = api.create_repo(name, private=private, exist_ok=True).repo_id
        if place.revision is not None:
            api.create_branch(repository, branch=place.revision, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            save(Path(folder))
            done = api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                revision=place.revision,
                commit_message=message,
            )
    except (OSError, ValueError) as error:  # no network, no leave, no such name
        raise CheckpointError(
            f"cannot push to '{name}' on the Hugging Face Hub: {_said(error)}; save it to a folder "
            "with save, or log in with: hf auth login"
        ) from error
    return str(done.commit_url)


def _said(error: Exception) -> str:
    """The first sentence of what a library says."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0]
