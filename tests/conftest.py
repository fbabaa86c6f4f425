"""What every test shares: one thread, no network, and the shared data if it is there."""

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)  # small tensors, and pytest-xdist has the other cores


@pytest.fixture(scope="session")
def shared() -> Path:
    """The development data folder; tests that use it are marked `shared`."""
    default = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("SFUMATO_SHARED", default))
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared data in {folder}; name their folder in SFUMATO_SHARED")
    return folder / "data"
