"""Projecting distinct tokens once changes nothing."""

import pytest
import torch
from test_packed import random_model

from sfumato.models.shared_rows import SharedRows
from sfumato.models.transformer import DiffusionTransformer


def test_rows_are_spread_and_their_gradients_summed():
    rows = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([2, 0, 2, 2, 1])
    assert torch.equal(SharedRows(rows, index).spread(rows), rows[index])
    assert torch.autograd.gradcheck(SharedRows(rows, index).spread, rows)


def test_gradients_of_many_small_parts_are_summed_exactly_enough():
    rows = torch.zeros(2, 8, dtype=torch.bfloat16, requires_grad=True)
    SharedRows(rows, torch.zeros(4096, dtype=torch.int64)).spread(rows).sum().backward()
    # a running sum in bfloat16 would stop at 256, whatever torch does inside
    assert rows.grad.tolist() == [[4096] * 8, [0] * 8]


@pytest.mark.parametrize("timed", [False, True])
def test_a_step_is_the_same_with_every_position_projected(monkeypatch, timed):
    model = random_model(attention="block_causal", block_size=4, time_conditioned=timed).double()
    tokens, t = torch.randint(0, 8, (3, 12)), torch.rand(3).double()
    where, found = torch.rand(3, 12) < 0.5, []
    asked = []
    real = DiffusionTransformer._alike
    monkeypatch.setattr(
        DiffusionTransformer, "_alike", lambda *args: asked.append(real(*args)) or asked[-1]
    )
    for _ in range(2):
        model.zero_grad()
        count = int(where.sum())
        labels, weights = tokens[where], torch.ones(count).double()
        out = model(tokens, t=t, where=where, labels=labels, weights=weights)
        out.loss.backward()
        found.append([out.loss.detach(), *(param.grad for param in model.parameters())])
        monkeypatch.setattr(DiffusionTransformer, "_alike", lambda *args: None)
    assert [alike is None for alike in asked] == [timed]
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=1e-9)
