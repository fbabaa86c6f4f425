"""Which settings are safe, said with a stated confidence (Learn then Test, arXiv 2110.01052).

A setting has a risk: the mean of a loss in [0, 1] over texts like those that were measured. "Its
risk is above the limit" is rejected where the p-value is small; settings that are rejected are
safe, all of them together with the stated confidence, whichever is then picked.

Losses are [N], one for each text; the texts are drawn independently, or without replacement.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from sfumato.errors import ConfigError


def hoeffding_bentkus(losses: Tensor, limit: float) -> Tensor:
    """p-values [...] of "the mean is above `limit`", losses [..., N] (arXiv 2110.01052, prop. 1).

    The smaller of Hoeffding's bound in its sharp form and of Bentkus', e times a binomial tail.
    """
    _check(losses, limit)
    number = losses.shape[-1]
    mean = losses.double().mean(-1).clamp(0, 1)
    below = mean.clamp_max(limit)
    divergence = torch.xlogy(below, below / limit)
    divergence = divergence + torch.xlogy(1 - below, (1 - below) / (1 - limit))
    hoeffding = (-number * divergence).exp()
    # a sum that is whole but for rounding is whole
    hits = (number * mean - 1e-9).ceil().long().clamp(0, number)
    return torch.minimum(hoeffding, math.e * binomial_tail(number, limit)[hits]).clamp_max(1)


def binomial_tail(number: int, share: float) -> Tensor:
    """P(at most k of `number`), each with probability `share`; [number + 1] float64 for every k."""
    k = torch.arange(number + 1, dtype=torch.float64)
    whole = torch.tensor(number + 1.0, dtype=torch.float64)
    ways = torch.lgamma(whole) - torch.lgamma(k + 1) - torch.lgamma(whole - k)
    mass = ways + k * math.log(share) + (number - k) * math.log1p(-share)
    return mass.logcumsumexp(0).exp().clamp_max(1)


def betting(losses: Tensor, limit: float) -> Tensor:
    """p-values [...] as above, by betting (Waudby-Smith & Ramdas, arXiv 2010.09686, theorem 3).

    Money bet on every next loss being below the limit grows on average only if the mean is; by
    Ville's inequality it reaches 1/p with probability p at most. Stakes follow the mean and the
    variance of the losses before, so that losses which differ little need far fewer texts. The
    result depends on their order, which must be that in which they were drawn.
    """
    _check(losses, limit)
    losses = losses.double()
    number = losses.shape[-1]
    seen = torch.arange(1, number + 1, dtype=torch.float64, device=losses.device)
    hope = limit / 2  # of the mean and the deviation, before anything is seen
    mean = (hope + losses.cumsum(-1)) / (1 + seen)
    variance = (hope**2 + (losses - mean).square().cumsum(-1)) / (1 + seen)
    first = torch.full_like(losses[..., :1], hope)
    guess = torch.cat((first, mean[..., :-1]), -1)  # from what was seen before each loss
    variance = torch.cat((first.square(), variance[..., :-1]), -1)
    # the stake that would have grown fastest, within what cannot ruin: Kelly's, to second order
    edge = (limit - guess).clamp_min(0)
    stake = (edge / (variance + edge.square())).clamp_max(_BOLD / (1 - limit))
    wealth = (1 + stake * (limit - losses)).log().cumsum(-1)
    return (-wealth.amax(-1)).clamp_max(0).exp()


_BOLD = 0.9  # of the largest stake that a loss of 1 would not ruin

TESTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "hoeffding_bentkus": hoeffding_bentkus,
    "betting": betting,
}


def fixed_sequence(p_values: Sequence[float], delta: float) -> int:
    """How many settings, from the first, are safe together with confidence 1 - delta.

    Their order must not depend on the losses: from the safest to the boldest. Each is tested at the
    whole of delta, and the first that fails ends it (arXiv 2110.01052, section 3.2).
    """
    for number, p in enumerate(p_values):
        if not p <= delta:
            return number
    return len(p_values)


def texts_needed(limit: float, delta: float, test: str) -> int:
    """Fewer texts than this certify nothing, even if none of them loses anything."""
    number = 1
    while float(TESTS[test](torch.zeros(number), limit)) > delta:
        number += 1
    return number


def safe(
    families: Iterable[Sequence[Tensor]], limit: float, delta: float, test: str
) -> list[tuple[int, list[float]]]:
    """Of each family of settings, losses [N] each, how many are safe, and all p-values.

    Families share delta out evenly, so that all of what is called safe is, with 1 - delta.
    """
    families = list(families)
    share = delta / max(1, len(families))
    found = []
    for losses in families:
        p_values = [float(TESTS[test](one, limit)) for one in losses]
        found.append((fixed_sequence(p_values, share), p_values))
    return found


def _check(losses: Tensor, limit: float) -> None:
    if not 0 < limit < 1:
        raise ConfigError(f"the limit of a risk must be in (0, 1), got {limit}")
    if losses.shape[-1] < 1:
        raise ConfigError("a risk is measured on texts; got none")
    if bool(((losses < 0) | (losses > 1)).any()):
        raise ConfigError("losses must be in [0, 1]; clip them")
