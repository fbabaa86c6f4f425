"""Parts that a user builds, and functions they go to: each takes its kind, or says so."""

import inspect
from dataclasses import dataclass, fields, is_dataclass

import pytest
import torch
from hostile import HOSTILE, flag, number, optional, text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_networks import network
from tiny_lm import tiny_lm, tokenizer

from sfumato.data import (
    PairRows,
    Pairs,
    Prepared,
    PreparedPairs,
    Rows,
    Source,
    load_tokenizer,
    prepare,
    prepare_pairs,
    save_tokenizer,
    special_ids,
    train_tokenizer,
)
from sfumato.decoding import filters, options, published, remask, unmask
from sfumato.decoding.filters import (
    Allowed,
    Forced,
    MinP,
    Repetition,
    Suppress,
    Temperature,
    TopK,
    TopP,
)
from sfumato.decoding.options import Growth
from sfumato.decoding.published import KlassPublished, WinoPublished
from sfumato.decoding.remask import Cap, During, Plateau, Remasking, Rescale, Wino
from sfumato.decoding.unmask import Ancestral, EntropyBound, Factor, Klass, Threshold
from sfumato.denoisers import approximate, guided
from sfumato.denoisers.approximate import ApproximateCache
from sfumato.denoisers.blocks import CachedReader
from sfumato.denoisers.full import Full
from sfumato.denoisers.guided import Guided, GuidedReader
from sfumato.errors import ConfigError, SfumatoError
from sfumato.evals.calibrate import calibrate
from sfumato.evals.calibrate_options import CalibrateOptions
from sfumato.evals.evaluate import EvaluateOptions, evaluate
from sfumato.evals.settings import Setting, Wanted
from sfumato.lm import gaps
from sfumato.lm.gaps import GapLength
from sfumato.noise import corruption, schedules
from sfumato.noise.corruption import Hybrid, Masked, Uniform, corruption_from
from sfumato.noise.schedules import Clipped, Linear, LogLinear, Power, schedule, schedule_from
from sfumato.objectives import blocks as block_diffusion
from sfumato.objectives import bound, curriculum, masked, next_token, selection, times, weights
from sfumato.objectives.blocks import BlockDiffusion
from sfumato.objectives.bound import Bound, Continuous
from sfumato.objectives.curriculum import Curriculum, DroppedSource
from sfumato.objectives.masked import MaskedDiffusion
from sfumato.objectives.next_token import CausalFirst, NextToken
from sfumato.objectives.selection import Bernoulli, ExactK
from sfumato.objectives.times import Independent, Stratified, Systematic
from sfumato.objectives.weights import Cart, ClippedWeight

PROPERTY = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
MASKED = Masked(9, 0)
OBJECTIVE = MaskedDiffusion(0, Independent())
FULL, READER = Full(network(), 0), CachedReader(network(), 0, 1)
BY_SCHEDULE = [
    unmask.FirstHitting,
    unmask.RandomOrder,
    unmask.LeftToRight,
    unmask.TopConfidence,
    unmask.TopProbability,
    unmask.Margin,
    unmask.LowEntropy,
    Threshold,
    Factor,
    EntropyBound,
    Klass,
    KlassPublished,
    Bernoulli,
]
MADE = [
    LogLinear(),
    Power(),
    Clipped(),
    MASKED,
    Uniform(9, 0),
    Hybrid(9, 0),
    Ancestral(MASKED),
    *(kind(Linear()) for kind in BY_SCHEDULE),
    Cap(),
    Rescale(),
    During(0.1, 0.5, 0.1),
    Plateau(Linear(), 0.5, 0.1, 0.5),
    Remasking(Linear(), 0),
    Wino(Linear(), 0),
    WinoPublished(Linear(), 0),
    Temperature(1.0),
    TopK(1),
    TopP(0.5),
    MinP(0.5),
    Repetition(2.0),
    Suppress((1,)),
    Forced(((0, 1),)),
    Allowed(torch.ones(1, 2) > 0, torch.ones(3) > 0),
    Growth(),
    GapLength(1, 2),
    Guided(FULL, FULL, 1.0),
    GuidedReader(READER, READER, 1.0),
    ApproximateCache(FULL),
    Stratified(4),
    Systematic(4),
    ExactK(),
    ClippedWeight(),
    Cart(),
    OBJECTIVE,
    BlockDiffusion(4, OBJECTIVE),
    Curriculum(((3, OBJECTIVE),), OBJECTIVE),
    CausalFirst(OBJECTIVE, 3),
    DroppedSource(OBJECTIVE, 0.1),
    Bound(MASKED, Independent()),
    Continuous(MASKED, Independent()),
    Source("a"),
    Pairs(Source("a"), "b", "c"),
    EvaluateOptions(),
    CalibrateOptions(),
    Wanted(),
    Setting("threshold"),
]
# what only this package puts in: a network as it is read, and what it keeps
OWN = {
    "Guided": ["denoiser", "unconditional", "hidden", "start"],
    "GuidedReader": ["shown", "unshown"],
    "ApproximateCache": ["full", "drift", "kept"],
}
NONE = {  # fields that may be left out
    "Source": ["separator", "config", "limit"],
    "Pairs": ["source_field", "target_field"],
    "EvaluateOptions": ["step", "num_steps", "temperature", "judge"],
    "CalibrateOptions": ["judge"],
    "Setting": ["num_steps", "block"],
    "ApproximateCache": ["refresh", "probe"],
    "Remasking": ["trained"],
}
NUMBERS = {  # ... that hold a number, otherwise
    "limit": int,
    "num_steps": int,
    "block": int,
    "temperature": float,
    "refresh": int,
    "probe": int,
}


def of_its_kind(made, name, value):
    """Whether a value may stand where the example has its own, its range aside."""
    own = getattr(made, name)
    if value is None:
        return own is None or name in NONE.get(type(made).__name__, ())
    if own is None and name not in NUMBERS:
        return text(value)
    kind = NUMBERS[name] if own is None else type(own)
    if kind is bool:
        return flag(value)
    if kind in (int, float):
        return type(number(value)) in ((int,) if kind is int else (int, float))
    if kind is str:
        return text(value)
    if kind is tuple:
        return isinstance(value, list | tuple)
    if kind is dict:
        return isinstance(value, dict)
    return callable(own) and callable(value) and not isinstance(value, type)


@pytest.mark.parametrize("made", MADE, ids=lambda made: type(made).__name__)
@PROPERTY
@given(data=st.data())
def test_a_part_takes_its_kind_or_says_so(made, data):
    own = OWN.get(type(made).__name__, ())
    names = [each.name for each in fields(made) if each.init and each.name not in own]
    name, value = data.draw(st.sampled_from(names)), data.draw(HOSTILE)
    given_ = {each.name: getattr(made, each.name) for each in fields(made) if each.init}
    try:
        type(made)(**{**given_, name: value})
    except SfumatoError:
        return
    assert of_its_kind(made, name, value)


def test_every_part_is_in_the_table():
    """Of the files that hold what a user may build; parts without a field have nothing to check."""
    modules = (
        approximate, block_diffusion, bound, corruption, curriculum, filters, gaps, guided, masked,
        next_token, options, published, remask, schedules, selection, times, unmask, weights,
    )  # fmt: skip
    values = {"Drift", "Ways", "NextToken", "Independent", "BoundWeight", "ConstantWeight", "Only"}
    values |= {"GenerationOptions"}  # tests/test_arguments.py
    found = {
        name
        for module in modules
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and is_dataclass(kind) and kind.__module__ == module.__name__
        if fields(kind) and not name.startswith("_")
    }
    assert found - values - {type(made).__name__ for made in MADE} == set()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: unmask.Margin("linear"), "schedule must be a Schedule, got 'linear'"),
        (lambda: unmask.Margin(torch.zeros(2)), "schedule must be a Schedule, got a Tensor of"),
        (lambda: Ancestral(Linear()), r"corruption must be a Corruption, got Linear\(\)"),
        (lambda: Power(float("nan")), "Power exponent must be positive, got nan"),
        (lambda: Hybrid(9, 0, uniform_share=1.5), "uniform_share must be between 0 and 1, got 1.5"),
        (lambda: Guided(FULL, FULL, "2"), "guidance must be a number of at least 0, got '2'"),
        (lambda: Forced(((0, -1),)), "tokens must be pairs of a position and a token"),
        (lambda: Allowed([True], torch.ones(3) > 0), r"at must be a tensor \[B, L\] of bool"),
        (lambda: Allowed(torch.ones(1, 2), torch.ones(3) > 0), "at must be a tensor .* of bool"),
        (lambda: BlockDiffusion(2, NextToken()), "masked must be a MaskedDiffusion, got NextToken"),
        (lambda: Curriculum(((3, "x"),), OBJECTIVE), "pairs of an end in slots and an objective"),
        (lambda: Remasking(Linear(), 0, by_confidence="yes"), "by_confidence must be True or F"),
        (lambda: EvaluateOptions(exact=1), "exact must be True or False, got 1"),
        (lambda: CalibrateOptions(step="threshold"), "step must be a tuple or a list, got 'thr"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@dataclass(frozen=True)
class Mine(Threshold):
    """A rule of a user's own, with a field of which this package knows nothing."""

    table: "Unknown" = None  # noqa: F821


def test_what_a_rule_of_ones_own_adds_is_its_own():
    assert Mine(Linear(), table=torch.zeros(2)).level == 0.9
    with pytest.raises(ConfigError, match="threshold level must be a number, got 'x'"):
        Mine(Linear(), "x")


# --- functions ---


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Texts and pairs, as they are and prepared."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "texts.txt").write_text("One day a fox ran.\n<|endoftext|>\n" * 30, encoding="utf-8")
    prepare(folder / "texts.txt", folder / "prepared", tokenizer(), validation=0.2)
    pair = '{"source": "A fox?", "target": "A fox ran."}\n'
    (folder / "pairs.jsonl").write_text(pair * 30, encoding="utf-8")
    source = Source(str(folder / "pairs.jsonl"))
    prepare_pairs(Pairs(source, "source", "target"), folder / "paired", tokenizer())
    return folder


FUNCTIONS = {
    "schedule": (schedule, {"name": "power", "exponent": 2.0}),
    "schedule_from": (schedule_from, {"spec": {"name": "linear"}}),
    "corruption_from": (corruption_from, {"spec": {}, "vocab_size": 9, "mask_id": 0}),
    "rows": (
        Rows,
        {"folder": "prepared", "split": "train", "length": 8, "layout": "packed"},
    ),
    "pair rows": (
        PairRows,
        {"folder": "paired", "split": "train", "length": 8, "layout": "padded"},
    ),
    "prepared": (Prepared.open, {"folder": "prepared", "tokenizer": None}),
    "prepared pairs": (PreparedPairs.open, {"folder": "paired"}),
    "prepare": (
        prepare,
        {
            "source": "texts.txt",
            "out": "prepared",
            "tokenizer": tokenizer(),
            "vocab_size": None,
            "validation": 0.2,
            "workers": 1,
            "shard": 2**20,
            "lossy": False,
            "progress": None,
        },
    ),
    "prepare pairs": (
        prepare_pairs,
        {
            "pairs": Pairs(Source("pairs.jsonl"), "source", "target"),
            "out": "paired",
            "tokenizer": tokenizer(),
            "validation": 0.05,
            "workers": 1,
            "lossy": False,
        },
    ),
    "train tokenizer": (
        train_tokenizer,
        {"texts": ["a b c"], "vocab_size": 270, "min_frequency": 2},
    ),
    "load tokenizer": (
        load_tokenizer,
        {"name_or_path": "./prepared/tokenizer", "add_mask_token": False, "eos_token": None},
    ),
    "save tokenizer": (save_tokenizer, {"tokenizer": tokenizer(), "folder": "saved"}),
    "special ids": (special_ids, {"tokenizer": tokenizer()}),
    "evaluate": (
        evaluate,
        {"lm": tiny_lm(), "data": "none", "options": EvaluateOptions(), "model_name": "no-model"},
    ),
    "calibrate": (
        calibrate,
        {"lm": tiny_lm(), "data": "none", "options": CalibrateOptions(), "model_name": "no-model"},
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@PROPERTY
@given(data=st.data())
def test_a_function_takes_its_kind_or_says_so(place, monkeypatch, name, data):
    monkeypatch.chdir(place)
    function, usual = FUNCTIONS[name]
    argument, value = data.draw(st.sampled_from([*usual])), data.draw(HOSTILE)
    try:
        function(**{**usual, argument: value})
    except SfumatoError:
        return
    own = usual[argument]
    free = own is None and optional(lambda v: text(v) or callable(v) or number(v) is not None)
    alike = flag if isinstance(own, bool) else None
    if isinstance(own, int | float) and alike is None:
        alike = lambda v: number(v) is not None or (v is None and argument == "workers")  # noqa: E731
    if isinstance(own, str | dict) and alike is None:
        alike = lambda v: isinstance(v, str | dict) or hasattr(v, "parts")  # noqa: E731
    assert value == own or (free or alike or (lambda v: isinstance(v, list | tuple)))(value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": "two"}, "workers must be a whole number, got 'two'"),
        ({"shard": 1.5}, "shard must be a whole number, got 1.5"),
        ({"validation": "x"}, r"validation must be a share of the text in \[0, 1\), got 'x'"),
        ({"validation": True}, r"validation must be a share of the text in \[0, 1\), got True"),
        ({"lossy": "yes"}, "lossy must be True or False, got 'yes'"),
        ({"source": 3}, "source must be a path, a name or a Source, got 3"),
        ({"out": None}, "out must be a path, got None"),
        ({"tokenizer": 3}, "int is no fast tokenizer"),
        ({"progress": 3}, "progress must be a function of one argument, got 3"),
    ],
)
def test_what_prepare_cannot_take_is_said(place, monkeypatch, arguments, message):
    monkeypatch.chdir(place)
    with pytest.raises(SfumatoError, match=message):
        prepare(**{**FUNCTIONS["prepare"][1], **arguments})
