"""Every option takes what it says it takes, and refuses all else in one sentence."""

import math
from collections import deque
from dataclasses import fields

import numpy as np
import pytest
import torch
from hostile import (
    HOSTILE,
    Hostile,
    either,
    flag,
    number,
    optional,
    options_of,
    real,
    several,
    text,
    whole,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_lm import tiny_lm

from sfumato.arguments import MOST, Kind, Share, shown
from sfumato.decoding.filters import MinP, Repetition, Suppress, Temperature, TopK, TopP
from sfumato.decoding.growing import Growth
from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.remask import Cap, During, Plateau, Rescale, Wino
from sfumato.decoding.rules import STEPS
from sfumato.decoding.unmask import EntropyBound, Factor, Klass, Threshold
from sfumato.errors import ConfigError, DataError, SfumatoError
from sfumato.lm.gaps import GapLength
from sfumato.noise.corruption import CORRUPTIONS, Hybrid, Masked
from sfumato.noise.schedules import Clipped, Linear, LogLinear, Power, Schedule

STOP = several(lambda v: isinstance(v, str) and v)
GOOD = {
    "length": optional(whole(1)),
    "grow": optional(whole(1)),
    "grow_options": options_of({"by": whole(2)}),
    "canvas": optional(whole(1)),
    "layout": either("packed", "padded"),
    "num_steps": optional(whole(1)),
    "step": optional(either(*STEPS)),
    "step_options": options_of({"level": real(0, 1, above=True)}),
    "block": optional(whole(1)),
    "lookahead": flag,
    "guidance": real(0, 1e4),
    "approx_cache": optional(either("prefix", "dual")),
    "approx_refresh": optional(whole(1)),
    "temperature": lambda v: real(0, 1e6)(v) and not 0 < number(v) < 1e-4,
    "top_k": optional(whole(1, 2**31)),
    "top_p": optional(real(0, 1, above=True)),
    "min_p": optional(real(0, 1)),
    "repetition_penalty": optional(real(0.01, 100)),
    "suppress": several(whole(0, 2**31 - 1)),
    "regex": optional(text),
    "json_schema": optional(lambda v: text(v) or isinstance(v, dict) or flag(v)),
    "choices": optional(several(text)),
    "grammar_states": whole(1),
    "particles": whole(1, 4096),
    "stop": lambda v: STOP(v) or (isinstance(v, str) and v != ""),
    "seed": optional(whole(0, 2**63 - 1)),
    "precision": either("auto", "fp32", "bf16"),
    "torch_compile": flag,
}
BESIDE = {  # what an option needs beside it
    "grow_options": {"grow": 4},
    "step_options": {"step": "threshold"},
    "approx_refresh": {"approx_cache": "dual"},
}


def test_the_table_has_every_option():
    assert list(GOOD) == [each.name for each in fields(GenerationOptions)]


@pytest.mark.parametrize("name", GOOD)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(value=HOSTILE)
def test_an_option_takes_the_good_values_and_no_others(name, value):
    beside = BESIDE.get(name, {})
    if GOOD[name](value):
        made = getattr(GenerationOptions(**beside, **{name: value}), name)
        plain = number(value)
        assert plain is None or (made == plain and type(made) in (int, float, bool))
        return
    with pytest.raises(ConfigError, match=name.split("_")[0] + "|threshold level"):
        GenerationOptions(**beside, **{name: value})


PARTS = [
    (Temperature, {}, "value", GOOD["temperature"]),
    (TopK, {}, "k", whole(1, 2**31)),
    (TopP, {}, "p", real(0, 1, above=True)),
    (MinP, {}, "p", real(0, 1)),
    (Repetition, {}, "penalty", real(0.01, 100)),
    (Suppress, {}, "ids", GOOD["suppress"]),
    (LogLinear, {}, "eps", real(0, 1, below=True)),
    (Power, {}, "exponent", real(0, 1e3, above=True)),
    (Clipped, {"high": 1.0}, "low", real(0, 1, below=True)),
    (Clipped, {"low": 0.0}, "high", real(0, 1, above=True)),
    (Clipped, {}, "schedule", lambda v: False),
    *((kind, {"mask_id": 0}, "vocab_size", whole(2, 2**31 - 1)) for kind in CORRUPTIONS.values()),
    *((kind, {"vocab_size": 9}, "mask_id", whole(0, 8)) for kind in CORRUPTIONS.values()),
    (Masked, {"vocab_size": 9, "mask_id": 0}, "schedule", lambda v: False),
    (Hybrid, {"vocab_size": 9, "mask_id": 0}, "uniform_share", real(0, 1, above=True, below=True)),
    (Hybrid, {"vocab_size": 9, "mask_id": 0}, "gamma", real(0, 1e3, above=True)),
    (Threshold, {"schedule": Linear()}, "level", real(0, 1, above=True)),
    (Threshold, {}, "schedule", lambda v: False),
    (Factor, {"schedule": Linear()}, "factor", real(0, math.inf, above=True, below=True)),
    (EntropyBound, {"schedule": Linear()}, "gamma", real(0, math.inf, below=True)),
    (Klass, {"schedule": Linear()}, "level", real(0, 1, above=True)),
    (Klass, {"schedule": Linear()}, "eps", real(0, math.inf, above=True, below=True)),
    (Klass, {"schedule": Linear()}, "patience", whole(1)),
    (Cap, {}, "eta", real(0, 1)),
    (Rescale, {}, "eta", real(0, 1)),
    (During, {"t_on": 0.5, "t_off": 0.1}, "eta", real(0, 1)),
    (
        Plateau,
        {"schedule": Linear(), "t_on": 0.5, "t_off": 0.1},
        "alpha_on",
        real(0, 1, above=True, below=True),
    ),
    (Wino, {"schedule": Linear(), "mask_id": 0}, "draft", real(0, 1, above=True)),
    (Wino, {"schedule": Linear(), "mask_id": 0}, "verify", real(0, 1)),
    (Growth, {}, "by", whole(2)),
    (Growth, {}, "window", whole(1)),
    *((Growth, {}, name, real(0, 1)) for name in ("enough", "sure", "doubt")),
    (GapLength, {"high": 20}, "low", whole(1, 20)),
    (GapLength, {"low": 1}, "high", whole(1, 64)),
]


@pytest.mark.parametrize(
    ("made", "beside", "name", "good"), PARTS, ids=[f"{p[0].__name__}.{p[2]}" for p in PARTS]
)
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(value=HOSTILE)
def test_a_part_takes_the_good_values_and_no_others(made, beside, name, good, value):
    if good(value):
        made(**beside, **{name: value})
        return
    with pytest.raises(ConfigError):
        made(**beside, **{name: value})


# --- requests ---


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


@pytest.fixture(scope="module")
def blocks():
    return tiny_lm(attention="block_causal", block_size=8)


def full(value):
    """Text, or texts, none of them blank."""
    given = [value] if text(value) else value
    return several(text)(given) and len(given) > 0 and all(map(str.strip, given))


REQUESTS = {
    **dict.fromkeys(GOOD),
    "prompt": lambda v: text(v) or (several(text)(v) and len(v) > 0),
    "source": lambda v: v is None or full(v),
    "num_samples": whole(1, 64),
    "filters": lambda v: v in ((), []) if isinstance(v, list | tuple) else False,
}


@pytest.mark.parametrize("ask", ["generate", "blocks", "infill"])
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_request_is_met_or_refused(lm, blocks, ask, data):
    """Whatever is given in place of any argument."""
    name = data.draw(st.sampled_from([*REQUESTS, "gap_length"]))
    value = data.draw(HOSTILE)
    if name in ("num_samples", "gap_length") and whole(9)(value):
        return  # good, and slow
    request = {"num_steps": 4, "seed": 0, **BESIDE.get(name, {}), name: value}
    call = {"generate": lm.generate, "blocks": blocks.generate, "infill": lm.infill}[ask]
    if ask == "infill":
        text = request.pop("prompt") if name == "prompt" else "A ____."
        call = lambda **rest: lm.infill(text, **rest)  # noqa: E731
    elif name == "gap_length":
        return
    try:
        call(**request)
    except SfumatoError:
        return
    assert (REQUESTS.get(name) or GOOD.get(name) or whole(1))(value) or name == "gap_length"


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(name=st.sampled_from(["text", "source", "num_samples", "seed"]), value=HOSTILE)
def test_a_score_is_given_or_refused(lm, name, value):
    if name == "num_samples" and whole(9)(value):
        return
    try:
        lm.score(**{"text": "The fox", "num_samples": 1, name: value})
    except SfumatoError:
        return
    good = {
        "text": full,
        "source": REQUESTS["source"],
        "seed": whole(0, 2**63 - 1),
        "num_samples": whole(1, 8),
    }
    assert good[name](value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "a text must be text, or a list of texts; got None"),
        (3, "a text must be text, or a list of texts; got 3"),
        (b"abc", "a text must be text, or a list of texts; got b'abc'"),
        ({"a": 1}, "a text must be text, or a list of texts; got {'a': 1}"),
        (["a", None], "text 2 must be text, got None"),
        (["a", b"b"], "text 2 must be text, got b'b'"),
        (torch.zeros(2), "text 1 must be text, got a Tensor of shape"),
        (np.array(3), "a list of texts; got a ndarray of shape"),
        ((one for one in "ab"), "a list of texts; got <generator"),
    ],
)
def test_what_is_no_text_is_named(lm, given, message):
    for ask in (lm.generate, lm.infill, lm.score, lm.rows):
        with pytest.raises(DataError, match=message):
            ask(given)
    if given is not None:
        with pytest.raises(DataError, match=message.replace("text ", "source ", 1)):
            lm.generate(source=given)


def test_texts_come_in_any_list():
    """Also in NumPy's, and in columns of tables."""
    lm = tiny_lm()
    for texts in (("a", "b"), np.array(["a", "b"]), deque(["a", "b"])):
        assert len(lm.generate(texts, num_steps=2, seed=0).texts) == 2


@pytest.mark.parametrize(
    "request_",
    [
        {"length": MOST, "num_samples": 1000},
        {"length": MOST, "num_samples": MOST},
        {"length": 8, "num_steps": MOST, "num_samples": 1000},
    ],
)
def test_what_no_machine_holds_is_refused_before_it_is_laid_out(blocks, request_):
    with pytest.raises(ConfigError, match=r"are more than .*; ask for fewer"):
        blocks.generate("", **request_)


@pytest.mark.parametrize("name", ["length", "num_steps", "grow", "block", "canvas"])
@pytest.mark.parametrize("value", [1e30, 10**30, MOST + 1])
def test_sizes_have_limits(name, value):
    with pytest.raises(ConfigError, match=rf"{name} must be (at most {MOST}|a whole number), got"):
        GenerationOptions(**{name: value})


# --- kinds ---


def test_what_came_is_told_on_one_short_line():
    assert shown("a\nb" * 90).count("\n") == 0
    assert len(shown("x" * 10**6)) < 80
    assert shown(Hostile()) == "a Hostile"


def test_a_protocol_is_met_by_values_not_by_their_classes():
    assert Kind(Schedule).check("schedule", Linear()) == Linear()
    with pytest.raises(ConfigError, match="schedule must be a Schedule, got <class"):
        Kind(Schedule).check("schedule", Linear)


def test_a_missing_value_is_named_too():
    with pytest.raises(ConfigError, match=r"p must be in \[0, 1\], got 2"):
        Kind(Share).check("p", 2)
