import json
import shutil
import subprocess
import sys

import pytest
import torch
from local_hub import environment, serve
from safetensors.torch import load_file, save_file
from tiny_lm import saved, tiny_lm
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer

import sfumato.models  # noqa: F401 (teaches the Auto classes our types)
from sfumato.errors import CheckpointError, TokenizerError
from sfumato.lm.folders import SHIPPED, find_folder
from sfumato.lm.model import DiffusionLM


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return saved(tiny_lm(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(original, tmp_path):
    """A copy to damage."""
    return shutil.copytree(original, tmp_path / "tiny")


def change_config(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


# --- what works ---


def test_a_saved_model_is_the_same_when_it_is_loaded(taught_lm, taught_folder):
    loaded = DiffusionLM.from_pretrained(taught_folder)
    assert loaded.options == taught_lm.options
    for name, weight in taught_lm.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight), name
    assert not loaded.model.training
    again = {"prompt": "The", "seed": 3}
    assert loaded.generate(**again) == taught_lm.generate(**again)


def test_generation_options_travel_with_the_model(tmp_path):
    lm = tiny_lm()
    options = lm.options.with_changes(step="threshold", step_options={"level": 0.5}, suppress=(9,))
    loaded = DiffusionLM.from_pretrained(
        saved(DiffusionLM(lm.model, lm.tokenizer, options), tmp_path)
    )
    assert loaded.options == options
    special = {"mask_token_id": loaded.special.mask, "eos_token_id": loaded.special.eos}
    assert json.loads((tmp_path / "generation_config.json").read_text()).items() >= special.items()


def test_a_folder_is_a_plain_hugging_face_model(original):
    files = {path.name for path in original.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".py"))]
    assert AutoConfig.from_pretrained(original).model_type == "sfumato"
    model = AutoModelForMaskedLM.from_pretrained(original)
    encoded = AutoTokenizer.from_pretrained(original)("The fox", return_tensors="pt")
    with torch.no_grad():
        logits = model(encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
    assert logits.shape == (*encoded["input_ids"].shape, model.config.vocab_size)


def test_a_home_folder_is_found(original, monkeypatch):
    monkeypatch.setenv("HOME", str(original.parent))
    assert find_folder("~/tiny").samefile(original)


def test_stories_is_a_folder_here_or_the_shipped_model(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("stories", "stories-infill"):
        assert find_folder(name) == SHIPPED / name
    shutil.copytree(original, "stories")
    assert find_folder("stories").samefile(tmp_path / "stories")


def test_a_missing_shipped_model_is_said_to_be_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sfumato.lm.folders.SHIPPED", tmp_path / "none")
    with pytest.raises(CheckpointError, match="stories that comes with sfumato is missing"):
        find_folder("stories")


# --- what does not ---


def refused(folder, message):
    with pytest.raises(CheckpointError, match=message) as caught:
        DiffusionLM.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    refused(tmp_path / "none", "no model in .*none: expected a folder with config.json")
    refused("./none", r"no model in \./none")


def test_a_folder_without_a_config_is_refused(folder):
    (folder / "config.json").unlink()
    refused(folder, "no model in .*tiny: expected a folder with config.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1: not JSON"),
        ("{", "line 1, column 2: not JSON"),
        ("[]", r"expected a JSON object, got \[\]"),
        ("{}", "is that of a model of type None; expected one of: sfumato"),
        ("3", "expected a JSON object, got 3"),
        ("[" * 10**5, "nested deeper than 64 levels"),
        ('{"vocab_size": ' + "1" * 5000 + "}", "a number of too many digits"),
        ('{"model_type": ["sfumato"]}', r"a model of type \['sfumato'\]; expected one of"),
    ],
)
def test_a_broken_config_is_refused(folder, text, message):
    (folder / "config.json").write_text(text)
    refused(folder, f"tiny/config.json.*{message}")


def test_a_model_of_another_family_is_refused(folder):
    change_config(folder, model_type="bert")
    refused(folder, "is a DiffusionTransformer of type bert; expected a masked")


def test_pickled_weights_are_not_opened(folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    refused(folder, r"holds no model.safetensors; pickled weights .* are not opened")


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_damaged_weights_are_refused(folder, size):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    refused(folder, "tiny/model.safetensors: Error while deserializing header: .*; copy or down")


@pytest.mark.parametrize(
    "keys",
    [
        {"hidden_size": 64},
        {"hidden_size": 2**16, "num_hidden_layers": 64},  # more than any machine holds
        {"vocab_size": 2**24},
        {"intermediate_size": 64},
        {"time_conditioned": True},
    ],
    ids=repr,
)
def test_weights_of_another_shape_are_refused_before_a_network_is_built(folder, keys):
    change_config(folder, **keys)
    refused(folder, r"weights in .*tiny are not those of its config.json: .*expected .*, got ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_numbers_are_refused(folder, value):
    tensors = load_file(folder / "model.safetensors")
    tensors["norm.weight"][3] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "not numbers: NaN or infinity in norm.weight; take an older checkpoint")


def test_whole_numbers_are_no_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["norm.weight"] = tensors["norm.weight"].long()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "differ in norm.weight")


def shards(folder):
    """The same weights in two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, owner = sorted(tensors), {}
    for number, part in enumerate((names[:3], names[3:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        owner |= dict.fromkeys(part, file)
    return owner


def write_index(folder, owner):
    index = {"metadata": {"total_size": 1}, "weight_map": owner}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_weights_may_lie_in_several_files(folder, original):
    write_index(folder, shards(folder))
    one, two = (
        DiffusionLM.from_pretrained(place).model.state_dict() for place in (folder, original)
    )
    assert all(torch.equal(one[name], weight) for name, weight in two.items())


@pytest.mark.parametrize("name", [3, "", "../other.safetensors", "/etc/passwd", "none.safetensors"])
def test_an_index_that_names_no_file_of_the_folder_is_refused(folder, name):
    owner = shards(folder)
    write_index(folder, owner | {"norm.weight": name})
    refused(folder, "(must give the name of a file for every weight|there is no such file)")
    for whole in ([], {}, {"weight_map": []}, {"weight_map": {}}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(whole))
        refused(folder, r"index.json: ")


@pytest.mark.parametrize("layers", [1, 3])
def test_weights_of_another_depth_are_refused(folder, layers):
    change_config(folder, num_hidden_layers=layers)
    refused(folder, r"the weights in .*tiny are not those of its config.json: .*blocks\.")


def test_weights_that_lack_a_tensor_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    refused(folder, "differ in norm.weight")


def test_an_unknown_corruption_is_refused(folder):
    change_config(folder, corruption={"name": "mashed"})
    refused(folder, "tiny/config.json: unknown corruption 'mashed'; did you mean masked")


def test_a_folder_without_a_tokenizer_is_refused(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(TokenizerError, match=r"cannot load a tokenizer from .*tiny"):
        DiffusionLM.from_pretrained(folder)


def test_a_tokenizer_of_another_model_is_refused(folder):
    change_config(folder, mask_token_id=7)
    refused(folder, r"the tokenizer's mask token has id 3, but the model's has 7")
    lm = tiny_lm()
    lm.model.config.vocab_size = 300
    with pytest.raises(CheckpointError, match=r"the tokenizer has \d+ tokens, but the model only"):
        DiffusionLM(lm.model, lm.tokenizer)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write to .*file: .*choose another place"):
        tiny_lm().save(tmp_path / "file")


# --- the Hub ---


@pytest.mark.parametrize("name", ["no-such-model", "nobody/no-such-model"])
def test_a_name_without_a_network_is_refused(name):
    refused(name, f"'{name}' is no folder here, and the Hugging Face Hub cannot give it: ")


@pytest.mark.parametrize("name", ["a/b/c", "what is this?", "--", ""])
def test_what_cannot_be_a_name_is_refused(name):
    refused(name, "(is neither a folder here nor a model on the Hugging Face Hub|no model in)")


def test_models_come_from_the_hub_by_name(original, tmp_path):
    shutil.copytree(original, tmp_path / "models" / "someone" / "tiny")
    (tmp_path / "models" / "someone" / "tiny" / "evil.py").write_text("raise SystemExit(9)")
    (tmp_path / "models" / "someone" / "empty").mkdir()
    program = """
from sfumato.errors import CheckpointError
from sfumato.lm.folders import find_folder
from sfumato.lm.model import DiffusionLM
lm = DiffusionLM.from_pretrained("someone/tiny")
print(lm.generate(length=2, step="random", seed=0).num_steps)
print(any(find_folder("someone/tiny").glob("*.py")))
for name in ("someone/none", "someone/empty"):
    try:
        find_folder(name)
    except CheckpointError as error:
        print(error)
"""
    with serve(tmp_path) as url:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment(url, tmp_path / "cache"),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "2",
        "False",
        "'someone/none' is neither a folder here nor a model on the Hugging Face Hub (or it is "
        "private); check the spelling",
        "'someone/empty' on the Hugging Face Hub holds no config.json, so no model",
    ]
