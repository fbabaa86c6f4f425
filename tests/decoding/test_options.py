import json
import math

import pytest

from sfumato.cli.writing import STEP_NAMES
from sfumato.decoding.filters import MinP, Repetition, Suppress, Temperature, TopK, TopP
from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.remask import Cap, Remasking, Wino
from sfumato.decoding.rules import STEPS
from sfumato.decoding.unmask import Ancestral, Klass, Threshold
from sfumato.errors import CheckpointError, ConfigError
from sfumato.lm.generation_config import read_generation_config, write_generation_config
from sfumato.noise.corruption import Hybrid, Masked, Uniform
from sfumato.noise.schedules import Linear

MASKED = Masked(5, 4)
OPTIONS = GenerationOptions()


# --- step rules by name ---


@pytest.mark.parametrize("name", STEPS)
def test_every_step_rule_is_made_by_its_name_and_with_its_own_options(name):
    rule = GenerationOptions(step=name).rule(MASKED)
    again = GenerationOptions(step=name, step_options=STEPS[name].defaults).rule(MASKED)
    assert again == rule
    assert isinstance(rule.exact, bool)


def test_the_command_line_lists_every_step_rule():
    assert STEP_NAMES.split(", ") == list(STEPS)


def test_the_rule_is_ancestral_if_none_is_named():
    assert OPTIONS.rule(MASKED) == Ancestral(MASKED)


def test_step_options_reach_the_rule():
    made = GenerationOptions(step="threshold", step_options={"level": 0.5}).rule(MASKED)
    assert made == Threshold(Linear(), 0.5)
    made = GenerationOptions(step="klass", step_options={"patience": 3}).rule(MASKED)
    assert made == Klass(Linear(), patience=3)
    made = GenerationOptions(step="wino", step_options={"draft": 0.4}).rule(MASKED)
    assert made == Wino(Linear(), 4, 0.4)


@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        ("treshold", {}, "unknown step 'treshold'; did you mean threshold"),
        ("nothing like it", {}, "unknown step.*known: ancestral, confidence"),
        ("threshold", {"levle": 0.5}, "step 'threshold' has no option 'levle'.*mean level"),
        ("margin", {"level": 0.5}, "step 'margin' has no option 'level'; it has none"),
        ("threshold", {"level": "high"}, "step option 'level' must be a number, got 'high'"),
        ("threshold", {"level": True}, "step option 'level' must be a number, got True"),
        (None, {"level": 0.5}, "step_options without a step"),
    ],
)
def test_a_step_that_does_not_exist_is_refused(step, options, message):
    with pytest.raises(ConfigError, match=message):
        GenerationOptions(step=step, step_options=options)


def test_a_step_option_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="threshold level must be in"):
        GenerationOptions(step="threshold", step_options={"level": 2.0}).rule(MASKED)


@pytest.mark.parametrize("corruption", [Uniform(5, 4), Hybrid(5, 4)], ids=repr)
def test_models_without_an_absorbing_state_write_by_the_reverse_process_only(corruption):
    assert OPTIONS.rule(corruption) == Ancestral(corruption)
    with pytest.raises(ConfigError, match=r"step 'margin' needs a masked model.*step='ancestral'"):
        GenerationOptions(step="margin").rule(corruption)


# --- changes ---


@pytest.mark.parametrize(
    ("alias", "name", "value"),
    [
        ("max_new_tokens", "length", 3),
        ("gen_length", "length", 3),
        ("steps", "num_steps", 3),
        ("max_denoising_steps", "num_steps", 3),
        ("block_length", "block", 3),
        ("remasking", "step", "margin"),
        ("alg", "step", "margin"),
    ],
)
def test_words_of_other_packages_are_understood(alias, name, value):
    assert OPTIONS.with_changes(**{alias: value}) == OPTIONS.with_changes(**{name: value})
    assert getattr(OPTIONS.with_changes(**{alias: value}), name) == value


def test_an_unknown_option_names_the_near_ones():
    with pytest.raises(ConfigError, match="unknown option 'temprature'; did you mean temperature"):
        OPTIONS.with_changes(temprature=0.5)


def test_one_option_under_two_names_is_refused():
    with pytest.raises(ConfigError, match="'max_new_tokens' is another word for 'length'"):
        OPTIONS.with_changes(length=3, max_new_tokens=4)


def test_another_step_leaves_the_options_of_the_old_one_behind():
    options = GenerationOptions(step="threshold", step_options={"level": 0.5})
    assert options.with_changes(step="margin").step_options == {}
    assert options.with_changes(step="threshold").step_options == {"level": 0.5}
    assert options.with_changes(temperature=0).step_options == {"level": 0.5}
    assert options.with_changes(step="wino", step_options={"draft": 0.1}).step_options == {
        "draft": 0.1
    }


def test_a_canvas_that_grows_has_no_blocks_unless_they_are_asked_for():
    options = GenerationOptions(block=16)
    assert options.with_changes(grow=64).block is None
    assert options.with_changes(grow=64, block=8).block == 8
    assert options.with_changes(grow=None).block == 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"canvas": 0}, "canvas must be at least 1, got 0"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"block": -1}, "block must be at least 1, got -1"),
        ({"layout": "ragged"}, "layout must be 'packed' or 'padded', got 'ragged'"),
        ({"temperature": -0.1}, "temperature must be 0 or more, got -0.1"),
        ({"temperature": math.nan}, "temperature must be 0 or more, got nan"),
        ({"top_k": 0}, "top_k must be at least 1, got 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"min_p": -0.5}, r"min_p must be in \[0, 1\], got -0.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be positive, got 0.0"),
    ],
)
def test_a_value_that_cannot_work_is_refused_at_once(changes, message):
    with pytest.raises(ConfigError, match=message):
        OPTIONS.with_changes(**changes)


# --- filters ---


def test_nothing_is_filtered_by_default():
    assert OPTIONS.filters(()) == ()
    assert OPTIONS.filters((3, 4)) == (Suppress((3, 4)),)


def test_filters_come_in_their_order():
    options = OPTIONS.with_changes(
        suppress=(7,), repetition_penalty=1.2, temperature=0.5, top_k=9, top_p=0.9, min_p=0.1
    )
    assert options.filters((3,)) == (
        Suppress((3, 7)),
        Repetition(1.2),
        Temperature(0.5),
        TopK(9),
        TopP(0.9),
        MinP(0.1),
    )


# --- generation_config.json ---


def test_what_is_written_is_read_again(tmp_path):
    options = GenerationOptions(
        length=5,
        canvas=7,
        layout="padded",
        num_steps=3,
        step="threshold",
        step_options={"level": 0.5},
        block=2,
        lookahead=False,
        temperature=0.0,
        top_k=4,
        top_p=0.5,
        min_p=0.25,
        repetition_penalty=1.5,
        suppress=(1, 2),
        seed=0,
    )
    write_generation_config(tmp_path, options, mask_token_id=3)
    assert read_generation_config(tmp_path) == options
    stored = json.loads((tmp_path / "generation_config.json").read_text())
    assert stored["mask_token_id"] == 3


def test_without_a_file_the_defaults_hold(tmp_path):
    assert read_generation_config(tmp_path) == OPTIONS


def test_keys_of_hugging_face_are_left_alone(tmp_path):
    text = '{"transformers_version": "5.23.0", "do_sample": true, "top_k": null, "temperature": 0}'
    (tmp_path / "generation_config.json").write_text(text)
    assert read_generation_config(tmp_path) == GenerationOptions(temperature=0)


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "3", '{"length": "long"}', '{"step": "treshold"}', '{"suppress": 3}'),
        *('{"temprature": 1}', '{"length": NaN}', "[" * 10**5, '{"length": ' + "1" * 5000 + "}"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"generation_config.json.*; mend it there"):
        read_generation_config(tmp_path)


def test_remasking_by_confidence_is_rare_by_default():
    """Its sigma is of all tokens together; docs/log.md says why it is not its authors' 1.0."""
    step = STEPS["remask_confidence"](Masked(5, 4), {})
    assert step == Remasking(Linear(), 4, Cap(0.02), by_confidence=True)
