import itertools
from decimal import localcontext

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import even_split
from worlds import MASK, World

from sfumato.decoding.filters import Temperature
from sfumato.decoding.logits import entropies
from sfumato.decoding.loops import generate
from sfumato.decoding.page import blank
from sfumato.decoding.step import Prediction
from sfumato.decoding.unmask import (
    Ancestral,
    EntropyBound,
    Factor,
    FirstHitting,
    Klass,
    LeftToRight,
    LowEntropy,
    Margin,
    RandomOrder,
    Threshold,
    TopConfidence,
    TopProbability,
    highest,
    quota,
)
from sfumato.errors import ConfigError
from sfumato.noise.corruption import Hybrid, Masked, Uniform
from sfumato.noise.schedules import Clipped, CosineAlpha, CosineMask, Linear, LogLinear, Power
from sfumato.rng import Rng
from sfumato.testing import check_step
from sfumato.types import Canvas

WORLD = World.random()
LINEAR = Linear()
SCHEDULES = [LINEAR, CosineMask(), CosineAlpha(), LogLinear(), Power(), Power(0.5), Clipped()]
EXACT = [FirstHitting, RandomOrder, LeftToRight, TopProbability, Margin, LowEntropy]
HASTY = [
    TopConfidence(LINEAR),
    Threshold(LINEAR, 0.5),
    Factor(LINEAR, 1.0),
    EntropyBound(LINEAR, 1.0),
    Klass(LINEAR, level=0.3, eps=2.0, patience=1),
]


def texts(step, corruption=None, *, rows=4000, num_steps=64, world=WORLD) -> torch.Tensor:
    """What a rule writes with the perfect denoiser, [rows, L]."""
    corruption = corruption or Masked(4, MASK)
    nothing = torch.zeros(rows, world.length, dtype=torch.bool)
    rng = Rng.from_seed(0, rows)
    canvas = blank(corruption, nothing.long(), nothing, rng.fold(0))
    denoiser = world.denoiser(corruption)
    *_, last = generate(denoiser, canvas, step, rng.fold(1), num_steps=num_steps)
    return last.tokens


# --- exact rules have the law of the perfect denoiser, and the others miss it ---


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("rule", EXACT)
def test_an_exact_rule_recovers_the_law(rule, schedule):
    assert rule(schedule).exact
    assert WORLD.distance(texts(rule(schedule))) < 1.5 * WORLD.noise_floor(4000)


# Clipped leaves noise rates out, and Power(0.5) a tenth of the text to the last of 64 steps
@pytest.mark.parametrize("schedule", SCHEDULES[:5], ids=repr)
@pytest.mark.parametrize("noise", [Masked, Uniform, Hybrid])
def test_the_reverse_process_recovers_the_law(noise, schedule):
    step = Ancestral(noise(4, MASK, schedule))
    assert step.exact
    written = texts(step, step.corruption)
    assert WORLD.distance(written) < 1.5 * WORLD.noise_floor(4000) + 0.015  # 1 / num_steps


def test_the_reverse_process_gets_better_with_more_steps():
    step = Ancestral(Masked(4, MASK))
    few, more = (WORLD.distance(texts(step, num_steps=n, rows=20000)) for n in (1, 8))
    assert few > 0.2
    assert 2 * WORLD.noise_floor(20000) < more < few / 3


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_entropy_bound_0_is_exact_and_any_other_is_not_said_to_be(schedule):
    assert EntropyBound(schedule, 0.0).exact
    assert not EntropyBound(schedule, 1e-9).exact
    assert WORLD.distance(texts(EntropyBound(schedule, 0.0))) < 1.5 * WORLD.noise_floor(4000)


@pytest.mark.parametrize("step", HASTY, ids=repr)
def test_a_rule_that_is_not_exact_misses_the_law(step):
    assert not step.exact
    assert WORLD.distance(texts(step)) > 1.8 * WORLD.noise_floor(4000)


def test_confidence_in_what_was_drawn_favours_likely_texts():
    """The bias is towards the mode, also at one position a step."""
    seen = WORLD.frequencies(texts(TopConfidence(LINEAR))).double()
    surprise = -WORLD.law.log()
    assert float(seen @ surprise) < WORLD.entropy - 0.5
    assert float(seen[WORLD.law.argmax()]) > 1.5 * float(WORLD.law.max())


def test_deciding_two_at_once_forgets_that_they_lean_on_each_other():
    """Parallel draws are those of independent tokens: their texts are too surprising."""
    law = torch.full((9,), 0.5 / 6, dtype=torch.float64)
    law[[0, 4, 8]] = 0.5 / 3  # the two tokens agree half the time
    pairs = World(World.random(length=2).texts, law)
    written = texts(Threshold(LINEAR, 0.3), world=pairs)
    agree = float((written[:, 0] == written[:, 1]).double().mean())
    assert agree == pytest.approx(1 / 3, abs=0.03)


# --- contracts ---

CONTRACT = [
    *(rule(LINEAR) for rule in EXACT),
    *(rule(CosineMask()) for rule in EXACT),
    *HASTY,
    Threshold(LINEAR),
    Factor(CosineAlpha(), 0.2),
    EntropyBound(LINEAR),
    EntropyBound(LINEAR, 0.0),
    Klass(LINEAR),
]


@pytest.mark.parametrize("step", CONTRACT, ids=repr)
def test_every_rule_keeps_the_contract(step):
    check_step(step, Masked(5, 4))


@pytest.mark.parametrize("schedule", [LINEAR, CosineMask(), CosineAlpha()], ids=repr)
@pytest.mark.parametrize("noise", [Masked, Uniform, Hybrid])
def test_the_reverse_process_keeps_the_contract(noise, schedule):
    check_step(Ancestral(noise(5, 2, schedule)), noise(5, 2, schedule))


@pytest.mark.parametrize("step", CONTRACT, ids=repr)
def test_a_rule_prints_as_it_is_made(step):
    assert eval(repr(step)) == step


# --- how many, and which ---


def row(noisy: list[bool]) -> Canvas:
    noisy_row = torch.tensor([noisy])
    tokens = torch.where(noisy_row, MASK, 0)
    return Canvas(tokens, noisy_row, torch.zeros_like(noisy_row))


def test_the_quota_is_llada_s_even_split_in_every_case_up_to_64():
    cases = torch.tensor(list(itertools.product(range(1, 65), range(1, 65))))
    count, steps = cases.T
    left = count.clone()
    splits = [even_split(int(n), int(k)) for n, k in cases]
    for number in range(64):
        noisy = torch.arange(64)[None] < left[:, None]
        canvas = Canvas(torch.where(noisy, MASK, 0), noisy, torch.zeros_like(noisy))
        t = (1 - number / steps.double()).clamp_min(0)
        s = (1 - (number + 1) / steps.double()).clamp_min(0)
        got = quota(canvas, LINEAR, t, s)
        now = number < steps
        wanted = torch.tensor([x[number] if number < len(x) else 0 for x in splits])
        assert torch.equal(got[now], wanted[now])
        left = left - torch.where(now, got, 0)
    assert int(left.abs().sum()) == 0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_quota_follows_the_schedule_and_leaves_nothing(schedule):
    left = 1000
    for number in range(10):
        t, s = (torch.tensor([1 - (number + k) / 10]).double() for k in (0, 1))
        s = s.where(torch.tensor(number < 9), torch.zeros(1).double())
        noisy = torch.arange(1000)[None] < left
        canvas = Canvas(noisy.long(), noisy, torch.zeros_like(noisy))
        left -= int(quota(canvas, schedule, t, s))
        if number < 9:  # within rounding up, ten times
            start = 1 - float(schedule.alpha(torch.tensor(1.0).double()))
            rate = (1 - float(schedule.alpha(s))) / start
            assert 1000 * rate - 10 <= left <= 1000 * rate
    assert left == 0


def test_the_highest_are_chosen_and_ties_go_to_the_left():
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0]])
    among = torch.tensor([[True, True, True, True], [False, True, True, True]])
    chosen = highest(scores, among, torch.tensor([2, 2]))
    assert chosen.tolist() == [[False, True, True, False], [False, True, True, False]]
    assert highest(scores, among, torch.tensor([1, 0])).tolist()[0] == [False, True, False, False]
    assert not bool(highest(scores, among, torch.tensor([1, 0]))[1].any())
    assert bool((highest(scores, among, torch.tensor([9, 9])) == among).all())


LAWS = torch.tensor(
    [  # position: likeliest .6, margin .2 and so on
        [0.60, 0.40, 0.00, 0.0],
        [0.50, 0.25, 0.25, 0.0],
        [0.55, 0.28, 0.17, 0.0],
        [0.98, 0.01, 0.01, 0.0],
    ]
)


def chosen(step, num=(1.0, 0.75), laws=LAWS, noisy=(True,) * 4) -> list[int]:
    """Places that a rule chooses, by the state and the logits alone."""
    canvas = row(list(noisy))
    t, s = (torch.tensor([x]).double() for x in num)
    where = canvas.noisy
    return (
        step.choose(canvas, Prediction(laws.log()[where[0]], where, canvas), t, s)[0]
        .nonzero()[:, 0]
        .tolist()
    )


@pytest.mark.parametrize(
    ("step", "ranking"),
    [
        (TopProbability(LINEAR), [3, 0, 2, 1]),
        (Margin(LINEAR), [3, 2, 1, 0]),  # leads of .97, .27, .25, .2
        (LowEntropy(LINEAR), [3, 0, 2, 1]),
    ],
    ids=repr,
)
def test_sure_positions_are_decided_first(step, ranking):
    for count in range(1, 5):
        assert chosen(step, (1.0, 1 - count / 4)) == sorted(ranking[:count])
    assert (
        chosen(step, (1.0, 0.75), noisy=(True, True, True, False))
        == [place for place in ranking if place != 3][:1]
    )


NEAR_1 = [  # rule, its score in exact arithmetic
    (TopProbability(LINEAR), reference.log_odds),
    (Threshold(LINEAR, 1.0), reference.log_odds),
    (Factor(LINEAR, 1e-300), reference.log_odds),
    (Margin(LINEAR), reference.lead_odds),
    (LowEntropy(LINEAR), lambda row: -reference.entropy(row)),
    (EntropyBound(LINEAR, 0.0), lambda row: -reference.entropy(row)),
    (TopConfidence(LINEAR), reference.log_odds),
    (Klass(LINEAR, level=1.0), reference.log_odds),
]


@pytest.mark.parametrize(("step", "score"), NEAR_1, ids=lambda each: repr(each)[:20])
@given(
    st.lists(
        st.lists(st.integers(0, 60 * 64).map(lambda n: n / 64), min_size=4, max_size=4),
        min_size=3,
        max_size=6,
    ),
    st.integers(0, 23),
    st.integers(-64, 64),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_positions_of_which_a_model_is_all_but_certain_are_ranked_exactly(
    step, score, table, order, shift
):
    """As by a reference that loses nothing, whatever the order of the vocabulary and the origin of
    the logits; ties by position."""
    logits = torch.tensor([[*law, -torch.inf] for law in table])  # the last is the mask
    with localcontext(prec=9):  # a law whose tail is in no float64 is as one without
        exact = [+score(law) for law in table]
    tokens = torch.full((1, len(table)), 4)
    canvas = Canvas(tokens, tokens == 4, tokens != 4)
    permuted = logits[:, [*list(itertools.permutations(range(4)))[order], 4]] + shift
    for count in range(1, len(table) + 1):
        t, s = torch.tensor([[1.0], [1 - count / len(table)]], dtype=torch.float64)
        for said in (logits, permuted):
            seen = Prediction(said, canvas.noisy, canvas, (Temperature(0.0),))
            new = step(canvas, seen, t, s, Rng.from_seed(0))
            decided = (~new.noisy[0]).nonzero()[:, 0].tolist()
            assert decided == reference.surest(exact, count)


def test_threshold_decides_all_that_reach_it_and_at_least_the_share():
    assert chosen(Threshold(LINEAR, 0.55)) == [0, 2, 3]
    assert chosen(Threshold(LINEAR, 0.99)) == [3]
    assert chosen(Threshold(LINEAR, 0.9), (1.0, 0.5)) == [0, 3]


def test_factor_decides_the_largest_number_it_allows():
    # (n + 1) (1 - c_n) for n = 1, 2, 3, 4: .04, 1.2, 1.8, 2.5
    for factor, places in ((0.03, [3]), (1.0, [3]), (1.3, [0, 3]), (2.0, [0, 2, 3])):
        assert chosen(Factor(LINEAR, factor)) == places
    assert chosen(Factor(LINEAR, 2.6)) == [0, 1, 2, 3]
    assert chosen(Factor(LINEAR, 9.0), noisy=(True, False, True, False)) == [0, 2]


def test_entropy_bound_decides_while_the_entropies_before_the_last_stay_within():
    values = sorted(entropies(LAWS.log()).tolist())  # places 3, 0, 2, 1
    before = list(itertools.accumulate(values))
    ranking = [3, 0, 2, 1]
    assert chosen(EntropyBound(LINEAR, 0.0)) == ranking[:1]
    for count in (2, 3, 4):
        gamma = before[count - 2]
        assert chosen(EntropyBound(LINEAR, gamma * 1.001)) == sorted(ranking[:count])
        assert chosen(EntropyBound(LINEAR, gamma * 0.999)) == sorted(ranking[: count - 1])


def test_entropy_bound_0_takes_what_is_certain_along():
    laws = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [1.0, 0, 0, 0], [0.4, 0.6, 0, 0]])
    assert chosen(EntropyBound(LINEAR, 0.0), laws=laws) == [0, 2, 3]


def test_confidence_is_in_the_token_that_was_drawn():
    """A sure position whose unlikely token was drawn waits."""
    laws = torch.tensor([[0.9, 0.1, 0, 0], [0.6, 0.4, 0, 0]]).expand(400, 2, 4)
    noisy = torch.ones(400, 2, dtype=torch.bool)
    canvas = Canvas(torch.full((400, 2), MASK), noisy, ~noisy)
    logits = laws.reshape(-1, 4).log()
    t, s = torch.ones(400).double(), torch.full((400,), 0.5).double()
    new = TopConfidence(LINEAR)(
        canvas, Prediction(logits, noisy, canvas), t, s, Rng.from_seed(0, 400)
    )
    decided = (~new.noisy).long().argmax(1)
    what = new.tokens.gather(1, decided[:, None])[:, 0]
    pairs = set(zip(decided.tolist(), what.tolist(), strict=True))
    assert pairs == {(0, 0), (1, 0), (1, 1)}  # token 1 at place 0 loses against anything


def test_klass_waits_until_a_sure_prediction_has_stopped_moving():
    step = Klass(LINEAR, level=0.6, eps=0.01, patience=2)
    sure, other = torch.tensor([0.9, 0.05, 0.05, 0]), torch.tensor([0.7, 0.2, 0.1, 0])
    doubt = torch.tensor([0.4, 0.3, 0.3, 0])

    def run(first: list[torch.Tensor]) -> int:
        """The step at which place 0 is decided, if place 1 always leads the share."""
        canvas = row([True] * 8)
        rng = Rng.from_seed(0)
        for number in range(4):
            laws = torch.stack([first[number], *[doubt] * 7])
            laws[number + 1] = torch.tensor([0.99, 0.01, 0, 0])  # the share's
            where = canvas.noisy
            t, s = (torch.tensor([1 - (number + k) / 8]).double() for k in (0, 1))
            logits = laws.log()[where[0]]
            canvas = step(canvas, Prediction(logits, where, canvas), t, s, rng.fold(number))
            if not bool(canvas.noisy[0, 0]):
                return number
        return -1

    assert run([sure] * 4) == 2  # two comparisons later
    assert run([sure, other, other, other]) == 3  # moved once, then calm twice
    assert run([sure, other, sure, other]) == -1  # moving
    assert run([doubt] * 4) == -1  # calm, not sure


def test_left_to_right_asks_for_the_leftmost():
    canvas = row([False, True, True, False, True])
    t, s = torch.ones(1).double(), torch.full((1,), 1 / 3).double()
    where = LeftToRight(LINEAR).wanted(canvas, t, s, Rng.from_seed(0))
    assert where.tolist() == [[False, True, True, False, False]]


def test_random_order_asks_everywhere_equally_often():
    noisy = torch.tensor([[True, False, True, True]]).expand(9000, 4)
    canvas = Canvas(torch.where(noisy, MASK, 0), noisy, torch.zeros_like(noisy))
    t, s = torch.ones(9000).double(), torch.full((9000,), 2 / 3).double()
    for step in (RandomOrder(LINEAR), FirstHitting(LINEAR)):
        share = step.wanted(canvas, t, s, Rng.from_seed(0, 9000)).double().mean(0)
        torch.testing.assert_close(share, torch.tensor([1, 0, 1, 1]) / 3.0, rtol=0, atol=0.02,
                                   check_dtype=False)  # fmt: skip


def test_first_hitting_times_are_those_of_the_process():
    """With n tokens noisy at t, the next is revealed at the largest of n uniform noise rates."""
    for schedule in (LINEAR, CosineMask()):
        noisy = torch.ones(20000, 3, dtype=torch.bool)
        canvas = Canvas(torch.full((20000, 3), MASK), noisy, ~noisy)
        t, s, rng = (
            torch.ones(20000).double(),
            torch.zeros(20000).double() + 0.5,
            Rng.from_seed(0, 20000),
        )
        step = FirstHitting(schedule)
        where = step.wanted(canvas, t, s, rng)
        logits = torch.zeros(20000, 4)
        new = step(canvas, Prediction(logits, where, canvas), t, s, rng)
        rate = 1 - schedule.alpha(new.memory["time"][:, 0])
        for power in (1, 2):  # moments of the largest of three: 3 / 4, 3 / 5
            assert float((rate**power).mean()) == pytest.approx(3 / (3 + power), abs=0.006)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Threshold(LINEAR, 0), r"threshold level must be in \(0, 1\], got 0"),
        (lambda: Threshold(LINEAR, 1.2), r"threshold level must be in \(0, 1\], got 1.2"),
        (lambda: Factor(LINEAR, 0), "factor must be positive, got 0"),
        (lambda: EntropyBound(LINEAR, -1), "gamma must be 0 or more, got -1; in nats"),
        (lambda: Klass(LINEAR, level=2), r"KLASS level must be in \(0, 1\], got 2"),
        (lambda: Klass(LINEAR, eps=0), "KLASS eps must be positive, got 0"),
        (lambda: Klass(LINEAR, patience=0), "KLASS patience must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_a_rule_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_position_with_the_lowest_score_there_is_comes_before_what_is_not_asked():
    """Where all tokens are equally likely, no margin leads: its log odds are -inf."""
    among = torch.tensor([[False, True, False, True]])
    chosen = highest(torch.full((1, 4), -torch.inf), among, torch.tensor([2]))
    assert torch.equal(chosen, among)
