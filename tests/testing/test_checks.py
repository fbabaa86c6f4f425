"""The contracts catch planted faults, each by the message one would hope for."""

from dataclasses import dataclass, replace

import pytest
import torch
from worlds import MASK, World

from sfumato.noise.corruption import Hybrid, Masked, Uniform
from sfumato.noise.schedules import Linear
from sfumato.testing import check_corruption, check_denoiser, check_schedule

# --- schedules ---


class WrongDerivative(Linear):
    def dalpha(self, t):
        return -2 * torch.ones_like(t)


class DerivativeOfTheNoise(Linear):
    def dalpha(self, t):
        return torch.ones_like(t)


class Rising(Linear):
    def alpha(self, t):
        return (1 - t) + 0.3 * torch.sin(6 * torch.pi * t)


class NoiseToText(Linear):
    def alpha(self, t):
        return t


class NeverClean(Linear):
    def alpha(self, t):
        return 0.9 * (1 - t)


class NotAllNoise(Linear):
    def alpha(self, t):
        return 1 - 0.9 * t


class WrongInverse(Linear):
    def time(self, alpha):
        return (1 - alpha) ** 2


class LosesTheShape(Linear):
    def alpha(self, t):
        return torch.atleast_1d(1 - t)


class NotFinite(Linear):
    def dalpha(self, t):
        return -1 / (t - t)


class WritesIntoTime(Linear):
    def alpha(self, t):
        return t.mul_(-1).add_(1)


class DoubleOnly(Linear):
    def alpha(self, t):
        return 1 - t.double()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (WrongDerivative, "dalpha must be the derivative of alpha; expected -1 at .*, got -2"),
        (DerivativeOfTheNoise, "dalpha must never be positive"),
        (Rising, r"alpha must never rise with t; it does after t = \['0"),
        (NoiseToText, r"alpha\(0\) must be 1 - low.*expected 1, got 0"),
        (NeverClean, r"alpha\(0\) must be 1 - low.*expected 1, got 0.9"),
        (NotAllNoise, r"alpha\(1\) must be 1 - high.*expected 0, got 0.1"),
        (WrongInverse, "time must invert alpha"),
        (LosesTheShape, r"alpha\(t\) must have the shape of its argument, \[\]; got shape \[1\]"),
        (NotFinite, r"dalpha\(t\) must be finite"),
        (WritesIntoTime, r"alpha\(t\) must not write into its argument"),
        (DoubleOnly, "alpha must be finite float32 for float32"),
    ],
)
def test_a_faulty_schedule_is_caught(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_schedule(fault())


# --- corruptions ---


@dataclass(frozen=True)
class WrongDenominator(Masked):
    def posterior(self, p0, xt, t, s):
        reveal = (self.schedule.alpha(s) - self.schedule.alpha(t))[..., None]  # not / (1 - alpha_t)
        hidden = torch.nn.functional.one_hot(torch.full_like(xt, self.mask_id), self.vocab_size)
        law = reveal * p0 + (1 - reveal) * hidden
        onehot = torch.nn.functional.one_hot(xt, self.vocab_size).double()
        return torch.where((xt == self.mask_id)[..., None], law, onehot)


@dataclass(frozen=True)
class TimeForAlpha(Masked):
    def corrupt(self, x0, t, rng):
        u = rng.fold(0).uniform(x0.shape[1])
        return torch.where(u < (t if t.dim() == 2 else t[:, None]), x0, self.mask_id)


@dataclass(frozen=True)
class NegativeWeight(Masked):
    def bound(self, logp, x0, xt, t):
        return -super().bound(logp, x0, xt, t)


@dataclass(frozen=True)
class WrongWeight(Masked):
    def bound(self, logp, x0, xt, t):
        return super().bound(logp, x0, xt, t) * (1 - self.schedule.alpha(t))


@dataclass(frozen=True)
class NoCarryOver(Masked):
    def posterior(self, p0, xt, t, s):
        return super().posterior(p0, torch.full_like(xt, self.mask_id), t, s)


@dataclass(frozen=True)
class PluggedIn(Uniform):
    """The formula for leave-one-out logits, fed with p(x_0 | x_t)."""

    def posterior(self, p0, xt, t, s):
        uniform = Uniform(self.vocab_size, self.mask_id)
        flat = torch.where(torch.arange(self.vocab_size) == self.mask_id, 0.0, p0.mean())
        return 0.5 * uniform.posterior(p0, xt, t, s) + 0.5 * uniform.posterior(
            (flat / flat.sum()).expand(p0.shape), xt, t, s
        )


@dataclass(frozen=True)
class KernelDoesNotSum(Masked):
    def kernel(self, t):
        return super().kernel(t)._replace(spread=torch.full_like(t, 0.1))


@dataclass(frozen=True)
class KernelSlope(Masked):
    def kernel(self, t):
        k = super().kernel(t)
        return k._replace(dmask=-k.dmask)


@dataclass(frozen=True)
class CleanPrior(Uniform):
    def prior(self, shape, rng):
        return torch.zeros(shape, dtype=torch.int64)


@dataclass(frozen=True)
class OneKeyForAll(Masked):
    def corrupt(self, x0, t, rng):
        first = rng.select(torch.zeros(len(x0), dtype=torch.int64))
        return super().corrupt(x0, t, first)


@dataclass(frozen=True)
class NextKey(Masked):
    """Frequencies are right, but what a row gets depends on the batch."""

    def corrupt(self, x0, t, rng):
        return super().corrupt(x0, t, type(rng)(rng.keys.roll(1)))


@dataclass(frozen=True)
class GlobalGenerator(Masked):
    def corrupt(self, x0, t, rng):
        return torch.where(torch.rand(x0.shape) < 1 - t[:, None], x0, self.mask_id)


@dataclass(frozen=True)
class CorruptsInPlace(Masked):
    def corrupt(self, x0, t, rng):
        return x0.copy_(super().corrupt(x0, t, rng))


@dataclass(frozen=True)
class SaysAbsorbing(Uniform):
    absorbing = True


@dataclass(frozen=True)
class SwallowsFloat32(Masked):
    def bound(self, logp, x0, xt, t):
        return super().bound(logp.double(), x0, xt, t)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (WrongDenominator, "posterior from t = 0.9 to s = 0.7 must be Bayes' rule"),
        (TimeForAlpha, "corrupt at t = 0.2: a token has frequency 0.1.* its probability is 0.8"),
        (NegativeWeight, "bound at t = 0.03 must never be negative; got -"),
        (WrongWeight, "bound at t = 0.03 must be the rate of KL"),
        (NoCarryOver, "posterior from t = 0.9 to s = 0.7 must be Bayes' rule"),
        (PluggedIn, "posterior from t = 0.9 to s = 0.7 must be Bayes' rule"),
        (KernelDoesNotSum, r"alpha \+ mask \+ spread must be 1; expected 1 at 0.013, got 1.1"),
        (KernelSlope, "dmask must be the derivative of mask; expected 1 at .*, got -1"),
        (CleanPrior, "prior, against the law at t = 1: a token has frequency 1.0000"),
        (OneKeyForAll, "corrupt at t = 0.2: a token has frequency"),
        (NextKey, "corrupt must give a row what its own key gives it"),
        (GlobalGenerator, "corrupt must draw from `rng` alone"),
        (CorruptsInPlace, "corrupt must not write into its argument"),
        (SaysAbsorbing, "absorbing must say whether all noise is the mask token"),
        (SwallowsFloat32, "bound must keep float32; got torch.float64"),
    ],
)
def test_a_faulty_corruption_is_caught(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_corruption(fault(5, 4))


def test_a_kernel_that_takes_noise_back_is_caught():
    @dataclass(frozen=True)
    class TakesBack(Hybrid):
        def kernel(self, t):
            k = Masked(5, 4).kernel(t)
            wave, dwave = 0.2 * torch.sin(9 * t) ** 2, 1.8 * torch.sin(18 * t)
            part, dpart = wave * k.mask, dwave * k.mask + wave * k.dmask
            return k._replace(mask=k.mask - part, spread=part, dmask=k.dmask - dpart, dspread=dpart)

    with pytest.raises(AssertionError, match="no token may turn into another with negative"):
        check_corruption(TakesBack(5, 4))


# --- denoisers ---

WORLD = World.random(length=3)
PERFECT = WORLD.denoiser(Masked(4, MASK))


@dataclass(frozen=True)
class Spoilt:
    """A perfect denoiser, to be spoilt; it knows one text by heart."""

    of: object = WORLD.certain(torch.tensor([0, 2, 1])).denoiser(Masked(4, MASK))

    def __call__(self, tokens, t, where=None, *, segments=None):
        return self.of(tokens, t, where)

    def given(self, left=None, right=None):
        return replace(self, of=self.of.given(left, right))


class ShiftedLogits(Spoilt):
    def __call__(self, tokens, t, where=None, *, segments=None):
        logits = super().__call__(tokens, t).roll(1, 1)
        return logits if where is None else logits[where]


class MaskIsLikely(Spoilt):
    def __call__(self, tokens, t, where=None, *, segments=None):
        return super().__call__(tokens, t, where).clamp_min(-20)


@dataclass(frozen=True)
class SeesNeighbours(Spoilt):
    of: object = PERFECT

    def __call__(self, tokens, t, where=None, *, segments=None):
        together = torch.where(tokens == MASK, tokens.roll(1, 0), tokens)
        return PERFECT(together, t, where)


@dataclass(frozen=True)
class ForgetsLeft(Spoilt):
    of: object = PERFECT

    def given(self, left=None, right=None):
        return self if right is None else replace(self, of=self.of.given(right=right))


class ForgetsRight(Spoilt):
    def given(self, left=None, right=None):
        return self if left is None else replace(self, of=self.of.given(left=left))


class IgnoresWhere(Spoilt):
    def __call__(self, tokens, t, where=None, *, segments=None):
        return super().__call__(tokens, t)


class HalfPrecision(Spoilt):
    def __call__(self, tokens, t, where=None, *, segments=None):
        return super().__call__(tokens, t, where).half()


class Drops(Spoilt):
    def __call__(self, tokens, t, where=None, *, segments=None):
        return torch.nn.functional.dropout(super().__call__(tokens, t, where).exp(), 0.5).log()


class FillsIn(Spoilt):
    def __call__(self, tokens, t, where=None, *, segments=None):
        logits = super().__call__(tokens, t, where)
        tokens.masked_fill_(tokens == MASK, 0)
        return logits


class NotANumber(Spoilt):
    def __call__(self, tokens, t, where=None, *, segments=None):
        return super().__call__(tokens, t, where) * 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (ShiftedLogits, r"logits at i must be about the token at i: .*says \[1, 0, 2\]"),
        (MaskIsLikely, "the mask token must have probability 0: logit -inf"),
        (SeesNeighbours, "a row must not depend on its neighbours"),
        (ForgetsLeft, r"given\(left\) must equal the same text in the canvas"),
        (ForgetsRight, r"given\(right\) must equal the same text in the canvas"),
        (IgnoresWhere, r"logits at `where` must be \[.*, 4\]; got \[3, 3, 4\]"),
        (HalfPrecision, "float32 or float64; got .* float16"),
        (Drops, "a denoiser must draw from `rng` alone, not from torch's global generator"),
        (FillsIn, "a denoiser must not write into its arguments"),
        (NotANumber, "logits must not be nan"),
    ],
)
def test_a_faulty_denoiser_is_caught(fault, message):
    recites = None if fault.of is PERFECT else torch.tensor([0, 2, 1])
    with pytest.raises(AssertionError, match=message):
        check_denoiser(fault(), vocab_size=4, mask_id=MASK, length=3, packs=False, recites=recites)


def test_the_denoiser_that_is_spoilt_is_itself_without_fault():
    check_denoiser(
        Spoilt(), vocab_size=4, mask_id=MASK, length=3, packs=False,
        recites=torch.tensor([0, 2, 1]),
    )  # fmt: skip


NOTHING = torch.zeros(3, 0, dtype=torch.int64)


@dataclass(frozen=True)
class Bag:
    """Adds up what every token of the row says, whatever the document."""

    left: torch.Tensor = NOTHING
    right: torch.Tensor = NOTHING

    def given(self, left=None, right=None):
        left = self.left if left is None else torch.cat((self.left, left), 1)
        right = self.right if right is None else torch.cat((right, self.right), 1)
        return replace(self, left=left, right=right)

    def __call__(self, tokens, t, where=None, *, segments=None):
        rows = len(tokens)
        seen = torch.cat((self.left[:rows], tokens, self.right[:rows]), 1)
        logits = torch.eye(4)[:, [0, 1, 2, 2]][seen].sum(1, keepdim=True)
        logits = logits.expand(*tokens.shape, 4).clone()
        logits[..., MASK] = -torch.inf
        return logits if where is None else logits[where]


class Mutates(Bag):
    def given(self, left=None, right=None):
        for name, value in vars(super().given(left, right)).items():
            object.__setattr__(self, name, value)
        return self


class WrongOrder(Bag):
    """Weighs what is near the front more, and puts new left text before the old."""

    def given(self, left=None, right=None):
        new = super().given(left, right)
        return new if left is None else replace(new, left=torch.cat((left, self.left), 1))

    def __call__(self, tokens, t, where=None, *, segments=None):
        seen = torch.cat((self.left[: len(tokens)], tokens), 1)
        first = torch.eye(4)[:, [0, 1, 2, 2]][seen[:, :1]]
        logits = first.expand(*tokens.shape, 4).clone()
        logits[..., MASK] = -torch.inf
        return logits if where is None else logits[where]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Bag, "packed documents must not see each other: the first does"),
        (Mutates, "given must return a new denoiser and leave the old one"),
        (WrongOrder, r"given\(left=a\).given\(left=b\) must be a, then b"),
    ],
)
def test_a_denoiser_that_mixes_up_what_it_sees_is_caught(fault, message):
    with pytest.raises(AssertionError, match=message):
        check_denoiser(fault(), vocab_size=4, mask_id=MASK)


def test_a_bag_of_tokens_is_a_denoiser_of_single_documents():
    check_denoiser(Bag(), vocab_size=4, mask_id=MASK, packs=False)
