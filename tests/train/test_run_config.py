"""A run's keys: where they come from, what is refused, and that none is ignored."""

import ast
import json
from pathlib import Path

import pytest
import yaml

import sfumato.train
from sfumato.errors import ConfigError
from sfumato.noise.corruption import Masked, corruption_from
from sfumato.noise.schedules import Clipped, CosineAlpha, Power
from sfumato.train import dump_run, load_run
from sfumato.train.build_objective import build_corruption, build_objective
from sfumato.train.config import Section, kinds
from sfumato.train.run_file import all_keys

LEAST = {"output": "out", "data": {"folder": "words"}}


def test_a_written_run_reads_back_the_same(tmp_path):
    run = load_run(
        LEAST, ["train.learning_rate=3e-4", "objective.weight={name: clipped, limit: 3}"]
    )
    (tmp_path / "run.yaml").write_text(dump_run(run))
    assert load_run(tmp_path / "run.yaml") == run


def test_yaml_json_and_a_mapping_are_the_same_run(tmp_path):
    keys = {**LEAST, "train": {"max_steps": 500, "learning_rate": 0.01}, "seed": 3}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(keys))
    (tmp_path / "run.json").write_text(json.dumps(keys))
    assert load_run(tmp_path / "run.yaml") == load_run(tmp_path / "run.json") == load_run(keys)


@pytest.mark.parametrize(
    "words",
    [
        ["train.max_steps=700"],
        ["--train.max_steps", "700"],
        ["--train.max_steps=700"],
        ["train.max_steps=5", "train.max_steps=700"],
    ],
    ids=" ".join,
)
def test_overrides_of_every_form(words):
    assert load_run(LEAST, words).train.max_steps == 700


@pytest.mark.parametrize(("word", "value"), [("3e-4", 3e-4), ("1E+0", 1.0), (".5", 0.5), ("2", 2)])
def test_numbers_are_read_as_numbers(word, value):
    rate = load_run(LEAST, [f"train.learning_rate={word}"]).train.learning_rate
    assert rate == value
    assert isinstance(rate, float)


@pytest.mark.parametrize(
    ("word", "value"),
    [("010", 10), ("0o10", 8), ("0x10", 16), ("10_000", 10_000), ("1e4", 10_000), ("+7", 7)],
)
def test_whole_numbers_are_those_of_yaml_1_2(word, value):
    assert load_run(LEAST, [f"seed={word}"]).seed == value


@pytest.mark.parametrize(
    "text", ["no", "On", "1:30", "2026-11-30", "3e-4", "010", "0o7", "1_000", "null", "~", ".inf"]
)
def test_text_stays_text_when_a_run_is_written(tmp_path, text):
    run = load_run({**LEAST, "log": {"run_name": text}})
    (tmp_path / "run.yaml").write_text(dump_run(run))
    assert load_run(tmp_path / "run.yaml").log.run_name == text
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["log"]["run_name"] == text


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/of/me")
    words = ["output=~/out", "data.folder=~/words", "model.init_from=~", "model.encoder.size=tiny"]
    run = load_run(
        {"output": "~/out"}, [*words, "model.encoder.init_from=~/x", "model.init_from='~/y'"]
    )
    assert (str(run.output), str(run.data.folder)) == ("/of/me/out", "/of/me/words")
    assert run.model.init_from == "/of/me/y"
    assert run.model.encoder is not None
    assert run.model.encoder.init_from == "/of/me/x"


HOSTILE = [
    *(None, True, False, -1, 0, 1, 10**30, 10**400, -1e300, 1e300, 0.5, float("nan")),
    *(float("inf"), "", "x", "\0", "1:30", b"x", [], [None], {}, {"name": 3}, {"a": {}}, object()),
]


def with_key(key: str, value: object) -> dict:
    """The least run with a value at a key."""
    keys = {**LEAST, "data": dict(LEAST["data"])}
    inner, (*sections, name) = keys, key.split(".")
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[name] = value
    return keys


@pytest.mark.parametrize("key", [key for key, _ in all_keys()])
def test_every_key_takes_what_it_should_or_says_what_it_wants(key):
    field = dict(all_keys())[key]
    assert field.description
    wanted = kinds(field.annotation)
    for value in HOSTILE:
        try:
            run = load_run(with_key(key, value))
        except ConfigError:
            continue
        found = run
        for part in key.split("."):
            found = getattr(found, part)
        assert not isinstance(value, bool) or bool in wanted
        if isinstance(value, int | float) and wanted & {int, float}:
            assert found == pytest.approx(value)
            assert float in wanted or abs(value) < 2**63


def test_an_override_keeps_the_rest_of_its_section():
    keys = {**LEAST, "train": {"max_steps": 300}}
    run = load_run(keys, ["train.batch_size=4", "objective.weight.name=clipped"])
    assert (run.train.max_steps, run.train.batch_size) == (300, 4)
    assert keys["train"] == {"max_steps": 300}


def test_one_word_stands_for_a_list():
    run = load_run(LEAST, ["log.report_to=png", "samples.prompts=Once upon a time"])
    assert run.log.report_to == ("png",)
    assert run.samples.prompts == ("Once upon a time",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.learning_rat=1"], r"unknown key 'train.learning_rat'; did you mean learning_rate"),
        (["trian.max_steps=1"], r"unknown key 'trian'; did you mean train"),
        (["train.max_steps=many"], r"train.max_steps: .*integer.*'many'"),
        (["train.max_steps=0"], r"train.max_steps: .*greater than or equal to 1, got 0"),
        (["train.learning_rate=.nan"], r"train.learning_rate: .*got nan"),
        (["train.optimizer=sgd"], r"train.optimizer: .*'muon' or 'adamw', got 'sgd'"),
        (["train.warmup_steps=50", "train.max_steps=50"], r"50 must be less than .*max_steps 50"),
        (["train.gradient_accumulation_steps=3"], r"batch_size 64 must be a multiple of .* 3"),
        (["train.optimizer=adamw", "train.adam_learning_rate=1"], r"only"),
        (["train.decay_steps=10"], r"train.decay_steps is for .*wsd, got cosine"),
        (
            ["evaluate.early_stopping_patience=2", "evaluate.eval_steps=0"],
            r"early_stopping_patience needs evaluations",
        ),
        (["train.max_steps"], r"expected key=value, got 'train.max_steps'"),
        (["--train.max_steps"], r"expected key=value"),
        (["train.max_steps=[1"], r"value of 'train.max_steps'.*: not YAML: expected ','"),
        (["max_steps=5"], r"unknown key 'max_steps'; did you mean train.max_steps\?"),
        (["train.batch_sise=5"], r"unknown key 'train.batch_sise'; did you mean batch_size"),
        (["model.learning_rate=1"], r"did you mean train.learning_rate\?"),
        (["batch_size=5"], r"did you mean train.batch_size or evaluate.batch_size\?"),
        (["train.max_steps=true"], r"train.max_steps: expected a number, got true"),
        (["model.time_conditioned=1"], r"time_conditioned: expected true or false, got 1"),
        (["train.max_steps=1:30"], r"train.max_steps: .*valid integer.*, got '1:30'"),
        (["model.num_hidden_layers=1e30"], r"model.num_hidden_layers: .*got 1e\+30"),
        (["train.batch_size=1073741824"], r"rows of data.length 256 are 274,877,906,944 tokens"),
        (["output=''"], r"output: expected the name of a file or folder, got ''"),
        (['data.folder="a\\0b"'], r"data.folder: expected the name of a file or folder"),
        (["output=~nobody_of_that_name/x"], r"output: no home folder is known for"),
        (["output.name=1"], r"'output.name': output is 'out', not a section"),
    ],
)
def test_what_is_wrong_is_said(words, message):
    with pytest.raises(ConfigError, match=message):
        load_run(LEAST, words)


def test_missing_keys_are_named():
    with pytest.raises(ConfigError, match=r"'output' is missing.*\n'data.folder' is missing"):
        load_run({"data": {}})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.yaml", "train: [", r"run.yaml, line 1, column 9: not YAML: .*; expected keys and"),
        ("run.json", "{'a': 1}", r"run.json, line 1, column 2: not JSON: .*; expected keys and"),
        ("run.yaml", "just words", r"run.yaml: got 'just words'; expected keys and values such as"),
        ("run.yaml", "seed: 1\nseed: 2", r"line 2: the key 'seed' stands there twice"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_run(tmp_path / name)


def test_a_file_of_other_bytes_is_named(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"output: caf\xe9")
    with pytest.raises(
        ConfigError, match=r"run.yaml, line 1: not UTF-8 \(unexpected end of data\)"
    ):
        load_run(tmp_path / "run.yaml")


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent.yaml: there is no such file"):
        load_run(tmp_path / "absent.yaml")


def test_a_schedule_made_from_another_is_a_run_s(tmp_path):
    words = ["corruption.schedule={name: clipped, high: 0.9, schedule: {name: cosine_alpha}}"]
    run = load_run(LEAST, words)
    wanted = Masked(9, 8, Clipped(CosineAlpha(), high=0.9))
    assert build_corruption(run, 9, 8) == wanted
    assert build_objective(run, wanted, None).selection.schedule == wanted.schedule
    (tmp_path / "run.yaml").write_text(dump_run(run))
    changed = load_run(tmp_path / "run.yaml", ["corruption.schedule.schedule=power"])
    assert build_corruption(changed, 9, 8).schedule == Clipped(Power(), high=0.9)
    # a model's config keeps it as JSON
    kept = json.loads(json.dumps(run.corruption.model_dump(exclude_none=True)))
    assert corruption_from(kept, 9, 8) == wanted


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["corruption.schedule={name: clipped, schedule: {name: power, expo: 2}}"],
            r"unknown key 'corruption.schedule.schedule.expo'; did you mean exponent",
        ),
        (["corruption.schedule={name: clipped, schedule: powr}"], r"schedule.schedule: unknown n"),
        (["corruption.schedule={name: clipped, schedule: 3}"], r"a schedule's name, or .*; got 3"),
        (["corruption.schedule={name: clipped, schedule: {low: 0}}"], r"a schedule's name, or"),
        (["corruption.schedule={name: power, schedule: linear}"], r"key 'corruption.schedule.sch"),
        (
            ["objective.name=bound", "corruption.schedule=clipped"],
            r"all noise rates, and Clipped\(.*\) leaves some out; use a corruption.schedule that",
        ),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(words, message):
    run = load_run(LEAST, words)
    with pytest.raises(ConfigError, match=message):
        build_objective(run, build_corruption(run, 9, 8), None)


def sections(section: type[Section]) -> list[type[Section]]:
    inner = [field.annotation for field in section.model_fields.values()]
    found = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, Section)]
    return [section, *(deeper for kind in found for deeper in sections(kind))]


def test_every_key_is_read_by_something():
    folder = Path(sfumato.train.__file__).parent
    read = {
        node.attr if isinstance(node, ast.Attribute) else node.value
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute | ast.Constant)
        # a default in config.py is not a use
        and (path.name != "config.py" or isinstance(node, ast.Attribute))
    }
    # handed on as a whole, to `corruption_from`
    read |= {"uniform_share", "gamma"}
    unread = [
        f"{section.__name__}.{key}"
        for section in sections(sfumato.train.Run)
        for key in section.model_fields
        if key not in read
    ]
    assert not unread
