"""Step rules of a user's own: as objects, as classes and by name, without a private name."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_lm import UNIFORM, tiny_lm
from typer.testing import CliRunner

from sfumato import likelihood
from sfumato.cli import app
from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.rules import rule_for
from sfumato.decoding.step import Step
from sfumato.decoding.unmask import LeftToRight, RandomOrder, Threshold
from sfumato.errors import CheckpointError, ConfigError
from sfumato.lm.generation_config import read_generation_config, write_generation_config
from sfumato.noise.corruption import Masked
from sfumato.noise.schedules import Linear
from sfumato.testing import check_step

PAGE = Path(__file__).parents[2] / "docs/adding.md"
CODE = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]  # type: ignore[index]
MASKED = Masked(5, 4)
ASKED: dict[str, Any] = {"prompt": "The", "length": 8, "seed": 0}


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.fixture
def example(tmp_path, monkeypatch) -> Any:
    """The page's rule, in a module of the working folder."""
    (tmp_path / "my_rules.py").write_text(CODE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "my_page"}
    exec(compile(CODE, PAGE.name, "exec"), names)
    return names["least_sure"]


def test_the_example_of_the_page_is_a_rule_and_uses_public_names_only(example, lm):
    check_step(example(MASKED), MASKED)
    assert not re.findall(r"import.*\b_\w+", CODE)
    made = lm.generate(step=example(lm.corruption), **ASKED)
    assert made.texts != lm.generate(step="probability", **ASKED).texts
    assert made.as_dict()["options"]["step"] == repr(example(lm.corruption))
    batch, _, _ = lm.rows(["The fox met a bear."])
    under = likelihood.by_decoder(lm.denoiser, lm.corruption, batch, example(MASKED))
    assert under.nats.shape == batch.tokens.shape or len(under.nats) == len(batch.tokens)


def test_a_rule_is_found_by_module_and_name_also_on_the_command_line(example, lm, tmp_path):
    made = lm.generate(step=example(lm.corruption), **ASKED)
    assert lm.generate(step="my_rules:least_sure", **ASKED).texts == made.texts
    lm.save(tmp_path / "model")
    words = ["generate", "The", "--model", str(tmp_path / "model"), "--length", "8", "--seed", "0"]
    done = CliRunner().invoke(app, [*words, "--step", "my_rules:least_sure", "--quiet"])
    if done.exit_code == 2:  # without --quiet
        done = CliRunner().invoke(app, [*words, "--step", "my_rules:least_sure"])
    assert done.exit_code == 0, done.output
    assert made.full_texts[0].strip() in done.output


@dataclass(frozen=True)
class Made:
    """A rule that is made of a corruption and options."""

    corruption: Masked
    level: float = 0.5

    def __new__(cls, corruption, level=0.5):
        return Threshold(corruption.schedule, level)


def test_a_class_is_made_of_the_corruption_and_the_options(lm):
    assert rule_for(Made, MASKED, {"level": 0.7}) == Threshold(Linear(), 0.7)
    assert rule_for(RandomOrder(Linear()), MASKED, {}) == RandomOrder(Linear())
    assert rule_for("sfumato.decoding.unmask:Ancestral", MASKED, {}).corruption == MASKED
    one = lm.generate(step=Made, step_options={"level": 0.7}, **ASKED)
    assert one.texts == lm.generate(step="threshold", step_options={"level": 0.7}, **ASKED).texts


class NoRule:
    def __call__(self, *args):
        return args[0]


class NoExact(RandomOrder):
    exact = "yes"  # type: ignore[assignment]


class NoCall(Step):
    pass


@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        (3, {}, "must be the name of a rule, package.module:Rule, or a rule"),
        (
            NoRule(),
            {},
            "step must be .* or a rule; NoRule is none: derive it",
        ),
        (NoExact(Linear()), {}, "step NoExact: exact must be True or False, got 'yes'"),
        (NoRule, {}, "step NoRule cannot be made of a corruption and the options {}"),
        (NoCall, {}, "step NoCall cannot be made of a corruption"),
        (Made, {"lever": 2}, "cannot be made of a corruption and the options .*lever"),
        (LeftToRight(Linear()), {"level": 1}, "is a rule as it is: put its options .*level"),
        ("no.such:Rule", {}, "step 'no.such:Rule' cannot be imported: ModuleNotFoundError"),
        (
            "sfumato.decoding.unmask:Nothing",
            {},
            "cannot be imported: AttributeError.*package.module:Name",
        ),
        ("sfumato.decoding.unmask:highest", {}, "highest cannot be made of a corruption"),
    ],
    ids=[
        *("number", "object", "flag", "class", "abstract"),
        *("option", "rule", "module", "name", "function"),
    ],
)
def test_what_is_no_rule_is_refused_in_a_sentence(step, options, message):
    with pytest.raises(ConfigError, match=message):
        GenerationOptions(step=step, step_options=options)


def test_a_rule_of_masks_is_refused_by_other_noise():
    with pytest.raises(ConfigError, match=r"LeftToRight.*needs a masked model"):
        tiny_lm(UNIFORM).generate(step=LeftToRight(Linear()), **ASKED)


def test_a_folder_holds_no_code(tmp_path):
    for step in (LeftToRight(Linear()), "sfumato.decoding.unmask:Ancestral"):
        with pytest.raises(ConfigError, match="is code, and a model's folder holds none"):
            write_generation_config(tmp_path, GenerationOptions(step=step))
    (tmp_path / "generation_config.json").write_text('{"step": "os:getcwd"}')
    with pytest.raises(CheckpointError, match="no code of a model's is run"):
        read_generation_config(tmp_path)


def test_a_contract_says_what_is_missing():
    for wrong, message in (
        (NoExact(Linear()), "exact must be True or False; got 'yes'"),
        (NoRule(), "a rule is an object derived from Step; got .*NoRule"),
        (LeftToRight, "a rule is an object derived from Step; got .*LeftToRight"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_step(wrong, MASKED)  # type: ignore[arg-type]
