"""Which mask rates to train on: those at which the loss of a batch varies least by its noise alone.

The bound is the mean over mask rates p in [0, 1] of g(p), the cross-entropy of a masked token at p:
drawn at p, a text's estimate is its masked tokens' cross-entropies times 1 / p. Few are masked at
small p, each with a large weight; at p = 1 there is nothing to see, and nothing to learn from it.
With p in [low, high] and the same weight, the loss is the mean of g over that interval: still nats
a token, and so its variance compares between intervals, though it is no bound (BD3-LM, arXiv
2503.09573, section 5, whose loss and variance these are). The rows stay the same, only their noise
is drawn again: how rows differ says nothing about intervals, and would need many more of them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sfumato.rng import Rng
from sfumato.train.step import to_device
from sfumato.train.world import World
from sfumato.types import Batch, Objective

Interval = tuple[float, float]

# none narrower than the paper's: the spread of times falls with the width, but what is learnt, too.
# Of equals the first is taken, so that blocks of one token, which are masked or not, keep all rates
INTERVALS: tuple[Interval, ...] = (
    (0.0, 1.0),
    *((0.0, 0.8), (0.1, 0.9), (0.2, 1.0)),
    *((0.0, 0.5), (0.15, 0.65), (0.3, 0.8), (0.45, 0.95), (0.5, 1.0)),
)
REPEATS = 8  # draws of the noise of a batch for each interval


@torch.no_grad()
def loss_variances(
    scored: nn.Module,  # train.step.Scored
    objectives: Sequence[Objective],
    batches: Sequence[Batch],  # this process's part of a step
    rng: Rng,
    world: World,
    repeats: int = REPEATS,
) -> Tensor:
    """Variance of a step's loss by its noise, for each objective [n]: the same in all processes.

    All objectives draw from the same random numbers, which leaves less to chance between them.
    """
    sums = torch.zeros((len(objectives), repeats, 2), dtype=torch.float64, device=world.device)
    for batch in batches:
        batch = to_device(batch, world.device)
        for number, objective in enumerate(objectives):
            for repeat in range(repeats):
                loss = scored(objective, batch, rng.fold(repeat))
                nats = loss.value.double() * loss.count
                sums[number, repeat] += torch.stack((nats, loss.count.double()))
    sums = world.sum(sums).cpu()
    return (sums[..., 0] / sums[..., 1].clamp_min(1)).var(1)


def least(variances: Sequence[float]) -> int:
    """The number of the lowest, the first of equals."""
    return min(range(len(variances)), key=variances.__getitem__)
