import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from reference import exact_k_loss
from worlds import MASK, World, batch_of, exact_bound

from sfumato.denoisers.full import Full, autoregressive
from sfumato.errors import ConfigError
from sfumato.models import DiffusionTransformer, TransformerConfig
from sfumato.noise.corruption import Hybrid, Masked, Uniform
from sfumato.noise.schedules import Clipped, CosineAlpha, CosineMask, Linear, LogLinear, Power
from sfumato.objectives.bound import Bound
from sfumato.objectives.masked import MaskedDiffusion
from sfumato.objectives.next_token import NextToken
from sfumato.objectives.selection import Bernoulli, Draw, ExactK
from sfumato.objectives.times import Independent, Stratified, Systematic
from sfumato.objectives.weights import BoundWeight, Cart, ClippedWeight, ConstantWeight
from sfumato.rng import Rng
from sfumato.types import Batch

WORLD = World.random()
ROWS = 4000
SCHEDULES = [Linear(), CosineMask(), CosineAlpha(), LogLinear(1e-6), Power(), Power(0.5)]
TIMES = [Independent(), Stratified(ROWS), Systematic(ROWS)]
RUN = Rng.from_seed(0)


def mean_and_error(loss) -> tuple[float, float]:
    """Nats per text and its standard error, which is too large where rows are spread out."""
    rows = loss.nll.double().sum(1)
    rows = rows.view(-1, ROWS).mean(0)  # a row and its complement are one draw
    return float(rows.mean()), float(rows.std() / math.sqrt(ROWS))


def objectives(schedule, times):
    yield MaskedDiffusion(MASK, times, Bernoulli(schedule))
    yield MaskedDiffusion(MASK, times, Bernoulli(schedule), complementary=True)
    for noise in (Masked, Uniform, Hybrid):
        if noise is not Hybrid or schedule != Power(0.5):  # half a nat below t = 1 / 4000
            yield Bound(noise(4, MASK, schedule), times)


def corruption_of(objective):
    return objective.corruption if isinstance(objective, Bound) else Masked(4, MASK)


# --- known answers ---


@pytest.mark.parametrize("times", TIMES, ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_uniform_predictor_reads_ln_v(schedule, times):
    """Whatever the text: the perfect denoiser of texts that are all equally likely."""
    flat = WORLD.uniform()
    batch = batch_of(torch.tensor([[0, 2, 2]]).expand(ROWS, 3))
    for objective in objectives(schedule, times):
        loss = objective(flat.denoiser(corruption_of(objective)), batch, RUN)
        mean, error = mean_and_error(loss)
        assert abs(mean - 3 * math.log(3)) < 4 * error + 1e-5, objective


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("times", TIMES, ids=repr)
def test_a_uniform_predictor_reads_ln_v_in_every_row_of_exact_k(times, complementary):
    objective = MaskedDiffusion(MASK, times, ExactK(), complementary=complementary)
    loss = objective(WORLD.uniform().denoiser(Masked(4, MASK)), batch_of(WORLD.sample(99)), RUN)
    torch.testing.assert_close(loss.nll.sum(1), torch.full_like(loss.nll[:, 0], 3 * math.log(3)))
    assert float(loss.value.detach()) == pytest.approx(math.log(3))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_the_bound_of_the_perfect_denoiser_is_the_entropy(schedule):
    """By the training objectives themselves, within 4 standard errors."""
    batch = batch_of(WORLD.sample(ROWS))
    for objective in objectives(schedule, Stratified(ROWS)):
        loss = objective(WORLD.denoiser(corruption_of(objective)), batch, RUN)
        mean, error = mean_and_error(loss)
        assert abs(mean - WORLD.entropy) < 4 * error, objective
        if not getattr(objective, "complementary", False):
            assert error < 0.3  # it says something


@pytest.mark.parametrize("complementary", [False, True])
@pytest.mark.parametrize("schedule", [Linear(), CosineMask()], ids=repr)
def test_every_masked_objective_has_the_same_mean_for_a_wrong_denoiser(schedule, complementary):
    """The exact integral over all noisings; the text is one, so that only noisings vary."""
    one = WORLD.certain(torch.tensor([1, 0, 2]))
    wrong = WORLD.denoiser(Masked(4, MASK), error=1.0)
    exact = exact_bound(one, Masked(4, MASK), lambda x, t: wrong(x, t).log_softmax(-1))
    batch = batch_of(torch.tensor([[1, 0, 2]]).expand(ROWS, 3))
    for selection in (ExactK(schedule=schedule), Bernoulli(schedule)):
        objective = MaskedDiffusion(MASK, Systematic(ROWS), selection, complementary=complementary)
        mean, error = mean_and_error(objective(wrong, batch, RUN))
        assert abs(mean - exact) < 4 * error


def test_exact_k_varies_less_than_independent_masking():
    batch = batch_of(WORLD.sample(ROWS))
    errors = [
        mean_and_error(MaskedDiffusion(MASK, Systematic(ROWS), selection)(
            WORLD.denoiser(Masked(4, MASK)), batch, RUN
        ))[1]
        for selection in (ExactK(), Bernoulli())
    ]  # fmt: skip
    assert errors[0] < 0.8 * errors[1]


# --- a denoiser that notes what it is asked, and answers from a table ---


@dataclass
class Fixed:
    logits: torch.Tensor  # [B, L, V]
    asked: dict = field(default_factory=dict)

    def score(self, tokens, t, where, targets, weights, *, segments=None, integrand=None):
        self.asked = dict(tokens=tokens, t=t, where=where, weights=weights, segments=segments)  # noqa: C408
        logits = self.logits.repeat(len(tokens) // len(self.logits), 1, 1)[where]
        if integrand is None:
            nll = -logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
            correct = logits.argmax(-1) == targets
        else:
            nll, correct = integrand(logits, slice(0, len(targets)))
        return (weights * nll).sum(), nll.detach(), correct


def page(rows: int = 6, length: int = 9, seed: int = 0) -> Batch:
    """Rows of 5 tokens with prompts, padding, two documents, and one with nothing to learn."""
    u = Rng.from_seed(seed, rows).uniform(length, 2)
    trainable = u[..., 1] < 0.7
    trainable[0], trainable[1] = True, False
    segments = torch.zeros(rows, length, dtype=torch.int64)
    segments[2, 4:] = 1
    return Batch((5 * u[..., 0]).long(), trainable, segments, torch.arange(rows) + 10)


def table(batch: Batch, vocab: int = 6) -> Fixed:
    draws = Rng.from_seed(7, len(batch.tokens)).uniform(batch.tokens.shape[1], vocab)
    logits = (4 * draws).float()
    logits[..., 5] = -torch.inf
    return Fixed(logits.requires_grad_())


ALL = [
    MaskedDiffusion(5, Systematic(6)),
    MaskedDiffusion(5, Systematic(6), complementary=True),
    MaskedDiffusion(5, Stratified(6), Bernoulli(CosineAlpha())),
    MaskedDiffusion(5, Independent(), ExactK(low=0.3, high=0.8), ClippedWeight()),
    MaskedDiffusion(5, Independent(), weight=ConstantWeight()),
    MaskedDiffusion(5, Independent(), weight=Cart()),
    Bound(Masked(6, 5), Systematic(6)),
    Bound(Uniform(6, 5), Systematic(6)),
    Bound(Hybrid(6, 5, CosineMask()), Stratified(6)),
    NextToken(),
]


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_only_trainable_tokens_are_corrupted_and_counted(objective):
    batch = page()
    denoiser = table(batch)
    loss = objective(denoiser, batch, RUN)
    times = len(loss.nll) // len(batch.tokens)
    trainable = batch.trainable.repeat(times, 1)
    seen = denoiser.asked["tokens"]
    assert torch.equal(seen[~trainable], batch.tokens.repeat(times, 1)[~trainable])
    assert not bool((denoiser.asked["where"] & ~trainable).any())
    assert bool((loss.nll[~trainable] == 0).all())
    assert int(loss.count) == int(trainable.sum())
    assert torch.equal(denoiser.asked["segments"], batch.segments.repeat(times, 1))


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_a_loss_is_finite_positive_and_has_a_gradient(objective):
    batch = page()
    denoiser = table(batch)
    loss = objective(denoiser, batch, RUN)
    assert float(loss.value.detach()) > 0
    assert bool((loss.nll >= 0).all())
    assert bool(loss.nll.isfinite().all())
    loss.value.backward()
    slope = denoiser.logits.grad
    assert bool(slope.isfinite().all())
    assert float(slope.abs().sum()) > 0
    assert not loss.nll.requires_grad


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_a_loss_by_parts_is_the_loss_of_the_whole(objective):
    """Workers, ranks and accumulation: any split of the global batch, in any order."""
    batch = page()
    denoiser = table(batch)
    whole = objective(denoiser, batch, RUN)
    total = torch.zeros(())
    for rows in (torch.tensor([4]), torch.tensor([5, 0, 2]), torch.tensor([1, 3])):
        part = Batch(*(values[rows] for values in vars(batch).values()))
        loss = objective(Fixed(denoiser.logits[rows]), part, RUN)
        total = total + loss.value * loss.count
        both = torch.cat([rows + k * 6 for k in range(len(whole.nll) // 6)])
        assert torch.equal(loss.nll, whole.nll[both])
    torch.testing.assert_close(total / whole.count, whole.value)


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_nothing_to_learn_costs_nothing(objective):
    batch = page()
    batch = replace(batch, trainable=torch.zeros_like(batch.trainable))
    denoiser = table(batch)
    loss = objective(denoiser, batch, RUN)
    assert float(loss.value.detach()) == 0
    assert int(loss.count) == 0
    loss.value.backward()
    assert float(denoiser.logits.grad.abs().sum()) == 0


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_an_objective_prints_as_it_is_made(objective):
    assert eval(repr(objective)) == objective


@pytest.mark.parametrize("objective", [ALL[0], ALL[2], ALL[6]], ids=repr)
def test_the_value_is_the_bound_per_trainable_token(objective):
    loss = objective(table(page()), page(), RUN)
    torch.testing.assert_close(loss.value.detach(), (loss.nll.sum() / loss.count))


def test_exact_k_equals_the_loop_over_rows_and_tokens():
    batch = page()
    denoiser = table(batch)
    loss = MaskedDiffusion(5, Systematic(6))(denoiser, batch, RUN)
    noisy = denoiser.asked["tokens"] == 5
    logits = denoiser.logits.detach().double().numpy()
    wanted = exact_k_loss(logits, batch.tokens.numpy(), noisy.numpy(), batch.trainable.numpy())
    assert float(loss.value.detach()) == pytest.approx(wanted, rel=1e-5)


def test_the_network_is_told_the_time_of_its_noise():
    batch = page()
    denoiser = table(batch)
    for objective in ALL[:9]:
        objective(denoiser, batch, RUN)
        t = denoiser.asked["t"]
        assert t.dtype == torch.float32
        if isinstance(objective, Bound) or isinstance(objective.selection, Bernoulli):
            assert torch.equal(t, objective.times(batch.slots, RUN.fold(0)).float())
        else:
            noisy = denoiser.asked["where"].sum(1)
            share = noisy / batch.trainable.sum(1).clamp_min(1).repeat(len(t) // 6)
            torch.testing.assert_close(t, share.float())


def test_correct_and_corrupted_are_counted():
    batch = page()
    denoiser = table(batch)
    for objective in ALL[:9]:
        loss = objective(denoiser, batch, RUN)
        seen = denoiser.asked["tokens"]
        clean = batch.tokens.repeat(len(seen) // 6, 1)
        noisy = seen != clean
        best = denoiser.logits.argmax(-1).repeat(len(seen) // 6, 1)
        assert int(loss.corrupted) == int(noisy.sum())
        assert int(loss.correct) == int((best == clean)[noisy].sum())


def test_corruption_depends_on_the_slot_and_the_seed():
    batch, denoiser = page(), table(page())
    for objective in ALL[:9]:
        objective(denoiser, batch, RUN)
        seen = denoiser.asked["tokens"]
        objective(denoiser, replace(batch, slots=batch.slots + 6), RUN)
        assert not torch.equal(denoiser.asked["tokens"], seen)
        objective(denoiser, batch, Rng.from_seed(1))
        assert not torch.equal(denoiser.asked["tokens"], seen)


# --- when ---


@pytest.mark.parametrize("times", TIMES, ids=repr)
def test_each_time_is_uniform_by_itself(times):
    u = times(torch.tensor([3]), Rng.from_seed(0, 5000))  # of 5000 runs
    assert u.dtype == torch.float64
    counts = torch.histc(u, bins=50, min=0, max=1)
    assert bool(((counts - 100).abs() < 5 * math.sqrt(100)).all())


@pytest.mark.parametrize("times", [Independent(), Stratified(8), Systematic(8)], ids=repr)
def test_times_are_uniform_over_many_global_batches(times):
    u = times(torch.arange(8000), RUN)
    assert bool(((u > 0) & (u < 1)).all())
    counts = torch.histc(u, bins=50, min=0, max=1)
    assert bool(((counts - 160).abs() < 5 * math.sqrt(160)).all())


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 100])
def test_stratified_and_systematic_times_fill_every_part_once(size):
    for number in range(3):
        slots = torch.arange(number * size, (number + 1) * size)
        stratified = Stratified(size)(slots, RUN)
        systematic = Systematic(size)(slots, RUN)
        for u in (stratified, systematic):
            assert (u * size).floor().sort().values.tolist() == list(range(size))
        gaps = systematic.sort().values.diff()
        torch.testing.assert_close(gaps, torch.full_like(gaps, 1 / size))


def test_neighbouring_slots_are_spread_out():
    u = Systematic(64)(torch.arange(64), RUN).view(16, 4)
    assert bool(((u.amax(1) - u.amin(1)) > 0.4).all())


# --- which ---


def test_exact_k_masks_k_of_n_evenly():
    n = 7
    batch = batch_of(
        torch.zeros(7000, 10, dtype=torch.int64), torch.arange(10).expand(7000, 10) < n
    )
    u = (torch.arange(7000) + 0.5) / 7000
    draw = ExactK()(batch, u, Rng.from_seed(0, 7000))
    k = draw.noisy.sum(1)
    assert torch.bincount(k, minlength=8).tolist() == [0] + [1000] * 7
    torch.testing.assert_close(draw.weight, n / k.double())
    torch.testing.assert_close(draw.t, k.double() / n)
    share = draw.noisy.double().mean(0)
    assert bool(((share[:7] - 4 / 7).abs() < 0.03).all())
    assert float(share[7:].sum()) == 0


def test_exact_k_keeps_to_its_interval():
    batch = batch_of(torch.zeros(500, 20, dtype=torch.int64))
    draw = ExactK(0.3, 0.8)(batch, (torch.arange(500) + 0.5) / 500, Rng.from_seed(0, 500))
    k = draw.noisy.sum(1)
    assert (int(k.min()), int(k.max())) == (7, 16)


@pytest.mark.parametrize("schedule", [CosineMask(), LogLinear(), Clipped()], ids=repr)
def test_exact_k_tells_the_time_of_its_rate(schedule):
    batch = batch_of(torch.zeros(50, 8, dtype=torch.int64))
    selection = ExactK(schedule=schedule)
    draw = selection(batch, (torch.arange(50) + 0.5) / 50, Rng.from_seed(0, 50))
    for each in (draw, selection.complement(batch, draw)):
        assert bool(((each.t >= 0) & (each.t <= 1)).all())
        rate = each.noisy.double().mean(1)
        reachable = (rate >= schedule.low) & (rate <= schedule.high)
        torch.testing.assert_close((1 - schedule.alpha(each.t))[reachable], rate[reachable])


def test_bernoulli_masks_at_the_schedule_s_rate():
    batch = batch_of(torch.zeros(20000, 3, dtype=torch.int64))
    for schedule in (Linear(), CosineAlpha()):
        u = torch.full((20000,), 0.3).double()
        draw = Bernoulli(schedule)(batch, u, Rng.from_seed(0, 20000))
        alpha = float(schedule.alpha(u[0]))
        assert float(draw.noisy.double().mean()) == pytest.approx(1 - alpha, abs=0.01)
        assert float(draw.weight[0]) == pytest.approx(-float(schedule.dalpha(u[0])) / (1 - alpha))


@pytest.mark.parametrize("selection", [ExactK(), Bernoulli()], ids=repr)
def test_complements_cover_every_trainable_token(selection):
    batch = page(200)
    draw = selection(batch, Independent()(batch.slots, RUN), Rng.from_seed(0, 200))
    other = selection.complement(batch, draw)
    assert torch.equal(draw.noisy | other.noisy, batch.trainable)
    everything = (draw.noisy == batch.trainable).all(1)
    assert not bool((draw.noisy & other.noisy)[~everything].any())


# --- how much ---


def some_draw() -> tuple[Draw, Batch]:
    batch = page()
    return ExactK()(batch, Independent()(batch.slots, RUN), Rng.from_seed(0, 6)), batch


def test_weights_are_their_formulas():
    draw, batch = some_draw()
    assert torch.equal(BoundWeight()(draw, batch), draw.weight[:, None])
    assert torch.equal(ConstantWeight()(draw, batch), torch.ones(6, 1).double())
    clipped = ClippedWeight(1.5)(draw, batch)
    assert torch.equal(clipped, draw.weight.clamp_max(1.5)[:, None])
    assert float(clipped.max()) == 1.5 > float(clipped.min())


def test_cart_weighs_by_visible_neighbours_of_the_same_document():
    draw, batch = some_draw()
    weight = Cart(0.4)(draw, batch)
    for row in range(6):
        for place in range(9):
            wanted = 0.0
            for other in range(9):
                same = batch.segments[row, place] == batch.segments[row, other]
                if other != place and same and not draw.noisy[row, other]:
                    wanted += 0.5 * 0.4 * 0.6 ** (abs(place - other) - 1)
            assert float(weight[row, place]) == pytest.approx(wanted, abs=1e-6)


def test_the_weight_changes_the_value_and_not_the_bound_that_is_reported():
    batch = page()
    plain, cart = (
        MaskedDiffusion(5, Systematic(6), weight=weight)(table(batch), batch, RUN)
        for weight in (BoundWeight(), Cart())
    )
    assert torch.equal(plain.nll, cart.nll)
    assert not torch.equal(plain.value, cart.value)


# --- through the network ---


def network(**options) -> DiffusionTransformer:
    config = TransformerConfig(
        vocab_size=6, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, **options
    )
    return DiffusionTransformer(config)


@pytest.mark.parametrize("objective", ALL, ids=repr)
def test_a_network_that_knows_nothing_reads_ln_v(objective):
    """All logits 0: ln 5 a token for exact-k and next tokens; the mask is not one of them."""
    model = network()
    torch.nn.init.zeros_(model.embed.weight)
    batch = page()
    denoiser = autoregressive(model, 5) if isinstance(objective, NextToken) else Full(model, 5)
    loss = objective(denoiser, batch, RUN)
    if objective in (ALL[0], ALL[1], ALL[9]):
        per_token = loss.nll.sum() / loss.count
        assert float(per_token) == pytest.approx(math.log(5), rel=1e-5)
    loss.value.backward()
    assert bool(model.embed.weight.grad.isfinite().all())


@pytest.mark.parametrize("objective", ALL[:9], ids=repr)
def test_a_network_with_nothing_to_learn_has_no_gradient(objective):
    model, batch = network(), page()
    batch = replace(batch, trainable=torch.zeros_like(batch.trainable))
    loss = objective(Full(model, 5), batch, RUN)
    loss.value.backward()
    assert float(loss.value.detach()) == 0
    grads = [p.grad.abs().sum() for p in model.parameters() if p.grad is not None]
    assert float(sum(grads)) == 0


# --- what users get wrong ---


class Alone:
    """A selection that knows nothing of what it leaves out."""

    whole = True

    def __call__(self, batch, u, rng):
        raise AssertionError("refused before it is asked")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ExactK(0.5, 0.5),
            r"a noise interval needs 0 <= low < high <= 1, got \[0.5, 0.5\]",
        ),
        (lambda: ClippedWeight(0), "weight limit must be positive, got 0"),
        (lambda: Cart(1), "CART p must be between 0 and 1, got 1"),
        (
            lambda: MaskedDiffusion(5, Independent(), Alone(), complementary=True),
            "complementary needs a selection with a complement, as ExactK or Bernoulli; Alone",
        ),
    ],
)
def test_what_cannot_be_an_objective_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
