"""Dropout depends on the run's seed and a row's slot: how rows are shared out changes nothing."""

from dataclasses import fields, replace

import pytest
import torch
from reference_models import network
from torch.testing import assert_close

from sfumato.denoisers.full import Full
from sfumato.models.dropout import dropout, position_keys
from sfumato.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from sfumato.noise.corruption import Uniform
from sfumato.objectives.blocks import BlockDiffusion
from sfumato.objectives.bound import Bound
from sfumato.objectives.curriculum import DroppedSource
from sfumato.objectives.masked import MaskedDiffusion
from sfumato.objectives.next_token import CausalFirst, NextToken
from sfumato.objectives.times import Systematic
from sfumato.rng import Rng
from sfumato.train.step import Scored
from sfumato.types import ABSENT, Batch, PairBatch

V, MASK, ROWS, LENGTH, SHARE = 7, 6, 6, 12, 0.3
MASKED = MaskedDiffusion(MASK, Systematic(ROWS))
TWICE = replace(MASKED, complementary=True)
OBJECTIVES = {
    "masked": MASKED,
    "complementary": TWICE,
    "block": BlockDiffusion(4, MASKED),
    "block, complementary": BlockDiffusion(4, TWICE),
    "uniform": Bound(Uniform(V, MASK), Systematic(ROWS)),
    "next token": NextToken(),
    "causal first": CausalFirst(MASKED, 3),
}


def rows() -> Batch:
    """Rows of two documents and some padding, no two alike."""
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, MASK, (ROWS, LENGTH), generator=draw)
    segments = (torch.arange(LENGTH)[None] >= 3 + torch.arange(ROWS)[:, None]).long()
    hidden = torch.arange(LENGTH)[None] >= LENGTH - torch.arange(ROWS)[:, None] // 2
    return Batch(tokens, ~hidden, segments.masked_fill(hidden, -1), torch.arange(ROWS))


def pairs() -> PairBatch:
    """Rows of one document, each with a source of another length."""
    batch = rows()
    whole = torch.zeros_like(batch.segments).masked_fill(batch.segments < 0, -1)
    source = batch.tokens[:, :8].clone()
    source[torch.arange(8)[None] < torch.arange(ROWS)[:, None]] = ABSENT
    return PairBatch(batch.tokens, batch.trainable, whole, batch.slots, source=source)


def part_of(batch: Batch, chosen: list[int]) -> Batch:
    """Some rows as data workers give them: sources are as wide as the longest of these."""
    taken = {f.name: getattr(batch, f.name)[chosen] for f in fields(batch)}
    if "source" in taken:
        taken["source"] = taken["source"][:, (taken["source"] != ABSENT).any(0)]
    return type(batch)(**taken)


def losses(scored: Scored, objective, batch: Batch) -> torch.Tensor:
    """nll [copies, B, L]."""
    nll = scored(objective, batch, Rng.from_seed(5)).nll
    return nll.view(-1, *batch.tokens.shape)


def check_any_partition_agrees(model, objective, batch: Batch):
    scored = Scored(model.train(), Full(model, MASK))
    whole = losses(scored, objective, batch)
    assert not torch.equal(whole, losses(Scored(model.eval(), scored.denoiser), objective, batch))
    model.train()
    for chosen in ([0], [5, 1], [2, 3, 4]):
        part = losses(scored, objective, part_of(batch, chosen))
        assert_close(part, whole[:, chosen], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_row_loses_the_same_whatever_rows_are_beside_it(name):
    batch = rows()
    if name == "causal first":  # one objective for rows of one step
        batch = replace(batch, slots=batch.slots + 3)
    check_any_partition_agrees(network(V, dropout=SHARE), OBJECTIVES[name], batch)


@pytest.mark.parametrize("objective", [MASKED, TWICE, DroppedSource(MASKED, 0.5)], ids=repr)
@pytest.mark.parametrize("encoder", [True, False], ids=["encoder", "prefix"])
def test_a_row_with_a_source_does_too(objective, encoder):
    model = network(V, dropout=SHARE)
    if encoder:
        config = EncoderDecoderConfig.of(model.config, model.config)
        model = EncoderDecoder(config)
        torch.manual_seed(0)
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    check_any_partition_agrees(model, objective, pairs())


def test_every_place_loses_other_things():
    """Copies of a row, documents and slots: nothing is drawn twice."""
    rng = Rng.from_seed(0).fold(torch.arange(2))
    positions = torch.tensor([[0, 1, 0]]).expand(4, -1)
    keys = position_keys(rng, positions)
    assert len(keys.unique()) == 12
    padded = torch.cat((torch.full((4, 2), -1), positions), 1)
    assert torch.equal(position_keys(rng, padded).view(4, -1)[:, 2:], keys.view(4, -1))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.999, 1 - 1e-9])
def test_the_share_is_met_and_the_mean_is_kept(share):
    x = torch.ones(4096, 33)
    y = dropout(x, share, True, Rng.from_seed(1).fold(torch.arange(4096)).keys)
    kept = float((y != 0).double().mean())
    share = min(share, 1 - 2**-16)  # never all
    spread = (share * (1 - share) / x.numel()) ** 0.5
    assert abs(kept - (1 - share)) < 5 * spread + 2**-16
    assert float(y.max()) == pytest.approx(1 / (1 - share), rel=1e-2) or share > 0.99
    assert abs(float(y.mean()) - 1) < 5 * spread * float(y.max()) + 1e-6


def test_nothing_is_lost_outside_of_training_or_at_share_0():
    x = torch.ones(3, 5)
    keys = torch.arange(3)
    assert dropout(x, 0.5, False, keys) is x
    assert dropout(x, 0.0, True, keys) is x


def test_columns_and_rows_are_independent():
    """No two rows or columns agree more often than chance."""
    y = dropout(torch.ones(512, 64), 0.5, True, Rng.from_seed(2).fold(torch.arange(512)).keys)
    centred = (y > 0).double() - 0.5
    for each in (centred, centred.T):
        correlation = torch.corrcoef(each).fill_diagonal_(0)
        assert float(correlation.abs().max()) < 6.0 / each.shape[1] ** 0.5
