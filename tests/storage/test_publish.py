"""A folder is published whole or not at all, whatever is killed or fails at which operation."""

import os
import shutil
import stat
from pathlib import Path

import pytest
from faults import FAILURES, KILLS
from tiny_lm import tiny_lm
from work import new_lm

import sfumato.lm.folders as folders_module
from sfumato.errors import CheckpointError
from sfumato.lm.model import DiffusionLM
from sfumato.storage.publish import is_part, published
from sfumato.storage.replace import replaced, write_text

USERS = {"README.md": "mine", ".git/HEAD": "ref", "notes/model.safetensors": "mine too"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model as it was, in shards and with a file that no tokenizer has now; and as it will be."""
    root = tmp_path_factory.mktemp("models")
    old = tiny_lm(num_hidden_layers=2)
    old.save(root / "old")
    (root / "old" / "model.safetensors").unlink()
    old.model.save_pretrained(root / "old", max_shard_size="20KB")
    (root / "old" / "added_tokens.json").write_text("{}")
    assert len(list((root / "old").glob("model-*"))) > 1
    new_lm().save(root / "new")
    return root


def contents(folder: Path) -> dict[str, bytes]:
    """Of everything in it, but for the user's."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    found = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    return {name: data for name, data in found.items() if name not in USERS}


def with_users_files(folder: Path) -> None:
    for name, text in USERS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def check_users_files(folder: Path) -> None:
    for name, text in USERS.items():
        assert (folder / name).read_text() == text


def over_an_old_one(folders: Path, place: Path) -> Path:
    shutil.copytree(folders / "old", place / "out")
    with_users_files(place / "out")
    return place / "out"


def moments(server, folders: Path, place: Path, every: int) -> list[int]:
    """Every so many operations, and all from the moment on that decides."""
    over_an_old_one(folders, place)
    trial = server.trial("save", place)
    assert trial.ended == "done"
    count = len(trial.operations)
    decides = next(n for n, name in enumerate(trial.operations) if name.startswith("rename"))
    return sorted({*range(0, count, every), *range(decides - 1, count)})


def check_whole(folder: Path, folders: Path) -> str:
    """Which model the folder holds: it is whole, and so is what others than us would read."""
    whole = {name: contents(folders / name) for name in ("old", "new")}
    seen = {name: data for name, data in contents(folder).items() if "/" not in name}
    if "config.json" in seen:  # else it is no model to anybody
        assert seen in ({**whole["old"]}, {**whole["new"]})
    DiffusionLM.from_pretrained(folder)
    check_users_files(folder)
    found = {
        name: data for name, data in contents(folder).items() if not is_part(name.split("/")[0])
    }
    return next(name for name, files in whole.items() if files == found)


def interrupt_saves(server, folders, place, kind, every):
    states = []
    for at in moments(server, folders, place / "all", every):
        trying = place / str(at)
        out = over_an_old_one(folders, trying)
        trial = server.trial("save", trying, kind, at)
        if kind in KILLS:
            assert trial.ended == "killed"
        elif trial.ended == "error":
            assert trial.told.startswith(f"CheckpointError: cannot write to {out}: ")
            assert trial.told.endswith(("give the same command again", "where it can be written"))
        else:
            assert trial.ended == "done", trial  # a mkdir of what was there
        state = check_whole(out, folders)
        assert state == "new" or trial.ended != "done"
        states += [state] * (trial.ended != "done")
        assert server.trial("save", trying).ended == "done"
        assert contents(out) == contents(folders / "new")
        check_users_files(out)
        shutil.rmtree(trying)
    assert states == sorted(states, key=["old", "new"].index)  # once new, new for good
    assert set(states) == {"old", "new"}


def test_a_model_saved_over_another_is_the_old_or_the_new_one(server, folders, tmp_path):
    interrupt_saves(server, folders, tmp_path, "half", 24)


def test_a_save_on_a_full_disk_loses_nothing(server, folders, tmp_path):
    interrupt_saves(server, folders, tmp_path, "ENOSPC", 16)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KILLS, *FAILURES])
def test_a_save_may_end_at_any_operation(server, folders, tmp_path, kind):
    interrupt_saves(server, folders, tmp_path, kind, 1)


# --- the module by itself, without models ---


def put(folder: Path, **files: str) -> None:
    with published(folder) as new:
        for name, text in files.items():
            (new / f"{name}.json").write_text(text)


def interrupted(file: Path) -> None:
    file.write_text("2")
    raise ZeroDivisionError


def texts(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in folder.iterdir()}


def test_a_folder_stays_the_folder_that_it_is(tmp_path, monkeypatch):
    real = tmp_path / "real"
    put(real, config="1", tokenizer="1")
    inode = real.stat().st_ino
    (tmp_path / "link").symlink_to(real)
    put(tmp_path / "link", config="2")
    monkeypatch.chdir(real)
    put(Path("."), config="3")
    assert texts(Path(".")) == {"config": "3", "tokenizer": "1"}
    assert real.stat().st_ino == inode
    assert (tmp_path / "link").is_symlink()


def test_a_link_in_a_folder_is_replaced_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "blob").write_text("cached")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").symlink_to(tmp_path / "blob")
    put(tmp_path / "out", config="1")
    assert (tmp_path / "blob").read_text() == "cached"
    assert texts(tmp_path / "out") == {"config": "1"}


def test_what_is_published_is_as_open_as_its_folder(tmp_path):
    with published(tmp_path / "out") as new:
        (new / "model.safetensors").touch(0o600)
    mode = (tmp_path / "out").stat().st_mode & 0o666
    assert stat.S_IMODE((tmp_path / "out" / "model.safetensors").stat().st_mode) == mode


def test_a_body_that_fails_leaves_the_folder_as_it_was(tmp_path):
    put(tmp_path / "out", config="1")
    for folder in ("out", "other"):
        with pytest.raises(ZeroDivisionError), published(tmp_path / folder) as new:
            interrupted(new / "config.json")
    assert texts(tmp_path / "out") == {"config": "1"}
    assert not (tmp_path / "other").exists()


def test_parts_of_the_dead_are_swept_and_those_of_the_living_are_not(tmp_path):
    dead = tmp_path / "out" / ".sfumato.00000000.part"
    dead.mkdir(parents=True)
    (dead / "config.json").write_text("half")
    with published(tmp_path / "out") as one:
        assert not dead.exists()
        (one / "config.json").write_text("1")
        put(tmp_path / "out", config="2")  # another process, meanwhile
    assert texts(tmp_path / "out") == {"config": "1"}


def test_a_folder_in_the_place_of_a_file_is_spared(tmp_path):
    (tmp_path / "out" / "config.json").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"cannot write to .*out: config.json is a folder"):
        put(tmp_path / "out", config="1")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.json"]


def test_what_cannot_be_put_in_place_is_told_at_the_next_reading(tmp_path, monkeypatch):
    put(tmp_path / "out", config="1")

    def broken(*args):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", broken)
        patch.setattr(Path, "replace", broken)
        with pytest.raises(CheckpointError, match=r"its new files are whole, but not all of them"):
            put(tmp_path / "out", config="2")
        with pytest.raises(
            CheckpointError, match=r"out: Input/output error; its new files .* it can"
        ):
            DiffusionLM.from_pretrained(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"config.json"):  # it is none of a model
        DiffusionLM.from_pretrained(tmp_path / "out")
    assert texts(tmp_path / "out") == {"config": "2"}


@pytest.mark.parametrize("place", ["file/out", "nul\0"])
def test_a_place_that_cannot_be_is_named(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write to .*; what was complete"):
        put(tmp_path / place, config="1")


def test_a_device_is_written_to_and_a_link_stays_a_link(tmp_path):
    write_text("/dev/null", "gone")
    assert Path("/dev/null").is_char_device()
    write_text(tmp_path / "real", "1")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link", "2")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "2"


def test_a_file_is_replaced_as_a_whole(tmp_path):
    write_text(tmp_path / "one", "1")
    (tmp_path / ".one.00000000.part").write_text("half")  # of a process that died
    with pytest.raises(ZeroDivisionError), replaced(tmp_path / "one") as new:
        interrupted(new)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"one": "1"}


def test_a_model_that_is_replaced_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    old, new = tiny_lm(num_hidden_layers=2), new_lm()
    old.save(tmp_path)
    load, saved = folders_module._load_model, []

    def load_model(*args):
        loaded = load(*args)
        if not saved:  # between the weights and the rest
            saved.append(new.save(tmp_path))
        return loaded

    monkeypatch.setattr(folders_module, "_load_model", load_model)
    assert DiffusionLM.from_pretrained(tmp_path).model.config.num_hidden_layers == 1


def test_a_model_that_is_replaced_all_the_time_is_an_error(tmp_path, monkeypatch):
    load = folders_module._load_model
    new_lm().save(tmp_path)

    def load_model(*args):
        loaded = load(*args)
        new_lm().save(tmp_path)
        return loaded

    monkeypatch.setattr(folders_module, "_load_model", load_model)
    with pytest.raises(CheckpointError, match=r"replaced 5 times while it was read; try again"):
        DiffusionLM.from_pretrained(tmp_path)


def test_nothing_is_written_beside_a_folder(server, tmp_path):
    """Its parent may be read-only, or another file system."""
    trial = server.trial("save", tmp_path)
    assert trial.ended == "done"
    assert all(name.split()[1].startswith("/out") for name in trial.operations)


def test_a_tokenizer_of_rust_on_a_full_disk_is_an_error_of_ours(tmp_path, server):
    trial = server.trial("tokenizer", tmp_path)
    number = next(n for n, name in enumerate(trial.operations) if name.startswith("tokenizer"))
    shutil.rmtree(tmp_path / "out")
    trial = server.trial("tokenizer", tmp_path, "ENOSPC", number)
    assert trial.told.startswith(
        f"TokenizerError: cannot write to {tmp_path / 'out'}: No space left"
    )
    assert not (tmp_path / "out").exists()
