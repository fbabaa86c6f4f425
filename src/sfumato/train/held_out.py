"""The bound of a network in training on held-out rows, by all processes together."""

import numpy as np
import torch
from torch import nn

from sfumato.data.rows import PairRows, Rows
from sfumato.estimates import Estimate, ratio
from sfumato.rng import Rng
from sfumato.train.config import Run
from sfumato.train.feed import as_batch
from sfumato.train.step import to_device
from sfumato.train.world import World
from sfumato.types import Objective

EVALUATION_SEED = 0  # the same noise for every run, so that their bounds compare


@torch.no_grad()
def held_out_bound(
    scored: nn.Module,  # `step.Scored`, spread over the processes
    measure: Objective,
    rows: Rows | PairRows,
    run: Run,
    world: World,
    dtype: torch.dtype,
) -> tuple[Estimate, list[float]]:
    """The bound on the first rows, nats a token, and how many corrupted tokens were right, of all.

    The error is over texts, which are whole documents or parts of them in one row.
    """
    options, number = run.evaluate, min(run.evaluate.rows, len(rows))
    rng = Rng.from_seed(EVALUATION_SEED, device=world.device)
    opening = torch.from_numpy(rows.documents(np.arange(number))).to(world.device)
    # a part is one text in one row, number row + text: both rise from part to part
    parts = number + int(opening[-1]) + run.data.length + 1
    sums = torch.zeros((parts, 4), dtype=torch.float64, device=world.device)
    owners = torch.zeros((parts, 2), dtype=torch.float64, device=world.device)
    with torch.autocast(world.device.type, dtype, enabled=dtype != torch.float32):
        # every process takes as many turns, as sharded weights need; the last row fills them
        for start in range(0, number, options.batch_size * world.size):
            first = start + world.rank * options.batch_size
            slots = np.arange(first, first + options.batch_size)
            slots = slots[slots < number] if first < number else np.array([number - 1])
            batch = to_device(as_batch(rows.batch(slots), slots), world.device)
            loss = scored(measure, batch, rng)
            if first < number:
                row = batch.slots[:, None].expand(batch.segments.shape)
                text = opening[batch.slots][:, None] + batch.segments
                each = torch.stack((loss.nll, batch.trainable), -1).double()
                sums[:, :2].index_add_(0, (row + text).flatten(), each.flatten(0, 1))
                owners[row + text] = torch.stack((text, row), -1).double()
                sums[first, 2:] = torch.stack((loss.correct, loss.corrupted)).double()
    sums, owners = world.sum(sums).cpu(), world.sum(owners).cpu().long()
    bound = ratio(sums[:, 0], sums[:, 1], *owners.unbind(1))
    return bound, sums[:, 2:].sum(0).tolist()
