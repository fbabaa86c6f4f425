from dataclasses import dataclass, field, replace

import pytest
import torch
from worlds import MASK, Tabular, World

from sfumato.decoding.filters import Forced, Repetition, Suppress, Temperature
from sfumato.decoding.loops import denoise, generate
from sfumato.decoding.page import blank
from sfumato.decoding.remask import Cap, Remasking, Wino
from sfumato.decoding.times import even_times, one_each, shared_times
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
)
from sfumato.errors import ConfigError
from sfumato.noise.corruption import Hybrid, Masked, Uniform
from sfumato.noise.schedules import CosineMask, Linear
from sfumato.rng import Rng
from sfumato.types import Canvas

WORLD = World.random(length=4)
MASKED = Masked(4, MASK)
LINEAR = Linear()
RULES = [
    Ancestral(MASKED),
    FirstHitting(LINEAR),
    RandomOrder(LINEAR),
    LeftToRight(LINEAR),
    TopConfidence(LINEAR),
    TopProbability(LINEAR),
    Margin(LINEAR),
    LowEntropy(LINEAR),
    Threshold(LINEAR),
    Factor(LINEAR),
    EntropyBound(LINEAR),
    Klass(LINEAR),
    Remasking(LINEAR, MASK, Cap(0.2)),
    Remasking(LINEAR, MASK, Cap(0.2), by_confidence=True),
    Wino(LINEAR, MASK),
]


@dataclass(frozen=True)
class Counted:
    """A denoiser that notes what it is asked."""

    denoiser: Tabular
    asked: list = field(default_factory=list)

    def __call__(self, tokens, t, where=None, *, segments=None):
        self.asked.append((tokens.clone(), t.clone(), where.clone(), self.denoiser))
        return self.denoiser(tokens, t, where)

    def given(self, left=None, right=None):
        return replace(self, denoiser=self.denoiser.given(left, right))

    def leave_one_out(self, tokens, t, where):
        self.asked.append((tokens.clone(), t.clone(), where.clone(), self.denoiser))
        return self.denoiser.leave_one_out(tokens, t, where)


def empty(rows: int, corruption=MASKED, length: int = 4, seed: int = 0) -> Canvas:
    nothing = torch.zeros(rows, length, dtype=torch.bool)
    return blank(corruption, nothing.long(), nothing, Rng.from_seed(seed, rows).fold(99))


def written(step, canvas, *, seed=0, corruption=MASKED, **options) -> Canvas:
    rng = Rng.from_seed(seed, len(canvas.tokens))
    *_, last = generate(WORLD.denoiser(corruption), canvas, step, rng, **options)
    return last


def rows_of(canvas: Canvas, rows: torch.Tensor) -> Canvas:
    return Canvas(canvas.tokens[rows], canvas.noisy[rows], canvas.fixed[rows])


# --- blank canvases and times ---


def test_a_blank_canvas_is_noise_around_given_text():
    template = torch.tensor([[0, 1, 2, 0]])
    fixed = torch.tensor([[True, False, False, True]])
    canvas = blank(MASKED, template, fixed, Rng.from_seed(0))
    assert canvas.tokens.tolist() == [[0, MASK, MASK, 0]]
    assert torch.equal(canvas.noisy, ~fixed)
    for corruption in (Uniform(4, MASK), Hybrid(4, MASK)):
        canvas = blank(corruption, template, fixed, Rng.from_seed(0))
        assert torch.equal(canvas.tokens[fixed], template[fixed])


def test_even_times_fall_from_1_to_0():
    assert even_times(4).tolist() == [1, 0.75, 0.5, 0.25, 0]


def test_one_each_gives_each_row_a_step_for_each_noisy_position():
    noisy = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    wanted = torch.tensor([[1, 2 / 3, 1 / 3, 0], [1, 0, 0, 0], [1, 0, 0, 0]]).double()
    torch.testing.assert_close(one_each(noisy), wanted)


# --- the stream of pages ---


@pytest.mark.parametrize("block", [None, 1, 3, 4, 9])
@pytest.mark.parametrize("step", RULES, ids=repr)
def test_every_rule_ends_with_text_that_keeps_what_was_given(step, block):
    template = WORLD.sample(5)
    fixed = torch.zeros_like(template, dtype=torch.bool)
    fixed[1, :2] = fixed[2, 3] = fixed[3] = fixed[4, 1:3] = True
    canvas = blank(MASKED, template, fixed, Rng.from_seed(0, 5))
    rng = Rng.from_seed(1, 5)
    for page in generate(WORLD.denoiser(MASKED), canvas, step, rng, num_steps=6, block=block):
        assert torch.equal(page.tokens[fixed], template[fixed])
        assert not bool((page.noisy & fixed).any())
        assert torch.equal(page.noisy, page.tokens == MASK)
    assert not bool(page.noisy.any())


@pytest.mark.parametrize("corruption", [Uniform(4, MASK), Hybrid(4, MASK)], ids=repr)
def test_other_noise_ends_with_text_that_keeps_what_was_given(corruption):
    template = WORLD.sample(3)
    fixed = torch.zeros_like(template, dtype=torch.bool)
    fixed[:, 1] = True
    canvas = blank(corruption, template, fixed, Rng.from_seed(0, 3))

    def denoiser(tokens, t, where):
        return torch.tensor([0.0, 0.0, 0.0, -torch.inf]).expand(int(where.sum()), 4)

    *_, last = denoise(denoiser, canvas, Ancestral(corruption), even_times(7), Rng.from_seed(0, 3))
    assert torch.equal(last.tokens[fixed], template[fixed])
    assert not bool(last.noisy.any())
    assert bool((last.tokens != MASK).all())


def test_there_is_a_page_for_every_step():
    canvas = empty(2)
    pages = list(generate(WORLD.denoiser(MASKED), canvas, RandomOrder(LINEAR), Rng.from_seed(0, 2)))
    assert [int(page.noisy.sum(1)[0]) for page in pages] == [3, 2, 1, 0]
    assert bool(canvas.noisy.all())  # and the first canvas is as it was


def test_it_stops_when_nothing_is_noisy():
    pages = list(denoise(
        WORLD.denoiser(MASKED), empty(1), Threshold(LINEAR, 0.01), even_times(50), Rng.from_seed(0)
    ))  # fmt: skip
    assert len(pages) == 1


def test_a_rule_that_reopens_goes_on_to_the_end():
    step = Remasking(LINEAR, MASK, Cap(0.2))
    pages = list(
        generate(WORLD.denoiser(MASKED), empty(3), step, Rng.from_seed(0, 3), num_steps=40)
    )
    assert len(pages) == 40
    noisy = torch.stack([page.noisy for page in pages])
    assert bool((noisy[1:] & ~noisy[:-1]).any())


def test_a_page_with_nothing_noisy_comes_back_once():
    text = WORLD.sample(2)
    done = torch.ones_like(text, dtype=torch.bool)
    canvas = blank(MASKED, text, done, Rng.from_seed(0, 2))
    for block in (None, 2):
        counted = Counted(WORLD.denoiser(MASKED))
        pages = list(generate(counted, canvas, Margin(LINEAR), Rng.from_seed(0, 2), block=block))
        assert len(pages) == 1
        assert torch.equal(pages[0].tokens, text)
        assert not counted.asked


def test_num_steps_are_shared_out_over_the_blocks():
    step = Remasking(LINEAR, MASK, Cap(0.1))  # takes every step
    pages = list(generate(
        WORLD.denoiser(MASKED), empty(1), step, Rng.from_seed(0), num_steps=7, block=2
    ))  # fmt: skip
    assert len(pages) == 7
    assert not bool(pages[3].noisy[:, :2].any())
    assert bool(pages[3].noisy[:, 2:].all())


# --- rows do not depend on each other ---


@pytest.mark.parametrize("options", [{}, {"num_steps": 9}, {"block": 2, "num_steps": 9}], ids=str)
@pytest.mark.parametrize("step", RULES, ids=repr)
def test_a_batch_equals_its_rows_one_by_one(step, options):
    template = WORLD.sample(6)
    fixed = torch.zeros_like(template, dtype=torch.bool)
    fixed[1, :2] = fixed[2, 3] = fixed[3] = fixed[4, 1:] = True
    canvas = blank(MASKED, template, fixed, Rng.from_seed(0, 6))
    together = written(step, canvas, **options).tokens
    for row in range(6):
        rows = torch.tensor([row])
        rng = Rng.for_rows(0, rows)
        *_, alone = generate(WORLD.denoiser(MASKED), rows_of(canvas, rows), step, rng, **options)
        assert torch.equal(alone.tokens[0], together[row])


def test_filters_see_no_logits_where_none_are_wanted():
    """Ancestral steps may want nothing; a filter that knows the vocabulary must not mind."""
    forced = [Forced(((1, 2),))]
    pages = generate(
        WORLD.denoiser(MASKED), empty(1), Ancestral(MASKED), Rng.from_seed(0), num_steps=50,
        filters=forced,
    )  # fmt: skip
    *_, last = pages
    assert last.tokens[0, 1] == 2


def test_the_same_seed_gives_the_same_text_and_another_does_not():
    for step in RULES:
        one = written(step, empty(40), seed=1).tokens
        assert torch.equal(written(step, empty(40), seed=1).tokens, one)
        assert not torch.equal(written(step, empty(40), seed=2).tokens, one)


# --- the network is asked as little as possible ---


def test_the_network_is_not_asked_when_nothing_is_wanted():
    counted = Counted(WORLD.denoiser(MASKED))
    pages = list(generate(
        counted, empty(1), Ancestral(MASKED), Rng.from_seed(3), num_steps=200
    ))  # fmt: skip
    assert len(counted.asked) <= 4 < len(pages)
    for tokens, _, where, _ in counted.asked:
        assert bool(where.any())
        assert bool((tokens[where] == MASK).all())


def test_rules_that_need_no_logits_ask_only_where_they_decide():
    for step in (RandomOrder(LINEAR), LeftToRight(LINEAR), FirstHitting(LINEAR)):
        counted = Counted(WORLD.denoiser(MASKED))
        list(generate(counted, empty(2), step, Rng.from_seed(0, 2)))
        assert [where.sum(1).tolist() for _, _, where, _ in counted.asked] == [[1, 1]] * 4


def test_the_network_is_told_the_time():
    counted = Counted(WORLD.denoiser(MASKED))
    list(generate(counted, empty(2), TopProbability(LINEAR), Rng.from_seed(0, 2), num_steps=4))
    assert [t.tolist() for _, t, _, _ in counted.asked] == [[x, x] for x in (1, 0.75, 0.5, 0.25)]
    assert counted.asked[0][1].dtype == torch.float32


@pytest.mark.parametrize("schedule", [LINEAR, CosineMask()], ids=repr)
@pytest.mark.parametrize("block", [None, 2])
def test_first_hitting_tells_when_the_very_position_is_revealed(schedule, block):
    """n noisy tokens become clean at n uniform noise rates, the largest first."""
    step, counted = FirstHitting(schedule), Counted(WORLD.denoiser(MASKED))
    list(generate(counted, empty(3000), step, Rng.from_seed(0, 3000), block=block))
    rates = 1 - schedule.alpha(torch.stack([t for _, t, _, _ in counted.asked]))
    size = block or 4
    falls = rates.view(-1, size, 3000).diff(dim=1)
    assert bool((falls < 0).all())
    wanted = torch.arange(size, 0, -1).repeat(4 // size) / (size + 1)
    torch.testing.assert_close(rates.mean(1), wanted, rtol=0, atol=0.02)


def test_first_hitting_remembers_the_time_that_it_told():
    counted = Counted(WORLD.denoiser(MASKED))
    step, rng = FirstHitting(LINEAR), Rng.from_seed(0, 2)
    pages = denoise(counted, empty(2), step, even_times(4), rng)
    for number, page in enumerate(pages):
        assert torch.equal(page.memory["time"][:, 0].float(), counted.asked[number][1])


# --- blocks ---


def test_blocks_are_written_from_the_left_and_see_what_is_done():
    counted = Counted(WORLD.denoiser(MASKED))
    *_, last = generate(
        counted, empty(2), LeftToRight(LINEAR), Rng.from_seed(0, 2), block=2, lookahead=False
    )
    _, _, _, first = counted.asked[0]
    assert first.left is None
    assert first.right is None
    _, _, _, second = counted.asked[-1]
    assert torch.equal(second.left, last.tokens[:, :2])
    assert second.right is None


def test_with_lookahead_a_block_sees_what_is_right_of_it():
    template = torch.tensor([[0, 0, 0, 2]])
    canvas = blank(MASKED, template, template == 2, Rng.from_seed(0))
    counted = Counted(WORLD.denoiser(MASKED))
    list(generate(counted, canvas, LeftToRight(LINEAR), Rng.from_seed(0), block=2))
    assert counted.asked[0][3].right.tolist() == [[MASK, 2]]
    assert counted.asked[-1][3].right is None


def test_blocks_that_are_given_are_seen_and_not_written():
    template = torch.tensor([[1, 0, 0, 0]])
    fixed = torch.tensor([[True, True, False, False]])
    canvas = blank(MASKED, template, fixed, Rng.from_seed(0))
    counted = Counted(WORLD.denoiser(MASKED))
    list(generate(counted, canvas, LeftToRight(LINEAR), Rng.from_seed(0), block=2))
    assert len(counted.asked) == 2
    assert counted.asked[0][3].left.tolist() == [[1, 0]]


def test_a_given_block_in_the_middle_is_seen_by_the_next():
    template = torch.tensor([[0, 2, 1, 0]])
    fixed = torch.tensor([[False, True, True, False]])
    canvas = blank(MASKED, template, fixed, Rng.from_seed(0))
    counted = Counted(WORLD.denoiser(MASKED))
    *_, last = generate(counted, canvas, LeftToRight(LINEAR), Rng.from_seed(0), block=1)
    assert torch.equal(counted.asked[-1][3].left, last.tokens[:, :3])
    assert last.tokens[0, 1:3].tolist() == [2, 1]


@pytest.mark.parametrize("lookahead", [True, False])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_an_exact_rule_is_exact_in_blocks(block, lookahead):
    last = written(RandomOrder(LINEAR), empty(4000), block=block, lookahead=lookahead)
    assert WORLD.distance(last.tokens) < 1.5 * WORLD.noise_floor(4000)


@pytest.mark.parametrize("corruption", [Uniform(4, MASK), Hybrid(4, MASK)], ids=repr)
def test_other_noise_is_refused_on_the_right_of_a_block(corruption):
    step, right = Ancestral(corruption), torch.tensor([[0, 0, 1, 1]]).bool()
    with pytest.raises(ConfigError, match=r"with noise other than masks .* use lookahead=False"):
        written(step, empty(1, corruption), corruption=corruption, block=2)
    canvas = blank(corruption, torch.ones(1, 4).long(), right.roll(-1), Rng.from_seed(0))
    with pytest.raises(ConfigError, match="use lookahead=False"):
        written(step, canvas, corruption=corruption, block=2)
    # all that is right of the only block to be written is given text
    canvas = blank(corruption, torch.ones(1, 4).long(), right, Rng.from_seed(0))
    last = written(step, canvas, corruption=corruption, block=2, num_steps=4)
    assert last.tokens[0, 2:].tolist() == [1, 1]
    assert not bool(last.noisy.any())


@pytest.mark.parametrize("corruption", [Uniform(4, MASK), Hybrid(4, MASK)], ids=repr)
def test_other_noise_is_exact_in_blocks_without_lookahead(corruption):
    last = written(
        Ancestral(corruption),
        empty(4000, corruption),
        corruption=corruption,
        block=2,
        num_steps=96,
        lookahead=False,
    )
    assert WORLD.distance(last.tokens) < 1.5 * WORLD.noise_floor(4000)


@pytest.mark.parametrize(
    "step", [RandomOrder(LINEAR), LowEntropy(LINEAR), Ancestral(MASKED)], ids=repr
)
def test_given_text_is_conditioned_on_exactly(step):
    template = torch.zeros(6000, 4, dtype=torch.int64)
    template[:, 2] = 1
    fixed = torch.zeros_like(template, dtype=torch.bool)
    fixed[:, 2] = True
    canvas = blank(MASKED, template, fixed, Rng.from_seed(0, 6000))
    last = written(step, canvas, num_steps=64)
    right = WORLD.texts[:, 2] == 1
    conditional = World(WORLD.texts, torch.where(right, WORLD.law, 0) / WORLD.law[right].sum())
    assert conditional.distance(last.tokens) < 1.6 * conditional.noise_floor(6000)


# --- filters ---


def test_filters_see_positions_of_the_page_in_every_block():
    forced = Forced(((1, 2), (3, 0)))
    for block in (None, 1, 2, 3):
        last = written(RandomOrder(LINEAR), empty(50), block=block, filters=[forced])
        assert last.tokens[:, [1, 3]].tolist() == [[2, 0]] * 50
        assert len(last.tokens[:, 0].unique()) == 3
        assert len(last.tokens[:, 2].unique()) == 3


def test_repetition_counts_what_other_blocks_show():
    flat = World.random(length=3).uniform()
    rng, canvas = Rng.from_seed(0, 50), empty(50, length=3)
    for block in (None, 1):
        *_, last = generate(
            flat.denoiser(MASKED), canvas, LeftToRight(LINEAR), rng,
            block=block, filters=[Repetition(100)],
        )  # fmt: skip
        assert last.tokens.sort(1).values.tolist() == [[0, 1, 2]] * 50


def test_suppressed_tokens_are_never_written():
    for step in RULES:
        for warmth in (0.0, 0.5):
            filters = [Suppress((1,)), Temperature(warmth)]
            last = written(step, empty(60), filters=filters, num_steps=8)
            assert not bool((last.tokens == 1).any())


@pytest.mark.parametrize("step", RULES, ids=repr)
def test_temperature_0_leaves_choices_of_places_to_what_the_model_believes(step):
    """Greedy decoding is slow where the model is unsure: it must not take its own word for sure."""
    rng = Rng.from_seed(0, 3)

    def pages(filters):
        return list(generate(WORLD.denoiser(MASKED), empty(3), step, rng, filters=filters))

    warm, greedy = pages([]), pages([Temperature(0)])
    assert torch.equal(warm[0].noisy, greedy[0].noisy) or isinstance(step, TopConfidence)
    if not step.exact:
        assert len(greedy) > 1


@pytest.mark.parametrize("order", [1, -1])
def test_a_filter_after_the_temperature_still_leaves_beliefs_unsharpened(order):
    class Looks(TopProbability):
        def choose(self, canvas, seen, t, s):
            kept.append(seen.logits)
            return super().choose(canvas, seen, t, s)

    kept = []
    written(Looks(LINEAR), empty(1), filters=[Temperature(0), Suppress((1,))][::order])
    wanted = WORLD.denoiser(MASKED)(empty(1).tokens, torch.ones(1))[0]
    wanted[:, 1] = -torch.inf
    torch.testing.assert_close(kept[0], wanted)


def test_what_sharpens_is_asked_only_where_a_token_is_drawn():
    class Looks(Temperature):
        def __call__(self, logits, canvas, where):
            seen.append((len(logits), int(where.sum())))
            return super().__call__(logits, canvas, where)

    seen = []
    written(TopProbability(LINEAR), empty(3), filters=[Looks(0.5)], num_steps=4)
    assert seen == [(3, 3)] * 4  # of 12, 9, 6 and 3 positions


def test_temperature_0_with_one_decision_a_step_is_greedy_decoding():
    last = written(LeftToRight(LINEAR), empty(20), filters=[Temperature(0)])
    tokens = torch.full((1, 4), MASK)
    for place in range(4):
        tokens[0, place] = WORLD.denoiser(MASKED)(tokens, torch.ones(1))[0, place].argmax()
    assert torch.equal(last.tokens, tokens.expand(20, 4))


# --- what users get wrong ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 0}, "block must be at least 1 position, got 0"),
        ({"block": -2}, "block must be at least 1 position, got -2"),
        ({"num_steps": 0}, "num_steps 0 is less than the 1 blocks"),
        ({"num_steps": 3, "block": 1}, "num_steps 3 is less than the 4 blocks of 1 to write"),
    ],
    ids=str,
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        written(RandomOrder(LINEAR), empty(1), **options)


def test_an_empty_canvas_is_refused():
    with pytest.raises(ConfigError, match="the canvas is empty"):
        written(RandomOrder(LINEAR), empty(2, length=0))


def test_no_steps_are_refused():
    with pytest.raises(ConfigError, match="num_steps must be at least 1, got 0"):
        even_times(0)


def test_steps_are_shared_out_over_the_blocks_that_a_row_writes():
    noisy = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 1]]).bool()
    shares = [[int((row > 0).sum()) for row in shared_times(8, noisy, n)] for n in range(4)]
    assert [pair[1] for pair in shares[:2]] == [4, 4]
    assert [trio[0] for trio in shares[1:]] == [3, 3, 2]
    assert shares[3][2] == 8
    one = shared_times(8, noisy[1:2], 1)[0]
    assert torch.equal(shared_times(8, noisy, 1)[1][: len(one)], one)  # as alone
    for number in range(4):
        times = shared_times(8, noisy, number)
        assert bool((times[:, 0] == 1).all() and (times[:, -1] == 0).all())
