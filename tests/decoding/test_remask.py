import math

import pytest
import torch
from worlds import MASK, World

from sfumato.decoding.filters import Temperature
from sfumato.decoding.loops import denoise, generate
from sfumato.decoding.page import blank
from sfumato.decoding.remask import Cap, During, Plateau, Remasking, Rescale, Wino, loop
from sfumato.decoding.step import Prediction
from sfumato.decoding.times import even_times
from sfumato.decoding.unmask import Ancestral
from sfumato.errors import ConfigError
from sfumato.noise.corruption import Masked
from sfumato.noise.schedules import CosineAlpha, CosineMask, Linear, LogLinear, Power, reveal_rate
from sfumato.rng import Rng
from sfumato.testing import check_step
from sfumato.types import Canvas

WORLD = World.random()
LINEAR = Linear()
MASKED = Masked(4, MASK)


def pages(step, *, rows=4000, num_steps=64, world=WORLD):
    nothing = torch.zeros(rows, world.length, dtype=torch.bool)
    rng = Rng.from_seed(0, rows)
    canvas = blank(MASKED, nothing.long(), nothing, rng.fold(0))
    denoiser = world.denoiser(MASKED)
    return generate(denoiser, canvas, step, rng.fold(1), num_steps=num_steps)


def last(step, **options) -> torch.Tensor:
    *_, page = pages(step, **options)
    return page.tokens


RULES = [
    Remasking(LINEAR, 4),
    Remasking(CosineMask(), 4, Rescale(0.5)),
    Remasking(CosineAlpha(), 4, Cap(0.2), by_confidence=True),
    Remasking(LINEAR, 4, Cap(0.0)),
    Remasking(LINEAR, 4, During(0.3, 0.8, 0.1)),
    loop(LINEAR, 4),
    loop(CosineMask(), 4, eta=0.1),
    Wino(LINEAR, 4),
    Wino(LINEAR, 4, draft=0.3, verify=0.99),
]


@pytest.mark.parametrize("step", RULES, ids=repr)
def test_every_rule_keeps_the_contract(step):
    check_step(step, Masked(5, 4), revises=True)


@pytest.mark.parametrize("step", RULES, ids=repr)
def test_a_rule_prints_as_it_is_made(step):
    assert eval(repr(step)) == step


SCHEDULES = [LINEAR, CosineMask(), CosineAlpha(), LogLinear(), Power()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("rate", [Cap(0.05), Rescale(0.1)], ids=repr)
def test_remasking_recovers_the_law(rate, schedule):
    step = Remasking(schedule, MASK, rate)
    assert step.exact
    far = WORLD.distance(last(step, num_steps=128, rows=3000))
    assert far < 1.5 * WORLD.noise_floor(3000) + 0.01


def test_much_remasking_recovers_the_law_with_enough_steps():
    """It goes on where all is decided: to stop there would keep what was drawn at once."""
    step = Remasking(LINEAR, MASK, Rescale(0.5))
    assert WORLD.distance(last(step, num_steps=400, rows=2000)) < 1.6 * WORLD.noise_floor(2000)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_loop_recovers_the_law(schedule):
    far = WORLD.distance(last(loop(schedule, MASK), num_steps=128, rows=3000))
    assert far < 1.5 * WORLD.noise_floor(3000) + 0.01


@pytest.mark.parametrize(
    "step",
    [Remasking(LINEAR, MASK, Cap(0.2), by_confidence=True), Wino(LINEAR, MASK, draft=0.3)],
    ids=repr,
)
def test_a_rule_that_is_not_exact_misses_the_law(step):
    assert not step.exact
    assert WORLD.distance(last(step)) > 2 * WORLD.noise_floor(4000)


@pytest.mark.parametrize("schedule", [LINEAR, CosineMask()], ids=repr)
def test_without_remasking_it_is_the_reverse_process(schedule):
    """sigma = 0, bit for bit."""
    one = pages(Remasking(schedule, MASK, Cap(0.0)), rows=50, num_steps=20)
    other = pages(Ancestral(Masked(4, MASK, schedule)), rows=50, num_steps=20)
    for page, wanted in zip(one, other, strict=False):
        assert torch.equal(page.tokens, wanted.tokens)
        assert torch.equal(page.noisy, wanted.noisy)


@pytest.mark.parametrize(
    "step",
    [
        Remasking(LINEAR, MASK, Cap(0.1)),
        Remasking(CosineMask(), MASK, Rescale(0.5)),
        Remasking(CosineAlpha(), MASK, Cap(0.02)),
        loop(LINEAR, MASK, eta=0.1),
    ],
    ids=repr,
)
def test_the_share_that_is_noisy_stays_that_of_the_process(step):
    """What the chance of revealing is raised for: marginals do not change (ReMDM, theorem 3.1)."""
    times = even_times(25)
    for page, s in zip(pages(step, num_steps=25), times[1:], strict=True):
        rate = 1 - float(step.schedule.alpha(s))
        assert float(page.noisy.double().mean()) == pytest.approx(rate, abs=0.02)


@pytest.mark.parametrize("step", RULES[:2] + RULES[4:7], ids=repr)
def test_sigma_and_the_reveal_rate_are_lawful_and_keep_the_marginal(step):
    t = torch.linspace(1, 0.01, 100, dtype=torch.float64)
    s = torch.cat((t[1:], t[-1:] * 0))
    sigma, reveal = step.law(t, s)
    alpha_t, alpha_s = step.schedule.alpha(t), step.schedule.alpha(s)
    assert bool(((sigma >= 0) & (sigma <= 1) & (reveal >= 0) & (reveal <= 1)).all())
    torch.testing.assert_close((1 - sigma) * alpha_t + reveal * (1 - alpha_t), alpha_s)
    assert float(sigma[-1]) == 0
    assert float(reveal[-1]) == 1


def test_rates_are_their_formulas():
    limit = torch.tensor([0.0, 0.01, 0.5, 1.0])
    t, s = torch.tensor([0.9, 0.6, 0.5, 0.04]), torch.tensor([0.8, 0.5, 0.4, 0.03])
    torch.testing.assert_close(Cap(0.1)(limit, t, s), torch.tensor([0, 0.01, 0.1, 0.1]))
    torch.testing.assert_close(Rescale(0.1)(limit, t, s), limit / 10)
    during = During(0.1, t_on=0.55, t_off=0.05)(limit, t, s)
    torch.testing.assert_close(during, torch.tensor([0, 0, 0.1, 0]))


def test_what_was_decided_in_doubt_is_revised_first():
    """sigma of a place: its share of softmax(-confidence) among the decided, times the row's."""
    step = Remasking(LINEAR, MASK, Cap(0.2), by_confidence=True)
    rows = 40000
    noisy = torch.tensor([[False, False, True, False]]).expand(rows, 4)
    fixed = torch.tensor([[False, False, False, True]]).expand(rows, 4)
    known = torch.tensor([[0.9, 0.1, 1.0, 1.0]]).expand(rows, 4)
    canvas = Canvas(torch.where(noisy, MASK, 0), noisy, fixed, {"confidence": known})
    t, s = torch.full((rows,), 0.6).double(), torch.full((rows,), 0.5).double()
    rng = Rng.from_seed(0, rows)
    where = step.wanted(canvas, t, s, rng)
    logits = torch.zeros(int(where.sum()), 4)
    new = step(canvas, Prediction(logits, where, canvas), t, s, rng)
    share = new.noisy.double().mean(0)
    wanted = 0.2 * (-known[0, :2]).softmax(0).double()
    torch.testing.assert_close(share[:2], wanted, rtol=0, atol=0.005)
    assert float(share[2]) == pytest.approx(0.5 / 0.6, abs=0.005)  # the process's own rate
    assert torch.equal(new.memory["confidence"][~where], known[~where])


def test_confidence_is_that_of_the_token_when_it_was_decided():
    step = Remasking(LINEAR, MASK, Cap(0.0), by_confidence=True)
    logits = torch.tensor([[0.5, 0.3, 0.2, 0.0]]).log().expand(300, 4)
    noisy = torch.ones(300, 1, dtype=torch.bool)
    canvas = Canvas(torch.full((300, 1), MASK), noisy, ~noisy)
    t, s = torch.ones(300).double(), torch.zeros(300).double()
    seen = Prediction(logits, noisy, canvas, (Temperature(1 / 3),))
    new = step(canvas, seen, t, s, Rng.from_seed(0, 300))
    torch.testing.assert_close(
        new.memory["confidence"][:, 0], torch.tensor([0.5, 0.3, 0.2])[new.tokens[:, 0]]
    )


def test_in_the_loop_the_network_is_told_when_its_own_schedule_is_as_noisy():
    t = torch.tensor([1.0, 0.775, 0.55, 0.3, 0.05, 0.025, 0.0]).double()
    for schedule in (LINEAR, CosineMask()):
        step = loop(schedule, MASK)
        told = step.told(Canvas(*[torch.zeros(7, 1).long()] * 3), t, Rng.from_seed(0, 7))
        torch.testing.assert_close(schedule.alpha(told), step.schedule.alpha(t))
        assert float(told[0]) == 1
        assert float(told[-1]) == 0
        assert float(told[2]) == pytest.approx(float(told[4]))
    assert torch.equal(Remasking(LINEAR, MASK).told(None, t, None), t)


# --- WINO ---


def wino_step(step, canvas, laws, t=1.0, s=0.5):
    where = step.wanted(canvas, torch.tensor([t]), torch.tensor([s]), Rng.from_seed(0))
    logits = torch.nn.functional.pad(laws, (0, 1)).log()[where[0]]  # the mask token has none
    times = (torch.tensor([x]).double() for x in (t, s))
    return step(canvas, Prediction(logits, where, canvas), *times, Rng.from_seed(0))


def test_wino_drafts_what_is_sure_and_takes_back_what_does_not_stand():
    sure, doubt = [0.97, 0.01, 0.02], [0.4, 0.35, 0.25]
    laws = torch.tensor([sure, [0.02, 0.97, 0.01], doubt, sure, doubt])
    tokens = torch.tensor([[1, 1, MASK, MASK, MASK]])
    canvas = Canvas(tokens, tokens == MASK, torch.zeros_like(tokens, dtype=torch.bool))
    step = Wino(LINEAR, MASK, draft=0.35, verify=0.5)
    new = wino_step(step, canvas, laws)
    # three are newly decided; place 0 holds 1, whose chance is now .01; place 1 stands
    assert new.noisy.tolist() == [[True, False, False, False, False]]
    assert new.tokens[0, 0] == MASK


def test_wino_takes_back_fewer_than_it_decides_so_it_ends():
    laws = torch.tensor([[0.01, 0.99, 0.0]]).expand(6, 3)  # nothing that stands is believed
    tokens = torch.tensor([[0, 0, 0, 0, MASK, MASK]])
    canvas = Canvas(tokens, tokens == MASK, torch.zeros_like(tokens, dtype=torch.bool))
    new = wino_step(Wino(LINEAR, MASK), canvas, laws)
    assert int(new.noisy.sum()) == 1
    done = denoise(
        World.random(length=3).denoiser(MASKED),
        Canvas(torch.full((9, 3), MASK), torch.ones(9, 3).bool(), torch.zeros(9, 3).bool()),
        Wino(LINEAR, MASK, draft=0.01, verify=1.0),
        even_times(500),
        Rng.from_seed(0, 9),
    )
    counts = [int(page.noisy.sum(1).max()) for page in done]
    assert counts[-1] == 0
    assert len(counts) <= 3


def test_wino_decides_at_most_the_share_it_may():
    laws = torch.tensor([[0.99, 0.01, 0.0]]).expand(60, 3)
    for length, most in ((4, 4), (6, 5), (20, 14), (60, 20)):
        noisy = torch.ones(1, length, dtype=torch.bool)
        canvas = Canvas(torch.full((1, length), MASK), noisy, ~noisy)
        new = wino_step(Wino(LINEAR, MASK), canvas, laws[:length])
        assert int((~new.noisy).sum()) == most


# --- what users get wrong ---


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cap(-0.1), r"remasking eta must be in \[0, 1\], got -0.1"),
        (lambda: Rescale(1.1), r"remasking eta must be in \[0, 1\], got 1.1"),
        (lambda: During(2, 0.5, 0.1), r"remasking eta must be in \[0, 1\], got 2"),
        (lambda: Plateau(LINEAR, 0.1, 0.5, 0.9), "the remasking loop needs 0 < t_off < t_on < 1"),
        (lambda: loop(LINEAR, MASK, alpha_on=1.0), "0 < alpha_on < 1; got .* alpha_on 1.0"),
        (lambda: Wino(LINEAR, MASK, draft=0), r"WINO draft must be in \(0, 1\], got 0"),
        (lambda: Wino(LINEAR, MASK, verify=1.5), r"WINO verify must be in \[0, 1\], got 1.5"),
    ],
)
def test_what_cannot_be_a_rule_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


STATES = torch.cartesian_prod(*[torch.arange(4)] * 3)  # of three positions: tokens 0, 1, 2, masked


def law_after(step, num_steps: int) -> torch.Tensor:
    """Of what a rule of masks writes with the perfect denoiser: every state, every step."""
    masked = (STATES == MASK)[..., None]
    probs = WORLD.denoiser(MASKED)(STATES, torch.ones(64)).softmax(-1)
    stays = torch.nn.functional.one_hot(STATES, 4).double()
    law = torch.zeros(64, dtype=torch.float64)
    law[-1] = 1
    for t, s in even_times(num_steps).unfold(0, 2, 1)[:, :, None]:
        back, reveal = (
            step.law(t, s) if hasattr(step, "law") else (0 * t, reveal_rate(LINEAR, t, s))
        )
        each = torch.where(masked, reveal * probs, (1 - back) * stays)
        each[..., MASK] += torch.where(masked[..., 0], 1 - reveal, back)
        law = law @ torch.einsum("na,nb,nc->nabc", *each.unbind(1)).reshape(64, 64)
    return law.view(4, 4, 4)[:3, :3, :3].reshape(-1)


def test_remasking_converges_like_one_over_the_root_of_the_steps():
    def far(step, num_steps: int) -> float:
        return float((law_after(step, num_steps) - WORLD.law).abs().sum() / 2)

    def rate(step) -> float:
        return math.log(far(step, 256) / far(step, 1024), 4)

    assert rate(Ancestral(MASKED)) == pytest.approx(1, abs=0.02)
    for revising in (Remasking(LINEAR, MASK, Cap(0.2)), Remasking(LINEAR, MASK, Rescale(1.0))):
        assert rate(revising) == pytest.approx(0.5, abs=0.06)
        seen = WORLD.frequencies(last(revising, num_steps=16))
        chance = WORLD.noise_floor(4000)
        assert float((seen - law_after(revising, 16)).abs().sum() / 2) < 1.6 * chance
    assert rate(loop(LINEAR, MASK)) < 0.1
