"""The keys of a run as they are told, and the run file that `sfumato init` writes."""

import re

import pytest
import yaml
from small_pairs import prepare_word_pairs
from small_runs import prepare_words

from sfumato.cli.init import written
from sfumato.cli.keys import keys_of, names_of, sections, told
from sfumato.cli.train import train
from sfumato.errors import ConfigError
from sfumato.models.config import SIZES
from sfumato.noise.schedules import SCHEDULES
from sfumato.objectives.selection import SELECTIONS
from sfumato.objectives.weights import WEIGHTS
from sfumato.train import load_run
from sfumato.train.config import Run

LEAST = {"output": "o", "data": {"folder": "d"}}
TRAIN = {"documents": 1000, "tokens": 200_000, "lengths": {"p95": 300}}
FEW = {"documents": 3, "tokens": 40, "lengths": {"p95": 20}}
FEW = {"documents": 3, "tokens": 40, "lengths": {"p95": 20}}


def test_every_key_of_a_run_is_told_with_its_default():
    plain = load_run(LEAST).model_dump(mode="json")
    names = {key.name for section in sections() for key in keys_of(section)}
    for section in sections():
        for key in keys_of(section):
            if key.default is ... or key.name.startswith("model.encoder."):
                continue
            value = plain
            for part in key.name.split("."):
                value = value[part]
            said = yaml.safe_load(key.value) if key.value != "none" else None
            assert load_run(LEAST, [f"{key.name}={key.value.replace('none', 'null')}"])
            assert said == value or {"name": said} == value, key.name
    top = set(Run.model_fields) - set(sections())
    assert names >= top | {"train.max_steps", "model.encoder.size", "objective.curriculum"}


def test_what_is_said_of_a_key_stands_beside_it():
    keys = {key.name: key for section in sections() for key in keys_of(section)}
    assert not [name for name, key in keys.items() if not key.meaning]
    assert keys["model.dropout"].meaning == "Share of activations that training sets to 0"
    assert keys["train.min_lr_ratio"].kind == "number, at least 0 and at most 1"
    assert keys["data.layout"].kind == "packed or padded"
    assert keys["train.decay_steps"].kind == "whole number, at least 1 or none"
    assert keys["objective.curriculum"].kind == "list: {size, steps}"
    assert keys["data.folder"].kind == "path"


def test_names_that_a_key_may_have_are_listed():
    for key, table in (
        ("model.size", SIZES),
        ("model.encoder.size", SIZES),
        ("corruption.schedule", SCHEDULES),
        ("objective.selection", SELECTIONS),
        ("objective.weight", WEIGHTS),
    ):
        assert all(name in names_of(key) for name in table)
    assert "clipped (limit)" in names_of("objective.weight")
    assert "tiny (256 wide, 4 layers, 4 heads)" in names_of("model.size")


def test_a_section_is_told(run):
    code, out, err = run("train", "--keys", "train")
    assert (code, err) == (0, "")
    assert out.startswith("train: The steps: how many, how large, how far.\n")
    assert "  train.batch_size=64\n      whole number, at least 1. " in out
    assert out.splitlines() == "\n".join(told("train")).splitlines()
    everything = run("train", "--keys")[1]
    assert all("\n".join(told(section)) in everything for section in sections())
    assert max(map(len, everything.splitlines())) <= 100
    code, out, err = run("train", "--keys", "trian")
    assert (code, out) == (1, "")
    assert err == "error: no section 'trian' in a run; did you mean train?\n"
    with pytest.raises(ConfigError):
        keys_of("no")


def test_the_help_of_training_names_every_section_and_how_keys_are_given(run):
    out = run("train", "-h")[1]
    assert "[KEY=VALUE]..." in out
    for section in sections():
        assert section.partition(".")[0] in (train.__doc__ or "")
    code, _, err = run("train")
    assert code == 2
    assert "sfumato init" in err
    code, _, err = run("train", "train.max_steps=3")
    assert (code, "before train.max_steps=3; sfumato init" in err) == (1, True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("train", [TRAIN, FEW, {**TRAIN, "lengths": {}}])
def test_a_run_file_is_a_run_with_and_without_its_comments(tmp_path, device, train):
    text = written(tmp_path / "caf\u00e9 data", train, device, None)
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    run = load_run(path)
    assert run.data.folder == tmp_path / "caf\u00e9 data"
    path.write_text(re.sub(r"(?m)^( *)#(\w)", r"\1\2", text), encoding="utf-8")
    whole = load_run(path)
    assert whole.model.encoder is not None
    assert whole.model_copy(update={"model": run.model}) == run, "comments are defaults"
    keys = {key.name for section in sections() for key in keys_of(section)}
    lasts = re.findall(r"(?m)^ *#?(\w+): ?\S", text)
    assert sorted(lasts) == sorted(name.rpartition(".")[2] for name in keys)
    for line in text.splitlines():  # each by itself, but for what stands in a section that is not
        if re.match(r"^(  )?#\w+: ", line):
            path.write_text(text.replace(line, line.replace("#", "", 1), 1), encoding="utf-8")
            load_run(path)


def test_a_run_file_for_prepared_data_trains(run, tmp_path):
    data, path = prepare_words(tmp_path / "words"), tmp_path / "run.yaml"
    code, out, err = run("init", data, path)
    assert (code, out, err) == (0, f"{path}: now sfumato train {path}\n", "")
    assert run("init", data)[1].splitlines()[7:] == path.read_text().splitlines()[7:]
    small = ["model.hidden_size=16", "model.num_hidden_layers=1", "model.num_attention_heads=2"]
    short = ["train.max_steps=2", "train.warmup_steps=1", "samples.sample_steps=0"]
    code, out, err = run("train", path, f"output={tmp_path / 'out'}", *small, *short)
    assert (code, err) == (0, ""), err
    code, out, err = run("init", data, path)
    assert err == f"error: {path} is there already; give a new file\n"
    code, out, err = run("init", tmp_path / "none")
    assert code == 1
    assert "prepare" in err
    assert run("init", prepare_word_pairs(tmp_path / "pairs"))[0] == 0
