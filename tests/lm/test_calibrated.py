"""What a calibration says of settings that it did not measure, and when a model says it."""

import json
import logging
import math
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_lm import CANVAS, saved, tiny_lm

from sfumato import DiffusionLM
from sfumato.errors import CheckpointError
from sfumato.lm.calibrated import RECORD, Calibration, Decoding, Loss
from sfumato.storage.tensors import fingerprint

BLOCK = 4
SIX = CANVAS // BLOCK  # steps of one a block
FEW = SIX + 1  # for a canvas behind bos, which is in a block of its own


def row(step, excess, num_steps=None, block=None, **step_options):
    setting = {"step": step, "step_options": step_options, "num_steps": num_steps, "block": block}
    measured = {} if excess is None else {"excess": {"value": excess, "error": 0.01}}
    return {"setting": setting, **measured}


ROWS = [
    row("probability", 0.0),
    row("probability", 0.02, 3 * SIX),
    row("probability", 0.5, 2 * SIX),
    row("probability", 1.5, SIX),
    row("margin", 0.6, 2 * SIX),
    row("margin", 1.6, SIX),
    row("threshold", 0.01, level=0.9),
    row("threshold", 0.03, level=0.8),
    row("threshold", 0.4, level=0.5),
    row("entropy_bound", 0.04, gamma=0.4),
    row("entropy_bound", 0.9, SIX, gamma=0.4),
    row("wino", None, draft=0.6),
]


def record(rows=ROWS, sha256="", tolerance=0.05, canvas=CANVAS):
    return {
        "settings": {
            "options": {"tolerance": tolerance},
            "generation": {"canvas": canvas, "lookahead": True},
        },
        "models": {"model": {"sha256": sha256}},
        "results": {"settings": rows},
    }


def read(folder, made=None, block_size=BLOCK):
    (folder / RECORD).write_text(json.dumps(record() if made is None else made))
    config = SimpleNamespace(block_size=block_size, max_position_embeddings=CANVAS)
    return Calibration.read(folder, config)


def expected(calibration, step, num_steps=None, positions=CANVAS, block=BLOCK, **options):
    return calibration.expected(Decoding.of(step, options, num_steps, block, positions))


# --- between what was measured ---


@pytest.mark.parametrize(
    ("asked", "nats", "at_least"),
    [
        (("probability",), 0.0, False),
        (("probability", CANVAS), 0.0, False),
        (("probability", 10 * CANVAS), 0.0, False),  # no more than one position a pass
        (("probability", 2 * SIX), 0.5, False),
        (("probability", 15), 0.26, False),  # half-way from 12 to 18
        (("probability", 9), 1.0, False),
        (("probability", 3), 1.5, True),
        (("probability", 30, 60), 0.5, False),  # 2 positions a pass, of another length
        (("margin", SIX), 1.6, False),
    ],
)
def test_fixed_numbers_of_steps(tmp_path, asked, nats, at_least):
    found = expected(read(tmp_path), *asked)
    assert found is not None
    assert (found.nats, found.at_least) == (pytest.approx(nats), at_least)


@pytest.mark.parametrize(
    ("step", "num_steps", "options", "nats", "at_least"),
    [
        ("threshold", None, {}, 0.01, False),  # its default is 0.9
        ("threshold", None, {"level": 0.85}, 0.02, False),
        ("threshold", None, {"level": 0.3}, 0.4, True),  # bolder than the boldest
        ("entropy_bound", SIX, {"gamma": 0.4}, 0.9, False),
        ("entropy_bound", 15, {"gamma": 0.4}, 0.04 + (0.9 - 0.04) * 9 / 18, False),
        (
            "threshold",
            SIX,
            {"level": 0.9},
            1.5,
            True,
        ),  # its share alone loses what probability's does
        ("threshold", 15, {"level": 0.5}, 0.4, True),  # more than the share does
        ("factor", SIX, {}, 1.5, True),
    ],
)
def test_rules_that_decide_what_they_dare(tmp_path, step, num_steps, options, nats, at_least):
    found = expected(read(tmp_path), step, num_steps, **options)
    assert found is not None
    assert (found.nats, found.at_least) == (pytest.approx(nats), at_least)


@pytest.mark.parametrize(
    "asked",
    [
        {"step": "margin"},  # safer than the safest: less, but not how much
        {"step": "margin", "num_steps": 20},
        {"step": "threshold", "level": 0.95},
        {"step": "entropy_bound", "gamma": 1.0},  # one measurement tells no direction
        {"step": "wino"},
        {"step": "confidence", "num_steps": SIX},
        {"step": "probability", "num_steps": SIX, "block": 8},
    ],
)
def test_nothing_is_said_of_what_cannot_be_compared(tmp_path, asked):
    assert expected(read(tmp_path), **asked) is None


def test_rules_of_a_users_own_are_in_no_record():
    for own in ("package.module:Rule", object()):
        assert Decoding.of(own, {}, 4, None, CANVAS) is None


@given(
    losses=st.lists(st.floats(0, 5), min_size=2, max_size=6),
    steps=st.lists(st.integers(1, 3 * CANVAS), min_size=2, max_size=2, unique=True),
)
def test_fewer_steps_are_never_expected_to_lose_less(tmp_path_factory, losses, steps):
    falling = sorted(losses, reverse=True)
    rows = [row("random", loss, 4 * (n + 1)) for n, loss in enumerate(falling)]
    calibration = read(tmp_path_factory.mktemp("record"), record(rows))
    few, many = (expected(calibration, "random", number) for number in sorted(steps))
    if few is not None and many is not None:
        assert few.nats >= many.nats - 1e-9
        assert min(falling) - 1e-9 <= many.nats <= few.nats <= max(falling) + 1e-9


def test_a_loss_in_words():
    assert str(Loss(0.5)) == "0.5 nats a token (perplexity x1.6)"
    assert str(Loss(0.5, True)) == "at least 0.5 nats a token (perplexity x1.6)"
    assert "inf" not in str(Loss(math.inf)).split("x")[1]


# --- a model that has one ---


@pytest.fixture
def folder(tmp_path):
    lm = tiny_lm(attention="block_causal", block_size=BLOCK)
    folder = saved(lm, tmp_path / "model")
    put(folder)
    return folder


def put(folder, rows=ROWS, **keys):
    own = fingerprint([folder / "model.safetensors"])
    (folder / RECORD).write_text(json.dumps(record(rows, **{"sha256": own} | keys)))


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_few_steps_are_warned_of_once(folder, caplog):
    lm = DiffusionLM.from_pretrained(folder)
    for seed in range(2):
        lm.generate(step="probability", num_steps=FEW, length=CANVAS, seed=seed)
    assert warnings(caplog) == [
        f"probability in {FEW} steps for {CANVAS} tokens is expected to lose 1.3 nats a token "
        "(perplexity x3.8) against one token a pass, by the calibration of this model; leave "
        "num_steps out, or take at least 18"
    ]
    lm.generate(step="threshold", step_options={"level": 0.3}, length=4, seed=0)
    assert "leave step and its options out" in warnings(caplog)[1]


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"step": "probability"},
        {"step": "probability", "num_steps": CANVAS},
        {"step": "threshold"},
        {"step": "wino"},
        {"step": "probability", "num_steps": FEW, "length": 4},  # one step for each
    ],
)
def test_what_is_within_the_tolerance_or_unknown_is_not_warned_of(folder, caplog, asked):
    DiffusionLM.from_pretrained(folder).generate(**{"length": CANVAS} | asked, seed=0)
    assert warnings(caplog) == []


def test_a_models_own_setting_is_not_warned_of(folder, caplog):
    put(folder, [row("probability", 0.0), row("ancestral", 0.3)])
    DiffusionLM.from_pretrained(folder).generate(length=4, seed=0)
    assert warnings(caplog) == []


def test_a_record_of_other_weights_says_nothing(folder, caplog):
    put(folder, sha256="0" * 64)
    lm = DiffusionLM.from_pretrained(folder)
    lm.generate(step="probability", num_steps=FEW, length=CANVAS, seed=0)
    assert warnings(caplog) == []


def test_a_model_without_one_says_nothing(folder, caplog):
    (folder / RECORD).unlink()
    lm = DiffusionLM.from_pretrained(folder)
    assert lm.calibration is None
    lm.generate(step="probability", num_steps=FEW, length=CANVAS, seed=0)
    assert warnings(caplog) == []


def test_the_model_that_is_saved_over_another_does_not_take_its_record(folder, caplog):
    lm = DiffusionLM.from_pretrained(folder)
    with torch.no_grad():
        next(iter(lm.model.parameters())).add_(1)
    lm.save(folder)
    lm = DiffusionLM.from_pretrained(folder)
    lm.generate(step="probability", num_steps=FEW, length=CANVAS, seed=0)
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        "{",
        json.dumps(record() | {"settings": {}}),
        json.dumps(record(canvas="24")),
        json.dumps(record(tolerance="small")),
        json.dumps(record([1])),
        json.dumps(record([row(3, 0.1)])),
        json.dumps(record([row("probability", "much")])),
        json.dumps(record([{"setting": {}}])),
        json.dumps(record([row("threshold", 0.1, level="high")])),
        json.dumps(record([row("probability", 0.1, "many")])),
    ],
)
def test_a_damaged_record_is_a_typed_error(folder, damage):
    (folder / RECORD).write_text(damage)
    with pytest.raises(CheckpointError, match="delete the file, and calibrate the model again"):
        DiffusionLM.from_pretrained(folder)


def test_python_shows_the_warning_where_nobody_listens(folder):
    code = (
        "import sys; from sfumato import DiffusionLM\n"
        "lm = DiffusionLM.from_pretrained(sys.argv[1])\n"
        f"lm.generate(step='probability', num_steps={FEW}, length={CANVAS}, seed=0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert done.stderr.startswith(f"probability in {FEW} steps")
    assert done.stderr.count("\n") == 1
