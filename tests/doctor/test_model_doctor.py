"""A folder that is whole is said to be, and every damage of it is found."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_lm import SENTENCES, saved, tiny_lm
from typer.testing import CliRunner

from sfumato.cli import app
from sfumato.data.tokenizer import vocabulary_digest
from sfumato.data.tokenizer_training import train_tokenizer
from sfumato.doctor.model import examine_model
from sfumato.errors import CheckpointError
from sfumato.lm.model import DiffusionLM
from sfumato.storage.tensors import DIGEST, digest, read_header

OTHERS = [sentence.upper() for sentence in SENTENCES] * 2


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return saved(tiny_lm(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "tiny")


def change(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def invoke(*words):
    return CliRunner().invoke(app, [*words])


def faults(folder):
    return {f.name: f.detail for f in examine_model(folder) if f.state == "fault"}


def flip(folder):
    """One bit of the last weight, in a file of equal size."""
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def poison(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["norm.weight"][0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_whole_folder_is_whole(folder):
    found = list(examine_model(folder))
    assert [(f.name, f.state) for f in found] == [
        (name, "ok") for name in ("config", "weights", "digest", "tokenizer", "options")
    ]
    result = invoke("doctor", str(folder))
    assert result.exit_code == 0
    assert "digest          the weights are those that were saved" in result.output


DAMAGES = {
    "config": lambda folder: change(folder / "config.json", dropout=-1),
    "weights": poison,
    "digest": flip,
    "tokenizer": lambda folder: train_tokenizer(OTHERS, 330).save_pretrained(folder),
    "options": lambda folder: change(folder / "generation_config.json", temperature=-1),
}


@pytest.mark.parametrize("part", DAMAGES)
def test_every_damage_is_found_where_it_is(folder, part):
    DAMAGES[part](folder)
    assert part in faults(folder)
    result = invoke("doctor", str(folder))
    assert result.exit_code == 1
    assert f"fault    {part}" in result.output


def test_a_folder_of_another_program_is_said_to_have_no_digest(folder):
    save_file(
        load_file(folder / "model.safetensors"), folder / "model.safetensors", {"format": "pt"}
    )
    change(folder / "config.json", vocabulary_digest=None)
    notes = {f.name: f.detail for f in examine_model(folder) if f.state == "note"}
    assert set(notes) == {"digest", "tokenizer"}
    assert "none is recorded" in notes["digest"]
    assert faults(folder) == {}


def test_what_is_no_model_is_a_fault(tmp_path):
    assert "no model in" in faults(tmp_path)["config"]


def test_the_shipped_models_are_whole():
    for name in ("stories", "stories-infill"):
        assert faults(name) == {}


def test_a_saved_model_carries_its_digests(folder):
    lm = DiffusionLM.from_pretrained(folder)
    header = read_header(folder / "model.safetensors", None)  # type: ignore[arg-type]
    assert header.metadata[DIGEST] == digest(dict(lm.model.named_parameters()))
    assert lm.model.config.vocabulary_digest == vocabulary_digest(lm.tokenizer)


def test_another_vocabulary_of_the_same_size_is_refused(folder):
    DAMAGES["tokenizer"](folder)
    with pytest.raises(CheckpointError, match="vocabulary is another one than the model was"):
        DiffusionLM.from_pretrained(folder)


def test_tokens_that_are_added_behind_the_others_do_not_matter():
    tokenizer = train_tokenizer(SENTENCES * 2, 300)
    before = vocabulary_digest(tokenizer)
    tokenizer.add_tokens(["<|new|>"])
    assert vocabulary_digest(tokenizer) != before
    assert vocabulary_digest(tokenizer, int(before.split("-")[0])) == before
