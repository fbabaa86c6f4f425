"""The continuous bound of a small world, by enumeration."""

import math

import torch
from torch import Tensor
from worlds import MASK, VOCAB, Tabular, World, forward_law

from sfumato.likelihood.result import Likelihood
from sfumato.noise.corruption import Corruption, Hybrid, Masked, Uniform
from sfumato.objectives.bound import LAST, time_of

LENGTH = 3
WORLD = World.random(LENGTH)
CANVASES = torch.cartesian_prod(*[torch.arange(VOCAB + 1)] * LENGTH).view(-1, LENGTH)
NOISES = {
    "masked": Masked(VOCAB + 1, MASK),
    "uniform": Uniform(VOCAB + 1, MASK),
    "hybrid": Hybrid(VOCAB + 1, MASK, uniform_share=0.2),
}


def log_probs(denoiser: Tabular, tokens: Tensor, t: float) -> Tensor:
    logits = denoiser(tokens, torch.full((len(tokens),), t, dtype=torch.float64))
    return logits.index_fill(-1, torch.tensor([MASK]), -torch.inf).log_softmax(-1)


def noisings(corruption: Corruption, t: float) -> tuple[Tensor, Tensor]:
    """The canvases [N, L] that may come of a text at t, and how probable each is: [S, N]."""
    law = forward_law(corruption, t)
    some = CANVASES[(law[:VOCAB].sum(0) > 0)[CANVASES].all(1)]
    return some, law[WORLD.texts[:, None], some[None]].prod(-1)


def enumerated(corruption: Corruption, denoiser: Tabular) -> Tensor:
    """[S]: jumps from t = 1 to the noise rate LAST, by the tanh-sinh rule, and the last draw."""
    last = float(time_of(corruption, torch.tensor([1 - LAST], dtype=torch.float64)))

    def jumps(t: float) -> Tensor:
        tokens, chance = noisings(corruption, t)
        shape = (len(WORLD.texts), *tokens.shape)
        logp = log_probs(denoiser, tokens, t).expand(*shape, -1)
        x0, xt = WORLD.texts[:, None].expand(shape), tokens.expand(shape)
        each = corruption.bound(logp, x0, xt, torch.full(shape, t, dtype=torch.float64)).sum(-1)
        return torch.where(chance > 0, chance * each, 0.0).sum(1)

    total, h = torch.zeros(len(WORLD.texts), dtype=torch.float64), 0.1
    for k in range(-32, 33):
        away = math.exp(-math.pi * math.sinh(k * h))
        u = 1 / (1 + away)
        t = last + (1 - last) * u
        if t < 1:
            weight = h * math.pi * math.cosh(k * h) * away * u * u
            total += (1 - last) * weight * jumps(t)
    tokens, chance = noisings(corruption, last)
    logp = log_probs(denoiser, tokens, last)
    shape = (len(WORLD.texts), *tokens.shape)
    right = logp.expand(*shape, -1).gather(-1, WORLD.texts[:, None, :, None].expand(*shape, 1))
    return total + torch.where(chance > 0, chance * -right[..., 0].sum(-1), 0.0).sum(1)


def reverse_law(corruption: Corruption, denoiser: Tabular, steps: int) -> Tensor:
    """[S]: how probable small steps of the reverse process and a last draw make each text."""
    alive = CANVASES[(CANVASES < VOCAB).all(1)] if isinstance(corruption, Uniform) else CANVASES
    index = (alive * (VOCAB + 1) ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
    prior = forward_law(corruption, 1.0)[0][alive].prod(-1)
    last = float(time_of(corruption, torch.tensor([1 - LAST], dtype=torch.float64)))
    # small steps where rates are large: at both ends
    grid = torch.linspace(math.log(last / (1 - last)), 9, steps).sigmoid().flip(0).tolist()
    law = prior / prior.sum()
    for t, s in zip([1.0, *grid], [*grid, 0.0], strict=True):
        told = min(t, 1 - 1e-9)
        p0 = log_probs(denoiser, alive, told).exp()
        times = torch.full(alive.shape, told, dtype=torch.float64)
        step = corruption.posterior(p0, alive, times, torch.full_like(times, s))  # [N, L, V]
        moved = torch.ones(len(alive), len(alive), dtype=torch.float64)
        for at in range(LENGTH):
            moved *= step[:, at][:, alive[:, at]]
        law = law @ moved
    found = torch.zeros((VOCAB + 1) ** LENGTH, dtype=torch.float64)
    found[index] = law
    return found[(WORLD.texts * (VOCAB + 1) ** torch.arange(LENGTH - 1, -1, -1)).sum(1)]


# --- what it measures ---


def assert_measures(found: Likelihood, truth: Tensor, *, within: float):
    """The law's mean of `found` is that of `truth`, which it tells to `within` of it."""
    value, expected = WORLD.law @ found.nats, WORLD.law @ truth
    error = (WORLD.law * found.noise).norm()
    assert abs(value - expected) < 4 * error + 1e-6
    assert error < within * expected
