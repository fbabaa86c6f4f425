"""Blocks that read the token before each position: what an autoregressive model grows into."""

import pytest
import torch
from tiny_lm import tiny_lm

from sfumato.denoisers.full import Full, autoregressive
from sfumato.errors import ConfigError
from sfumato.objectives.blocks import BlockDiffusion
from sfumato.objectives.masked import MaskedDiffusion
from sfumato.objectives.next_token import NextToken
from sfumato.objectives.times import Systematic
from sfumato.rng import Rng
from sfumato.types import Batch

LENGTH = 12


def batch(mask: int) -> Batch:
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(mask + 1, 60, (3, LENGTH), generator=draw)
    segments = torch.tensor([[0] * LENGTH, [0] * 5 + [1] * 7, [0] * 9 + [-1] * 3])
    return Batch(tokens, segments >= 0, segments, torch.arange(3))


def blocks_of_one() -> tuple:
    lm = tiny_lm(objective="next_token")
    mask = lm.special.mask
    return lm.model, mask, batch(mask)


def test_blocks_of_one_token_are_the_autoregressive_model_itself():
    model, mask, rows = blocks_of_one()
    inner = MaskedDiffusion(mask, Systematic(3 * LENGTH))
    ones = BlockDiffusion(1, inner)(Full(model, mask, shift=True), rows, Rng.from_seed(0))
    whole = NextToken()(autoregressive(model, mask), rows, Rng.from_seed(0))
    torch.testing.assert_close(ones.value, whole.value, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ones.nll, whole.nll, atol=1e-5, rtol=1e-5)


def test_no_position_can_be_left_out_of_a_pass():
    model, mask, rows = blocks_of_one()
    where = torch.ones_like(rows.tokens, dtype=torch.bool)
    with pytest.raises(ConfigError, match="no position can be left out of a pass"):
        Full(model, mask, shift=True).leave_one_out(rows.tokens, torch.zeros(3), where)
