"""How a `DiffusionLM` comes, goes, moves and says what it is."""

import ast
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from local_hub import environment, serve
from tiny_lm import SENTENCES, UNIFORM, tiny_lm
from transformers import AutoConfig, AutoModel
from transformers.utils import logging as foreign

import sfumato.models
from sfumato import ConditionalDiffusionLM, DiffusionLM
from sfumato.devices import weights_dtype
from sfumato.errors import CheckpointError, ConfigError, SfumatoError
from sfumato.models import DiffusionTransformer
from sfumato.storage.hub import bars

SOURCE = Path(sfumato.models.__file__).parents[1]


# what the command line sets where it is not set: other tests run it in this process
QUIET = {f"{library}_VERBOSITY" for library in ("TRANSFORMERS", "HF_HUB", "DATASETS")}
QUIET |= {"HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"}


def run(code: str, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    """Python in a fresh process, as a user's: nothing says that it should be quiet."""
    command = [sys.executable, "-c", code, *arguments]
    own = {name: value for name, value in os.environ.items() if name not in QUIET} | env
    return subprocess.run(command, capture_output=True, text=True, check=True, env=own)


# --- what it is ---


def test_it_says_what_it_is():
    assert re.fullmatch(
        r"DiffusionLM\(masked, 0\.\d\dM weights, \d+ tokens, 48 positions, float32, cpu\)",
        repr(tiny_lm()),
    )
    assert "uniform" in repr(tiny_lm(UNIFORM))
    assert "next token" in repr(tiny_lm(objective="next_token"))
    assert "masked, blocks of 8" in repr(tiny_lm(attention="block_causal", block_size=8))


# --- where it is ---


def test_it_moves_and_turns(taught_folder):
    lm = DiffusionLM.from_pretrained(taught_folder)
    plain = lm.generate("The", seed=0, length=8, precision="fp32").texts
    assert lm.to("cpu") is lm
    assert lm.to(torch.float64).model.dtype == torch.float64
    assert "float64" in repr(lm)
    assert lm.generate("The", seed=0, length=8).texts == plain
    assert lm.to(torch.device("cpu")).device.type == "cpu"


@pytest.mark.parametrize("to", ["nowhere", 3, None, torch.int64, [], "float32", object()])
def test_it_does_not_move_anywhere(to):
    with pytest.raises(ConfigError):
        tiny_lm().to(to)


# --- loading ---


@pytest.mark.parametrize("dtype", ["auto", "float32", "fp32", torch.float32])
def test_weights_have_the_type_that_was_asked_for(taught_folder, dtype):
    assert DiffusionLM.from_pretrained(taught_folder, dtype=dtype).model.dtype == torch.float32


def test_auto_is_the_type_that_is_stored(tmp_path):
    tiny_lm().to(torch.bfloat16).save(tmp_path)
    assert DiffusionLM.from_pretrained(tmp_path, dtype="auto").model.dtype == torch.bfloat16
    assert DiffusionLM.from_pretrained(tmp_path).model.dtype == torch.float32
    assert DiffusionLM.from_pretrained(tmp_path, dtype="bf16").model.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [None, "", "int8", torch.int8, 3, float, [], "Auto"])
def test_other_types_are_refused(dtype):
    with pytest.raises(ConfigError, match=r"dtype must be auto, float32, bfloat16, .*; got"):
        weights_dtype(dtype)


@pytest.mark.parametrize("device", [None, 3, [], object(), "nowhere", "cuda:99", 1e30])
def test_other_devices_are_refused(taught_folder, device):
    with pytest.raises(ConfigError, match="device"):
        DiffusionLM.from_pretrained(taught_folder, device=device)


@pytest.mark.parametrize("name", [None, 3, b"a", [], object(), "a\0b", "~nobody/x", "", "x" * 9999])
def test_what_is_no_name_of_a_model_is_refused(name):
    for load in (DiffusionLM.from_pretrained, ConditionalDiffusionLM.from_pretrained):
        with pytest.raises(SfumatoError):
            load(name)


def test_a_folder_has_no_revisions(taught_folder):
    with pytest.raises(ConfigError, match="is a folder here and has no revisions; leave out"):
        DiffusionLM.from_pretrained(taught_folder, revision="main")


def test_home_is_a_place(taught_lm, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    taught_lm.save("~/model")
    assert (tmp_path / "model" / "config.json").is_file()
    for place in ("~/model", Path("~/model"), tmp_path / "model"):
        lm = DiffusionLM.from_pretrained(place)
        assert lm.generate("The", seed=0, length=3).texts


def test_the_auto_classes_of_transformers_know_the_models(taught_folder):
    assert type(AutoModel.from_pretrained(taught_folder)) is DiffusionTransformer
    assert AutoConfig.from_pretrained(taught_folder).model_type == "sfumato"


# --- the hub ---


def test_a_revision_is_asked_of_the_hub(taught_folder, tmp_path):
    hub = tmp_path / "hub"
    (hub / "models" / "someone").mkdir(parents=True)
    (hub / "models" / "someone" / "tiny").symlink_to(taught_folder)
    code = (
        "import sys; from sfumato import DiffusionLM\n"
        "lm = DiffusionLM.from_pretrained('someone/tiny', revision='main', token=False,"
        " cache_dir=sys.argv[1])\nprint(lm.generate(length=2, seed=0).num_steps)"
    )
    with serve(hub) as url:
        command = [sys.executable, "-c", code, str(tmp_path / "cache")]
        env = environment(url, tmp_path / "home")
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert list((tmp_path / "cache").glob("models--someone--tiny"))


def test_without_the_hub_pushing_says_so(taught_lm):
    for name in ("someone/tiny", "a b", ""):
        with pytest.raises(CheckpointError, match=f"cannot push to '{name}' on the Hugging Face H"):
            taught_lm.push_to_hub(name)


def test_what_is_pushed_is_what_is_saved(taught_lm, taught_folder, tmp_path, monkeypatch):
    calls = {}

    class Api:
        """The calls that huggingface_hub has; what it does with them is its own."""

        def __init__(self, token=None):
            calls["token"] = token

        def create_repo(self, name, *, private, exist_ok):
            calls["repo"] = (name, private, exist_ok)
            return type("Made", (), {"repo_id": f"me/{name}"})

        def create_branch(self, name, *, branch, exist_ok):
            calls["branch"] = (name, branch, exist_ok)

        def upload_folder(self, *, repo_id, folder_path, revision, commit_message):
            files = sorted(path.name for path in Path(folder_path).iterdir())
            calls["upload"] = (repo_id, revision, commit_message, files)
            return type("Done", (), {"commit_url": "https://hub/me/tiny/commit/1"})

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    address = taught_lm.push_to_hub("tiny", private=True, revision="v1", token="t")
    assert address == "https://hub/me/tiny/commit/1"
    assert calls["token"] == "t"
    assert calls["repo"] == ("tiny", True, True)
    assert calls["branch"] == ("me/tiny", "v1", True)
    saved = sorted(path.name for path in taught_folder.iterdir() if not path.name.startswith("."))
    repo, revision, message, files = calls["upload"]
    assert (repo, revision, message) == ("me/tiny", "v1", "Upload a sfumato model")
    assert [name for name in files if not name.startswith(".")] == saved


# --- quiet ---


def test_nobody_but_the_command_line_prints():
    for path in SOURCE.rglob("*.py"):
        if path.relative_to(SOURCE).parts[0] in ("cli", "__main__.py"):
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)]
        assert not [n for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"], path


def test_loading_writing_and_saving_are_silent(taught_folder, tmp_path):
    code = (
        "import sys; from sfumato import DiffusionLM\n"
        "lm = DiffusionLM.from_pretrained(sys.argv[1])\n"
        "lm.generate(length=2, seed=0)\nlm.save(sys.argv[2])\n"
        "print('aloud:', file=sys.stderr)\n"
        "DiffusionLM.from_pretrained(sys.argv[1], progress=True)"
    )
    done = run(code, str(taught_folder), str(tmp_path / "one"))
    assert done.stdout == ""
    silent, aloud = done.stderr.split("aloud:\n")
    assert silent == ""
    assert "Loading weights" in aloud


def test_bars_come_back_for_others():
    was = foreign.is_progress_bar_enabled()
    with bars(False):
        assert not foreign.is_progress_bar_enabled()
    assert foreign.is_progress_bar_enabled() == was
    foreign.disable_progress_bar()
    try:
        with bars(False):
            pass
        assert not foreign.is_progress_bar_enabled()
    finally:
        if was:
            foreign.enable_progress_bar()


def test_who_listens_hears_what_was_loaded(taught_folder, caplog):
    with caplog.at_level(logging.INFO, logger="sfumato"):
        DiffusionLM.from_pretrained(taught_folder)
    assert any("loaded" in said and "DiffusionLM(masked" in said for said in caplog.messages)
    assert json.loads((taught_folder / "config.json").read_text())["model_type"] == "sfumato"


def test_no_library_speaks_on_the_command_line(taught_folder, tmp_path, monkeypatch):
    (tmp_path / "texts.txt").write_text("\n<|endoftext|>\n".join(SENTENCES))
    keys = (
        ("model.init_from", taught_folder),
        ("train.max_steps", 1),
        ("train.warmup_steps", 0),
        ("train.device", "cpu"),
    )
    keys = ("data.folder", "prepared"), ("evaluate.eval_steps", 0), ("data.length", 32), *keys
    (tmp_path / "run.json").write_text(json.dumps({"output": "out"}))
    code = (
        "import json, sys\nfrom sfumato.cli import app\n"
        "for words in json.loads(sys.argv[1]):\n    app(words, standalone_mode=False)"
    )
    commands = [
        ["data", "prepare", "texts.txt", "prepared", "--tokenizer", str(taught_folder)],
        ["train", "run.json", *(f"{key}={value}" for key, value in keys)],
    ]
    monkeypatch.chdir(tmp_path)
    done = run(code, json.dumps(commands))
    assert "step" in done.stderr + done.stdout
    assert "[transformers]" not in done.stderr
    assert "Loading weights" not in done.stderr


def test_bars_of_tqdm_do_not_show_on_the_command_line():
    code = (
        "from typer.testing import CliRunner\nfrom sfumato.cli import app\n"
        "CliRunner().invoke(app, ['doctor', '--help'])\n"
        "import tqdm\nlist(tqdm.tqdm(range(3)))"
    )
    assert "3/3" in run(code, TQDM_DISABLE="").stderr  # a user's own word counts
    assert "3/3" not in run(code).stderr
