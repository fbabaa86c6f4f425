"""Schedules, filters and objectives of a user's own: by name, by the page, by the contract."""

import json
import re
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import of_kind, prepare_words, run_all, small_run
from tiny_lm import tiny_lm

from sfumato.decoding.filters import MinP, Repetition, Suppress, Temperature, TopK, TopP
from sfumato.errors import CheckpointError, ConfigError
from sfumato.lm.folders import _without_code
from sfumato.lm.model import DiffusionLM
from sfumato.noise.corruption import Hybrid, Masked, Uniform
from sfumato.noise.schedules import schedule
from sfumato.objectives.blocks import BlockDiffusion
from sfumato.objectives.bound import Bound
from sfumato.objectives.masked import MaskedDiffusion
from sfumato.objectives.next_token import NextToken
from sfumato.objectives.selection import Bernoulli
from sfumato.objectives.times import Independent, Systematic
from sfumato.testing import check_filter, check_objective, check_schedule
from sfumato.train.events import Evaluated, Started, Stepped
from sfumato.types import Loss
from sfumato.user_parts import own_part

PAGE = Path(__file__).parents[1] / "docs/adding.md"
CODE = "\n\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
HOLD = "corruption.schedule={name: 'my_parts:Hold', straight: 0.3}"
PLAIN = "objective.name='my_parts:Plain'"
MASKED = Masked(5, 4)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return prepare_words(tmp_path_factory.mktemp("data") / "words")


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The page's examples, in a module of the working folder."""
    (tmp_path / "my_parts.py").write_text(CODE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    yield lambda name: own_part(f"my_parts:{name}", "part")
    sys.modules.pop("my_parts", None)


def test_the_examples_of_the_page_keep_their_contracts_and_use_public_names(parts):
    check_schedule(parts("Hold")())
    check_schedule(parts("Hold")(0.1))
    check_filter(parts("Softer")())
    check_objective(parts("Plain")(MASKED, Independent()))
    assert not re.findall(r"import.*\b_\w+", CODE)
    lm = tiny_lm()
    asked: dict[str, Any] = {"prompt": "The", "length": 8, "seed": 0}
    softer = lm.generate(filters=[parts("Softer")(0.1)], **asked)
    assert softer.texts != lm.generate(**asked).texts


def test_a_run_with_parts_of_ones_own_trains_goes_on_and_loads(parts, words, tmp_path):
    keys = [HOLD, PLAIN, "objective.options={share: 0.8}", "train.max_steps=6"]
    run = small_run(words, tmp_path / "out", *keys, train={"save_steps": 3})
    straight = run_all(run.model_copy(update={"output": tmp_path / "straight"}))
    assert all(event.bound != event.bound for event in of_kind(straight, Stepped)), "no bound"
    assert all(event.bound > 0 for event in of_kind(straight, Evaluated))
    run_all(run)
    shutil.rmtree(run.output / "checkpoints/step-00000006")
    events = run_all(run)
    assert of_kind(events, Started)[0].step == 3
    assert [e.loss for e in of_kind(events, Stepped)] == [
        e.loss for e in of_kind(straight, Stepped)
    ][3:]
    for changed in ("objective.options={share: 0.7}", "objective.name=masked", "seed=0"):
        others = [key for key in keys if not key.startswith(changed.split("=")[0])]
        if changed == "objective.name=masked":
            others.remove("objective.options={share: 0.8}")
        if changed == "seed=0":
            others.remove(HOLD)
            others.append("corruption.schedule={name: 'my_parts:Hold', straight: 0.4}")
        other = small_run(words, run.output, *others, changed, train={"save_steps": 3})
        with pytest.raises(CheckpointError, match=r"other settings: .*(objective|schedule)"):
            run_all(other)
    lm = DiffusionLM.from_pretrained(run.output)
    assert repr(lm.corruption.schedule) == "Hold(straight=0.3)"
    assert lm.generate(length=8, seed=0).texts


def test_a_model_says_which_code_it_lacks(parts, words, tmp_path, monkeypatch):
    run_all(small_run(words, tmp_path / "out", HOLD, "train.max_steps=3"))
    (tmp_path / "my_parts.py").unlink()
    sys.modules.pop("my_parts")
    message = r"config.json: schedule 'my_parts:Hold' cannot be imported: ModuleNotFoundError"
    with pytest.raises(CheckpointError, match=message):
        DiffusionLM.from_pretrained(tmp_path / "out")
    with pytest.raises(CheckpointError, match="none is imported because a download says so"):
        _without_code(tmp_path / "out", "someone/model")
    monkeypatch.setitem(sys.modules, "my_parts", sys)  # as if the user had imported it
    assert _without_code(tmp_path / "out", "someone/model") == tmp_path / "out"


def test_a_models_config_calls_nothing_but_a_schedule(parts, words, tmp_path):
    lm = tiny_lm()
    lm.save(tmp_path / "model")
    place = tmp_path / "model/config.json"
    keys = json.loads(place.read_text())
    for name in ("os:getcwd", "subprocess:Popen", "dataclasses:Field"):
        keys["corruption"] = {"name": "masked", "schedule": {"name": name}}
        place.write_text(json.dumps(keys))
        with pytest.raises(CheckpointError, match=f"schedule must be a dataclass, and {name} has"):
            DiffusionLM.from_pretrained(tmp_path / "model")


WRONG = """
from dataclasses import dataclass
from my_parts import Hold, Plain

@dataclass(frozen=True)
class Early(Hold):
    def alpha(self, t):
        return 0.5 - 0.5 * t

@dataclass(frozen=True)
class Unknown(Hold):
    high = None

class NoDataclass:
    alpha = dalpha = time = print

@dataclass(frozen=True)
class NoWhole:
    def __call__(self, batch, u, rng): ...

number = 3
def none(corruption, times): return None
"""


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["corruption.schedule='no_such:Thing'"], r"schedule 'no_such:Thing' cannot be imported"),
        (["corruption.schedule='my_parts:Nothing'"], r"cannot be imported: AttributeError"),
        (
            ["corruption.schedule={name: 'my_parts:Hold', bent: 1}"],
            r"key 'corruption.schedule.bent'",
        ),
        (["corruption.schedule='wrong:Early'"], r"alpha\(0\) must be 1 - low, which is 1; got 0.5"),
        (["corruption.schedule='wrong:Unknown'"], r"`high` must be the noise rate at t = 1"),
        (["corruption.schedule='wrong:NoDataclass'"], r"must be a dataclass, whose fields"),
        (["corruption.schedule='wrong:NoWhole'"], r"NoWhole has no method alpha: see docs/adding"),
        (["objective.name='no_such:Thing'"], r"objective.name 'no_such:Thing' cannot be imported"),
        (["objective.name='wrong:number'"], r"must be a class or function that makes an objective"),
        (["objective.name='wrong:none'"], r"must make an objective, .*got None"),
        (
            [PLAIN, "objective.options={shar: 1}"],
            r"cannot be made of a corruption, times and .*sha",
        ),
        (["objective.options={share: 1}"], r"objective.options is for an objective of your own"),
        (["objective.name=maskd"], r"objective.name: unknown name 'maskd'; did you mean masked"),
        ([PLAIN, "objective.weight=bound"], r"objective.weight is for objective.name=masked"),
        (["objective.selection='wrong:NoWhole'"], r"`__call__` and `whole`, True or False"),
        (["objective.weight='wrong:number'"], r"must be a dataclass, whose fields are its options"),
        (
            [PLAIN, "corruption.name=uniform", "corruption.schedule=clipped"],
            r"integrates over all noise rates",
        ),
    ],
)
def test_what_is_no_part_is_refused_in_a_sentence(parts, words, tmp_path, keys, message):
    (tmp_path / "wrong.py").write_text(WRONG, encoding="utf-8")
    try:
        with pytest.raises(ConfigError, match=message):
            run_all(small_run(words, tmp_path / "out", *keys))
    finally:
        sys.modules.pop("wrong", None)


def test_our_schedules_may_be_named_like_ones_own():
    assert schedule("sfumato.noise.schedules:Power", exponent=3) == schedule("power", exponent=3)
    with pytest.raises(ConfigError, match="cannot be made of nothing else and the options"):
        schedule("sfumato.noise.schedules:Power", power=3)


# --- the contracts ---


@pytest.mark.parametrize(
    "objective",
    [
        MaskedDiffusion(4, Independent()),
        MaskedDiffusion(4, Systematic(4), complementary=True),
        MaskedDiffusion(4, Systematic(4), Bernoulli()),
        BlockDiffusion(3, MaskedDiffusion(4, Systematic(8))),
        NextToken(),
        Bound(Uniform(5, 4), Systematic(4)),
        Bound(Hybrid(5, 4, uniform_share=0.3), Systematic(4)),
    ],
    ids=lambda objective: repr(objective)[:40],
)
def test_our_objectives_keep_the_contract(objective):
    check_objective(objective, samples=60)


@dataclass(frozen=True)
class Wrong:
    """A good objective with one fault."""

    fault: Any

    def __call__(self, denoiser, batch, rng):
        loss = MaskedDiffusion(4, Independent())(denoiser, batch, rng)
        return self.fault(loss, batch)


def _drawn(loss: Loss, batch):
    return replace(loss, value=loss.value * torch.rand(()))


def _written(loss: Loss, batch):
    batch.tokens.zero_()
    return loss


FAULTS = {
    "must return a types.Loss": lambda loss, batch: loss.value,
    "value must be one finite number": lambda loss, b: replace(loss, value=loss.value / 0),
    "value must have a gradient": lambda loss, b: replace(loss, value=loss.value.detach()),
    "count must be the trainable tokens, 20, not those": lambda loss, b: replace(
        loss, count=loss.corrupted
    ),
    "nll must be 0 where a token is not trainable": lambda loss, b: replace(loss, nll=loss.nll + 1),
    "nll must be \\[4, 6\\]": lambda loss, b: replace(loss, nll=loss.nll.sum(1)),
    "must be the bound itself.*Say bounds=False": lambda loss, b: replace(loss, nll=loss.nll / 2),
    "correct must be some of the corrupted": lambda loss, b: replace(
        loss, correct=loss.corrupted + 1
    ),
    "what it is alone": lambda loss, b: replace(loss, nll=loss.nll * len(b.tokens)),
    "draw from `rng` alone, not from torch's": _drawn,
    "must not write into its batch": _written,
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_wrong_objective_is_told_what_is_wrong(message):
    with pytest.raises(AssertionError, match=message):
        check_objective(Wrong(FAULTS[message]), samples=30)


@pytest.mark.parametrize(
    "one",
    [
        Temperature(0.0),
        Temperature(0.5),
        TopK(2),
        TopP(0.5),
        MinP(0.3),
        Repetition(1.5),
        Suppress((1, 2)),
    ],
    ids=repr,
)
def test_our_filters_keep_the_contract(one):
    check_filter(one)


class Bad:
    """A filter that does what it is given."""

    def __init__(self, change, **said):
        self.change = change
        for name, value in said.items():
            setattr(self, name, value)

    def __call__(self, logits, canvas, where):
        return self.change(logits, canvas, where)


def _raised(logits, canvas, where):
    """Tokens that the whole batch shows: a row hears of its neighbours."""
    return logits + canvas.tokens.sum()


@pytest.mark.parametrize(
    ("change", "said", "message"),
    [
        (lambda x, c, w: x.mul_(2), {}, "write into none of its arguments"),
        (lambda x, c, w: x[:, :-1], {}, r"must return logits \[7, 6\] float32; got \[7, 5\]"),
        (lambda x, c, w: x.double(), {}, "got .* float64"),
        (lambda x, c, w: x * torch.nan, {}, "must not become nan"),
        (lambda x, c, w: torch.full_like(x, -torch.inf), {}, "must keep a token"),
        (lambda x, c, w: x.clamp_min(-5), {}, "the mask token got a probability"),
        (lambda x, c, w: x + torch.rand(x.shape), {}, "from torch's global generator"),
        (_raised, {}, "whatever its neighbours"),
        (
            lambda x, c, w: x + c.tokens[w.nonzero(as_tuple=True)[0], 0][:, None],
            {"blind": True},
            "reads the logits alone",
        ),
        (lambda x, c, w: x, {"sharpens": 1}, "sharpens must be True or False; got 1"),
    ],
)
def test_a_wrong_filter_is_told_what_is_wrong(change, said, message):
    with pytest.raises(AssertionError, match=message):
        check_filter(Bad(change, **said))
    with pytest.raises(AssertionError, match="a filter is called with logits"):
        check_filter(Bad)  # type: ignore[arg-type]
