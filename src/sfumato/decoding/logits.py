"""What logits [N, V] say, row by row: the token to draw, and how sure the model is.

A large vocabulary makes these the second cost of generation, after the network itself.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.errors import ConfigError

CHUNK = 2**20  # logits that are looked at together: 4 MB of float32
NARROW = 2**16  # the same in float64, so that a core's own cache holds them
GROUP = 64  # tokens whose probabilities are summed up before one among them is drawn


def draw_tokens(logits: Tensor, u: Tensor) -> Tensor:
    """One token for each row of logits [N, V], by inversion of u [N] in (0, 1).

    Running sums are float64: float32 noise cuts off the tails, which acts as a lower temperature
    (Zheng et al., arXiv 2409.02908). First a group of tokens is found, then the token in it, so
    that so many doubles are not needed.
    """
    return _in_chunks(_draw, logits, u)


def _draw(logits: Tensor, u: Tensor) -> Tensor:
    weights = (logits - _checked(logits.amax(-1, keepdim=True))).exp_()
    if weights.shape[-1] % GROUP:
        weights = F.pad(weights, (0, -weights.shape[-1] % GROUP))
    groups = weights.unflatten(-1, (-1, GROUP))
    group, rest = _invert(groups.sum(-1).double(), u)
    own = groups.gather(1, group[:, None, None].expand(-1, 1, GROUP))[:, 0]
    return group * GROUP + _invert(own.double(), rest)[0]


def most_likely(logits: Tensor) -> Tensor:
    """The most likely token of each row of logits [N, V], the first of equals."""
    best, tokens = logits.max(-1)
    _checked(best)
    return tokens


def _checked(best: Tensor) -> Tensor:
    if not bool(best.isfinite().all()):
        raise ConfigError(
            "no token may stand at some position: its logits are -inf for all tokens, or not "
            "numbers; suppress fewer tokens, or check the model"
        )
    return best


def _invert(weights: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """The index [N] at which the running sum of float64 weights [N, K] passes the share u [N] of
    the whole, never one of weight 0; and how far into that weight it is, [N] in [0, 1)."""
    sums = weights.cumsum(-1)
    total = sums[:, -1:]
    target = torch.minimum(u[:, None] * total, total.nextafter(torch.zeros_like(total)))
    index = torch.searchsorted(sums, target, right=True)
    own = weights.gather(1, index)
    into = ((target - (sums.gather(1, index) - own)) / own).clamp(0, 1 - 2**-53)
    return index[:, 0], into[:, 0]


def _in_chunks(
    compute: Callable[..., Tensor], logits: Tensor, *others: Tensor, size: int = CHUNK
) -> Tensor:
    """`compute` over some rows of logits [N, V] (and others [N, ...]) at a time: on a CPU, fresh
    memory for all of them would cost more than the arithmetic."""
    rows = max(1, size // logits.shape[-1])
    if len(logits) <= rows:
        return compute(logits, *others)
    split = (x.split(rows) for x in (logits, *others))
    return torch.cat([compute(*part) for part in zip(*split, strict=True)])


def confidences(logits: Tensor) -> Tensor:
    """Probability of the most likely token of each row of logits, [N]."""
    return _in_chunks(lambda part: (part.amax(-1) - part.logsumexp(-1)).exp(), logits.float())


def probability_of(tokens: Tensor, logits: Tensor) -> Tensor:
    """Probability of tokens [N], each by its row of logits [N, V]."""

    def compute(part: Tensor, ids: Tensor) -> Tensor:
        return (part.gather(-1, ids[:, None])[:, 0] - part.logsumexp(-1)).exp()

    return _in_chunks(compute, logits.float(), tokens)


# --- how sure: scores that rules rank positions by ---
#
# Probabilities end at 1: many positions of a confident model are there in float32, and which of
# them is ahead would be the chance of rounding. So these are log odds in float64, of sums that
# leave out the token in question, and rounded where the order of a sum may show: what is equal
# otherwise counts as equal.


def log_odds(logits: Tensor, tokens: Tensor | None = None) -> Tensor:
    """log(p / (1 - p)) of tokens [N] (None: of the most likely) by logits [N, V]: [N] float64."""

    def compute(part: Tensor, ids: Tensor | None = None) -> Tensor:
        own = part.to(torch.float64, copy=True)
        best, at = own.max(-1, keepdim=True)
        at = at if ids is None else ids[:, None]
        ahead = own.gather(1, at) - best
        others = own.sub_(best).exp_().scatter_(1, at, 0.0).sum(-1)
        return _rounded(ahead[:, 0] - others.log())

    given = () if tokens is None else (tokens,)
    return _in_chunks(compute, logits, *given, size=NARROW)


def lead_odds(logits: Tensor) -> Tensor:
    """log(m / (1 - m)) of the margin m by which the most likely token is likelier than the next,
    by logits [N, V]: [N] float64."""

    def compute(part: Tensor) -> Tensor:
        own = part.to(torch.float64, copy=True)
        best, at = own.max(-1, keepdim=True)
        others = own.sub_(best).exp_().scatter_(1, at, 0.0)
        second = others.amax(-1)
        return _rounded((1 - second).log() - (others.sum(-1) + second).log())

    return _in_chunks(compute, logits, size=NARROW)


def entropies(logits: Tensor) -> Tensor:
    """Entropy of each row of logits [N, V] in nats, [N] float64: a sum without differences."""

    def compute(part: Tensor) -> Tensor:
        own = part.to(torch.float64, copy=True)
        best, at = own.max(-1, keepdim=True)
        weights = own.sub_(best).exp().scatter_(1, at, 0.0)
        others = weights.sum(-1)
        away = weights.mul_(own.clamp_min_(-1e30)).sum(-1)
        return _rounded(others.log1p() - away / (1 + others))

    return _in_chunks(compute, logits, size=NARROW)


def _rounded(scores: Tensor) -> Tensor:
    """float64 to 18 binary digits after the first: float32 logits, of which the last digits are a
    network's rounding, say no more. So positions that it treats alike are equal in every batch."""
    return ((scores.view(torch.int64) + 2**33) & -(2**34)).view(torch.float64)
