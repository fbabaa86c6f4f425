"""Muon against the singular value decomposition; rates and averages against their formulas."""

import contextlib
import math

import pytest
import torch
from torch.testing import assert_close

from sfumato.models import DiffusionTransformer, TransformerConfig
from sfumato.train.config import TrainOptions
from sfumato.train.optim import (
    Average,
    Muon,
    Pieces,
    build_optimizers,
    matrix_names,
    orthogonal,
    rate_factor,
    set_rates,
)


def polar(matrix: torch.Tensor) -> torch.Tensor:
    u, _, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u @ v).float()


@pytest.fixture
def model() -> DiffusionTransformer:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return DiffusionTransformer(TransformerConfig(vocab_size=20, mask_token_id=0, **shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (96, 32)], ids=str)
def test_the_step_is_the_nearest_orthogonal_matrix_to_about_a_half(shape, dtype):
    torch.manual_seed(1)
    matrix = torch.randn(shape) @ torch.diag(torch.linspace(1, 0.1, shape[1]))
    found = orthogonal(matrix, dtype).float()
    values = torch.linalg.svdvals(found)
    # a square random matrix has a few singular values below 0.001 of its norm
    assert values.quantile(0.05) > 0.42
    assert values.max() < 1.58
    likeness = torch.cosine_similarity(found.flatten(), polar(matrix).flatten(), 0)
    assert likeness > 0.92


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_step_does_not_depend_on_the_scale_of_the_gradient(scale):
    torch.manual_seed(2)
    matrix = torch.randn(8, 8)
    assert_close(orthogonal(scale * matrix, torch.float32), orthogonal(matrix, torch.float32))


def test_a_zero_gradient_is_no_step():
    assert orthogonal(torch.zeros(4, 4), torch.bfloat16).abs().max() == 0


def test_muon_takes_nesterov_momentum_scales_by_shape_and_decays():
    torch.manual_seed(3)
    weight = torch.nn.Parameter(torch.randn(12, 4))
    before, gradients = weight.detach().clone(), [torch.randn(12, 4), torch.randn(12, 4)]
    optimizer = Muon([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    average, expected = torch.zeros(12, 4), before
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        average = 0.9 * average + 0.1 * gradient
        ahead = 0.1 * gradient + 0.9 * average
        step = orthogonal(ahead, torch.float32)
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * math.sqrt(12 / 4) * step
    assert_close(weight.detach(), expected)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(4, 8), (8, 4)], ids=str)
def test_pieces_are_stepped_one_by_one(shape, axis):
    """With entries as large as those of a step of the whole weight."""
    torch.manual_seed(4)
    parts = [torch.nn.Parameter(torch.randn(shape)) for _ in range(3)]
    together = torch.nn.Parameter(torch.cat([part.detach() for part in parts], axis))
    for part in parts:
        part.grad = torch.randn(shape)
    together.grad = torch.cat([part.grad for part in parts], axis)
    Muon([{"params": [together], "pieces": Pieces(3, axis)}], lr=0.1).step()
    Muon(parts, lr=0.1 / math.sqrt(3) if axis else 0.1).step()
    assert_close(together.detach(), torch.cat([part.detach() for part in parts], axis))


def test_muon_leaves_a_weight_without_gradient_alone():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    Muon([weight], lr=1.0, weight_decay=0.5).step()
    assert_close(weight.detach(), torch.ones(2, 2))


def test_matrices_are_the_linear_layers_but_the_head(model):
    kinds = {name.split(".", 2)[-1]: pieces for name, pieces in matrix_names(model).items()}
    assert kinds == {
        "attention.qkv.weight": (6, 0),
        "attention.out.weight": (2, 1),
        "mlp.gate_up.weight": (16, 0),  # 64 neurons by 8, as a head is wide
        "mlp.down.weight": (8, 1),
    }


def test_neurons_that_do_not_come_out_even_stay_together():
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = TransformerConfig(vocab_size=20, mask_token_id=0, intermediate_size=20, **shape)
    names = matrix_names(DiffusionTransformer(config))
    assert names["blocks.0.mlp.gate_up.weight"] == (2, 0)
    assert names["blocks.0.mlp.down.weight"] == (1, 1)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_every_weight_has_one_optimizer_and_only_matrices_decay(model, name):
    options = TrainOptions(optimizer=name, weight_decay=0.25, learning_rate=0.5)
    optimizers = build_optimizers(model, options, torch.float32)
    owned = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert len(owned) == len({id(p) for p in owned}) == len(list(model.parameters()))
    matrices = matrix_names(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    for optimizer in optimizers:
        optimizer.step()
    for n, param in model.named_parameters():
        kept = 1 - 0.5 * 0.25 if n in matrices else 1.0
        assert_close(param.detach(), kept * before[n], msg=n)


OPTIONS = {"max_steps": 100, "warmup_steps": 10}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"lr_scheduler_type": "constant"}, {10: 1, 55: 1, 99: 1}),
        ({"lr_scheduler_type": "linear"}, {10: 1, 55: 0.5, 99: 1 / 90}),
        ({"lr_scheduler_type": "linear", "min_lr_ratio": 0.2}, {10: 1, 55: 0.6}),
        ({"lr_scheduler_type": "cosine"}, {10: 1, 55: 0.5, 40: 0.75}),
        ({"lr_scheduler_type": "cosine", "min_lr_ratio": 0.1}, {10: 1, 55: 0.55}),
        ({"lr_scheduler_type": "wsd"}, {10: 1, 79: 1, 80: 1, 90: 0.5, 99: 0.05}),
        ({"lr_scheduler_type": "wsd", "decay_steps": 50}, {49: 1, 75: 0.5}),
        ({"lr_scheduler_type": "wsd", "decay_steps": 100}, {10: 1, 55: 0.5}),
    ],
    ids=str,
)
def test_rates_follow_their_formula(options, expected):
    options = TrainOptions(**OPTIONS, **options)
    found = {step: rate_factor(step, options) for step in expected}
    assert found == pytest.approx(expected)
    assert [rate_factor(step, options) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert all(0 < rate_factor(step, options) <= 1 for step in range(100))


def test_rates_scale_every_group_by_its_own_peak(model):
    optimizers = build_optimizers(model, TrainOptions(learning_rate=0.5), torch.float32)
    for factor in (0.5, 0.1):
        set_rates(optimizers, factor)
        assert [o.param_groups[0]["lr"] for o in optimizers] == [0.5 * factor, 3e-3 * factor]


def test_the_average_forgets_as_its_formula_says():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    average, expected = Average({"w": weight}, 0.4), 1.0
    for step in range(8):
        with torch.no_grad():
            weight += 1
        average.update(step)
        decay = min(0.4, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.item()
    assert average.values["w"].item() == pytest.approx(expected)


def test_an_applied_average_is_taken_off_again():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    average = Average({"w": weight}, 0.5)
    with torch.no_grad():
        weight += 1
    with contextlib.suppress(KeyError), average.applied():
        assert weight.item() == 1.0
        raise KeyError
    assert weight.item() == 2.0
