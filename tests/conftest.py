"""What every test shares: one thread, no network, and the shared data if it is there."""

import os
import signal
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of processes that tests start
torch.set_num_threads(1)  # small tensors, and pytest-xdist has the other cores


@pytest.fixture(scope="session")
def shared() -> Path:
    """The development data folder; tests that use it are marked `shared`."""
    default = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("SFUMATO_SHARED", default))
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared data in {folder}; name their folder in SFUMATO_SHARED")
    return folder / "data"


@pytest.fixture(scope="session")
def taught_lm():
    """A tiny model that knows a few sentences by heart: `tiny_lm.SENTENCES`."""
    from tiny_lm import taught

    return taught()


@pytest.fixture(scope="session")
def taught_folder(taught_lm, tmp_path_factory) -> Path:
    """The same, saved."""
    folder = tmp_path_factory.mktemp("models") / "taught"
    taught_lm.save(folder)
    return folder


@pytest.fixture(scope="session")
def server():
    """A process that does `work.py`'s jobs and meets faults in them."""
    from faults import Server

    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True, scope="session")
def ctrl_c_reaches_the_tests():
    """A shell's background jobs are born deaf to it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run(monkeypatch, capfd):
    """Run a command: exit code, standard output, standard error."""
    from sfumato.cli import main

    def command(*words):
        monkeypatch.setattr("sys.argv", ["sfumato", *map(str, words)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capfd.readouterr()
        return caught.value.code or 0, out, err

    return command
