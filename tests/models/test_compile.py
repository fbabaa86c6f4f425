"""Fast paths of the backbone give what the slow ones give."""

import shutil

import pytest
import torch
from torch import Tensor

from sfumato.models.attention import HIDDEN
from sfumato.models.config import TransformerConfig
from sfumato.models.layers import WRITTEN_OUT, attention
from sfumato.models.transformer import DiffusionTransformer
from sfumato.rng import Rng

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler"
)


def small_model(dropout: float = 0.0) -> DiffusionTransformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, dropout=dropout
    )
    model = DiffusionTransformer(config)
    for param in model.parameters():  # output projections start at zero and would hide mistakes
        torch.nn.init.normal_(param, std=0.2)
    return model


@pytest.mark.parametrize("length", [7, WRITTEN_OUT + 1])
@pytest.mark.parametrize("biased", [False, True])
def test_attention_is_softmax_of_scaled_products(length: int, biased: bool):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 4, requires_grad=True) for _ in range(3))
    seen = (torch.rand(2, 1, length, length) < 0.5) | torch.eye(length, dtype=torch.bool)
    bias = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf) if biased else None
    scores = torch.einsum("bhqe,bhke->bhqk", q, k) / 2
    weights = scores.exp() * (seen if biased else 1)
    expected = torch.einsum("bhqk,bhke->bhqe", weights / weights.sum(-1, keepdim=True), v)
    torch.testing.assert_close(attention(q, k, v, bias), expected)
    with torch.no_grad():
        torch.testing.assert_close(attention(q, k, v, bias), expected)
    direction = torch.randn_like(v)
    torch.testing.assert_close(
        torch.autograd.grad(attention(q, k, v, bias), (q, k, v), direction),
        torch.autograd.grad(expected, (q, k, v), direction),
    )


def loss_and_gradients(
    model: DiffusionTransformer, rows: int, **options: Tensor | None
) -> list[Tensor]:
    rng = Rng.from_seed(1, rows)
    torch.manual_seed(rows)
    tokens = torch.randint(50, (rows, 12))
    where = torch.rand(tokens.shape) < 0.5
    model.zero_grad()
    weights = torch.ones(int(where.sum()))
    out = model(tokens, where=where, labels=tokens[where], weights=weights, rng=rng, **options)
    out.loss.backward()
    return [out.loss, *(param.grad for param in model.parameters())]


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("default")  # torch's compiler warns about its own parts
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_compiled_blocks_train_as_eager_ones_do(dropout: float):
    model = small_model(dropout).train()
    segments = torch.tensor([[0] * 5 + [1] * 5 + [HIDDEN] * 2]).expand(3, 12)
    cases = [(2, {}), (3, {}), (3, {"segments": segments}), (1, {})]
    eager = [loss_and_gradients(model, rows, **options) for rows, options in cases]
    model.compile_blocks()
    for expected, (rows, options) in zip(eager, cases, strict=True):
        torch.testing.assert_close(loss_and_gradients(model, rows, **options), expected)


@pytest.mark.slow
@needs_compiler
@pytest.mark.filterwarnings("default")
def test_all_blocks_and_numbers_of_positions_share_three_graphs():
    model = small_model().train()
    model.compile_blocks()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            torch.manual_seed(seed)
            where = torch.rand(4, 12) < 0.5
            tokens = torch.randint(50, (4, 12))
            weights = torch.ones(int(where.sum()))
            model(tokens, where=where, labels=tokens[where], weights=weights).loss.backward()
    assert (
        torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
    )  # mix, gather of the first block, update


def test_compiled_is_for_training_only():
    model = small_model().eval()
    model.compile_blocks()
    torch._dynamo.utils.counters.clear()
    model(torch.zeros(1, 4, dtype=torch.long))
    assert not torch._dynamo.utils.counters["stats"]
