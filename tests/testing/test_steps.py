"""The contract of step rules catches planted faults, each by the message one would hope for."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from sfumato.decoding.step import Step, commit, draw_at
from sfumato.decoding.unmask import (
    Ancestral,
    RandomOrder,
    Threshold,
    TopConfidence,
    TopProbability,
    highest,
    quota,
)
from sfumato.noise.corruption import Masked
from sfumato.noise.schedules import Linear, reveal_rate
from sfumato.testing import check_step
from sfumato.types import Canvas

LINEAR = Linear()
MASKED = Masked(5, 4)


@dataclass(frozen=True)
class Fault(Step):
    """Random order, to be spoilt."""

    exact = False

    def wanted(self, canvas, t, s, rng):
        return RandomOrder(LINEAR).wanted(canvas, t, s, rng)

    def __call__(self, canvas, seen, t, s, rng):
        return RandomOrder(LINEAR)(canvas, seen, t, s, rng)


class WritesInPlace(Fault):
    def __call__(self, canvas, seen, t, s, rng):
        new = super().__call__(canvas, seen, t, s, rng)
        canvas.tokens.copy_(new.tokens)
        return new


class WritesIntoNoisy(Fault):
    def wanted(self, canvas, t, s, rng):
        where = super().wanted(canvas, t, s, rng)
        canvas.noisy.logical_and_(~where)
        return where


class WritesIntoLogits(Fault):
    def __call__(self, canvas, seen, t, s, rng):
        seen.logits[:, 0] = 9
        return super().__call__(canvas, seen, t, s, rng)


class OverwritesThePrompt(Fault):
    def __call__(self, canvas, seen, t, s, rng):
        new = super().__call__(canvas, seen, t, s, rng)
        return replace(new, tokens=torch.where(canvas.fixed, 0, new.tokens))


class AsksForThePrompt(Fault):
    def wanted(self, canvas, t, s, rng):
        return canvas.noisy | canvas.fixed


class FloorInsteadOfCeil(Fault):
    def wanted(self, canvas, t, s, rng):
        count = (canvas.noisy.sum(1) * reveal_rate(LINEAR, t, s) - 1e-9).floor().long()
        return highest(rng.uniform(canvas.tokens.shape[1]), canvas.noisy, count)


class HiddenGenerator(Fault):
    def __call__(self, canvas, seen, t, s, rng):
        tokens = canvas.tokens.clone()
        tokens[seen.where] = torch.multinomial(seen.at(seen.where).softmax(-1), 1)[:, 0]
        return commit(canvas, seen.where, tokens)


class AveragedTimes(Fault):
    def wanted(self, canvas, t, s, rng):
        mean = [x.mean().expand(len(t)) for x in (t, s)]
        return super().wanted(canvas, mean[0], torch.where(s <= 0, s, mean[1]), rng)


class OneStreamForAll(Fault):
    def __call__(self, canvas, seen, t, s, rng):
        first = rng.select(torch.zeros(len(t), dtype=torch.int64))
        return commit(canvas, seen.where, draw_at(canvas, seen.where, seen, first))


class RewritesDecided(Fault):
    def __call__(self, canvas, seen, t, s, rng):
        new = super().__call__(canvas, seen, t, s, rng)
        settled = ~canvas.noisy & ~canvas.fixed & canvas.noisy.any(1, keepdim=True)
        return replace(new, tokens=torch.where(settled, (new.tokens + 1) % 4, new.tokens))


class TouchesFinishedRows(Fault):
    def __call__(self, canvas, seen, t, s, rng):
        new = super().__call__(canvas, seen, t, s, rng)
        done = ~canvas.noisy.any(1, keepdim=True) & ~canvas.fixed
        return replace(new, tokens=torch.where(done, 0, new.tokens))


class ChoosesTheMask(Fault):
    def __call__(self, canvas, seen, t, s, rng):
        return commit(canvas, seen.where, torch.full_like(canvas.tokens, 4))


class LeavesTextInNoise(Fault):
    def __call__(self, canvas, seen, t, s, rng):
        new = super().__call__(canvas, seen, t, s, rng)
        return replace(new, tokens=torch.where(new.noisy, 0, new.tokens))


class DecidesUnasked(Fault):
    def __call__(self, canvas, seen, t, s, rng):
        every = torch.where(canvas.noisy, 0, canvas.tokens)
        return commit(canvas, canvas.noisy, every)


class NegatedLogits(Fault):
    def __call__(self, canvas, seen, t, s, rng):
        turned = torch.where(seen.logits.isinf(), seen.logits, -seen.logits)
        return super().__call__(canvas, replace(seen, logits=turned), t, s, rng)


class KeepsState(Fault):
    calls = 0

    def wanted(self, canvas, t, s, rng):
        type(self).calls += 1
        return super().wanted(canvas, t, s, rng.fold(self.calls))

    def __call__(self, canvas, seen, t, s, rng):
        return commit(canvas, seen.where, draw_at(canvas, seen.where, seen, rng))


class SaysNothingOfExactness(Fault):
    exact = None


class BoolOfTokens(Fault):
    def wanted(self, canvas, t, s, rng):
        return super().wanted(canvas, t, s, rng).long()


class FloatTokens(Fault):
    def __call__(self, canvas, seen, t, s, rng):
        new = super().__call__(canvas, seen, t, s, rng)
        return replace(new, tokens=new.tokens.float())


class TellsTimesBeyondTheEnd(Fault):
    def told(self, canvas, t, rng):
        return 2 * t


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (TellsTimesBeyondTheEnd, r"told must return \[6\] times in \[0, 1\]"),
        (WritesInPlace, "a step must return a new canvas, not write into the old one"),
        (WritesIntoNoisy, "wanted must not write into the canvas"),
        (WritesIntoLogits, "a step must not write into the logits"),
        (OverwritesThePrompt, "fixed positions must never be written"),
        (AsksForThePrompt, "wanted must not name a fixed position"),
        (FloorInsteadOfCeil, "nothing may be noisy after s = 0; . positions are"),
        (HiddenGenerator, "a step must draw from `rng` alone"),
        (AveragedTimes, "a row must become what it becomes alone"),
        (OneStreamForAll, "a row must become what it becomes alone"),
        (RewritesDecided, "decided positions must stay as they are"),
        (TouchesFinishedRows, "a row with nothing noisy is finished"),
        (ChoosesTheMask, "the mask token must never be decided"),
        (LeavesTextInNoise, "positions still noisy must hold the mask token"),
        (DecidesUnasked, r"decided whose logits `wanted` did not name: \[row, place\] \[\[0, "),
        (NegatedLogits, "a rule must write what a model is certain of"),
        (KeepsState, "the same rng must give the same text"),
        (SaysNothingOfExactness, "exact must be True or False; got None"),
        (BoolOfTokens, r"wanted must return \[6, 6\] bool; got \[6, 6\] int64"),
        (FloatTokens, r"a step must keep tokens \[6, 6\] int64; got \[6, 6\] float32"),
    ],
)
def test_a_faulty_step_is_caught(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_step(fault(), MASKED)


def test_the_rule_that_is_spoilt_is_itself_without_fault():
    check_step(Fault(), MASKED)


class Boast(TopConfidence):
    exact = True


class TooManyAtOnce(Threshold):
    exact = True


@dataclass(frozen=True)
class Warm(TopProbability):
    """A hidden temperature."""

    def __call__(self, canvas, seen, t, s, rng):
        cooler = replace(seen, logits=seen.logits / 1.5)
        return super().__call__(canvas, cooler, t, s, rng)


@dataclass(frozen=True)
class Halves(Ancestral):
    """Reveals at half the rate, and the rest at the end."""

    def wanted(self, canvas, t, s, rng):
        early = super().wanted(canvas, t, s + (t - s) * 0.98, rng)
        return torch.where((s <= 0)[:, None], canvas.noisy, early)


@pytest.mark.parametrize(
    "fault",
    [Boast(LINEAR), TooManyAtOnce(LINEAR, 0.3), Warm(LINEAR), Halves(MASKED)],
    ids=repr,
)
def test_a_claim_to_be_exact_is_held_to(fault):
    with pytest.raises(AssertionError, match="exact is True, but with a perfect denoiser"):
        check_step(fault, MASKED)


@dataclass(frozen=True)
class Renoises(RandomOrder):
    """Takes back half of what is decided."""

    exact = False
    reopens = True

    def __call__(self, canvas, seen, t, s, rng):
        new = super().__call__(canvas, seen, t, s, rng)
        coin = rng.fold(5).uniform(canvas.tokens.shape[1]) < 0.5
        back = ~canvas.noisy & ~canvas.fixed & coin & (s > 0)[:, None]
        return replace(new, tokens=new.tokens.masked_fill(back, 4), noisy=new.noisy | back)


def test_taking_decisions_back_is_allowed_to_those_who_say_so():
    check_step(Renoises(LINEAR), MASKED, revises=True)
    with pytest.raises(AssertionError, match="decided positions must stay as they are"):
        check_step(Renoises(LINEAR), MASKED)


def test_a_canvas_is_all_a_step_needs():
    """The contract's own canvases keep their promise: fixed and noisy never overlap."""
    seen = []

    class Looks(Fault):
        def wanted(self, canvas: Canvas, t, s, rng):
            seen.append(canvas)
            return super().wanted(canvas, t, s, rng)

    check_step(Looks(), MASKED)
    assert not any(bool((canvas.noisy & canvas.fixed).any()) for canvas in seen)
    assert any(bool((quota(c, LINEAR, torch.ones(1), torch.zeros(1)) == 0).any()) for c in seen)


def test_the_rule_in_the_documentation_keeps_the_contract():
    page = Path(__file__).parents[2] / "docs" / "adding.md"
    code = re.search(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL).group(1)
    names = {}
    exec(code, names)
    check_step(names["LeastSure"](LINEAR), MASKED)
