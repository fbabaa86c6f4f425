"""One step: that nothing depends on how its global batch is cut up, and which rows it reads."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from sfumato.denoisers.full import Full
from sfumato.errors import ConfigError, TrainingError
from sfumato.models import DiffusionTransformer, TransformerConfig
from sfumato.objectives.masked import MaskedDiffusion
from sfumato.objectives.times import Systematic
from sfumato.rng import Rng
from sfumato.train.config import TrainOptions
from sfumato.train.feed import MicroBatches, Order
from sfumato.train.optim import build_optimizers
from sfumato.train.state import State
from sfumato.train.step import Scored, Stepper
from sfumato.train.world import World

ALONE = World(torch.device("cpu"))
V, MASK = 20, 0


class Unequal:
    """Rows of random tokens, of which row i has 1 + 3 i trainable ones."""

    def __len__(self) -> int:
        return 5

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(0).integers(1, V, (5, 16))
        trainable = np.arange(16) < 1 + 3 * np.arange(5)[:, None]
        segments = np.zeros((5, 16), np.int64)
        return {
            "tokens": draw[indices],
            "trainable": trainable[indices],
            "segments": segments[indices],
            "row": indices,
        }


def stepper(complementary: bool = False, **options) -> Stepper:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = DiffusionTransformer(TransformerConfig(vocab_size=V, mask_token_id=MASK, **shape))
    options = TrainOptions(batch_size=8, max_steps=100, warmup_steps=1, **options)
    return Stepper(
        Scored(model, Full(model, MASK)),
        MaskedDiffusion(MASK, Systematic(8), complementary=complementary),
        State(model, build_optimizers(model, options, torch.float32)),
        options,
        seed=7,
        dtype=torch.float32,
        world=ALONE,
    )


def feed(parts: int = 1, world: World = ALONE) -> MicroBatches:
    return MicroBatches(Unequal(), Order(5, seed=7), 8, parts, world)


def three_steps(taker: Stepper, parts: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    losses = [taker(n, b).loss for n, b in enumerate(feed(parts).steps(0, 3, num_workers=0))]
    return {name: p.detach().clone() for name, p in taker.state.model.named_parameters()}, losses


# --- one step ---


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("complementary", [False, True])
def test_accumulation_changes_neither_loss_nor_weights(optimizer, complementary):
    options = {"optimizer": optimizer, "learning_rate": 0.01, "complementary": complementary}
    whole, losses = three_steps(stepper(**options), parts=1)
    for parts in (2, 8):
        weights, same = three_steps(stepper(**options), parts)
        assert same == pytest.approx(losses, rel=1e-5)
        for name, value in whole.items():
            assert_close(weights[name], value, rtol=1e-3, atol=2e-4, msg=f"{name}, {parts} parts")


def test_the_gradient_is_that_of_the_loss_of_all_rows_together():
    taker = stepper(max_grad_norm=0.0, learning_rate=1e-9)
    (batches,) = list(feed(parts=1).steps(0, 1, 0))
    loss = taker.objective(taker.scored.denoiser, batches[0], Rng.from_seed(7))
    loss.value.backward()
    expected = {n: p.grad.clone() for n, p in taker.state.model.named_parameters()}
    taker.state.model.zero_grad()
    norm = torch.stack([g.norm() for g in expected.values()]).norm()
    (parts,) = list(feed(parts=4).steps(0, 1, 0))
    seen = {}
    for name, param in taker.state.model.named_parameters():
        param.register_post_accumulate_grad_hook(lambda p, name=name: seen.update({name: p.grad}))
    totals = taker(0, parts)
    assert totals.loss == pytest.approx(loss.value.item(), rel=1e-5)
    assert totals.count == float(loss.count) != 8 * 16
    assert totals.grad_norm == pytest.approx(float(norm), rel=1e-4)
    for name, gradient in seen.items():
        assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_clipping_shortens_the_gradient_and_reports_it_unclipped():
    (batches,) = list(feed().steps(0, 1, 0))
    plain, clipped = stepper(max_grad_norm=0.0), stepper(max_grad_norm=0.01)
    norms = {}
    for taker in (plain, clipped):
        kept = taker.state.optimizers[0].step
        taker.state.optimizers[0].step = lambda kept=kept, taker=taker: (
            norms.update(
                {
                    id(taker): torch.nn.utils.get_total_norm(
                        [p.grad for p in taker.state.model.parameters()]
                    )
                }
            ),
            kept(),
        )
    assert plain(0, batches).grad_norm == pytest.approx(clipped(0, batches).grad_norm)
    assert float(norms[id(clipped)]) == pytest.approx(0.01, rel=1e-5)
    assert float(norms[id(plain)]) > 0.1


def test_a_loss_that_is_not_finite_stops_before_any_weight_moves():
    taker = stepper()
    (batches,) = list(feed(parts=2).steps(3, 4, 0))
    with torch.no_grad():
        taker.state.model.embed.weight[int(batches[0].tokens[1, 0])] = torch.nan
    before = {n: p.detach().clone() for n, p in taker.state.model.named_parameters()}
    with pytest.raises(TrainingError, match=r"loss nan.*at step 4 \(rows in slots \[.*gradient of"):
        taker(3, batches)
    for name, param in taker.state.model.named_parameters():
        assert_close(param.detach(), before[name], equal_nan=True)


# --- which rows ---


def test_every_pass_reads_every_row_once_in_another_order():
    order = Order(num_rows=50, seed=1)
    passes = order.rows(np.arange(200)).reshape(4, 50)
    for rows in passes:
        assert sorted(rows) == list(range(50))
    assert len({tuple(rows) for rows in passes}) == 4
    assert not np.array_equal(passes[0], Order(50, seed=2).rows(np.arange(50)))


def test_the_row_of_a_slot_does_not_depend_on_what_was_asked_before():
    order, slots = Order(num_rows=7, seed=0), np.array([0, 50, 3, 22, 51])
    assert np.array_equal(order.rows(slots), [int(Order(7, 0).rows(s[None])[0]) for s in slots])


@pytest.mark.parametrize(("parts", "size"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 2)])
def test_a_step_reads_the_same_slots_however_it_is_cut(parts, size):
    worlds = [World(ALONE.device, rank, size) for rank in range(size)]
    for step in (0, 3):
        slots = [
            batch.slots
            for world in worlds
            for batches in feed(parts, world).steps(step, step + 1, 0)
            for batch in batches
        ]
        assert torch.cat(slots).sort().values.tolist() == list(range(step * 8, step * 8 + 8))
        assert {len(s) for s in slots} == {8 // parts // size}


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(ConfigError, match=r"batch_size 8 must be a multiple of 6.*3 times 2"):
        feed(3, World(ALONE.device, 0, 2))


def test_data_workers_read_the_same_rows():
    alone, helped = ([b for s in feed(2).steps(1, 4, n) for b in s] for n in (0, 2))
    for one, other in zip(alone, helped, strict=True):
        assert_close(one.tokens, other.tokens)
        assert_close(one.slots, other.slots)
