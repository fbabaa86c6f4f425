"""What a corruption must keep."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sfumato.noise.corruption import Corruption
from sfumato.rng import Rng
from sfumato.testing.claims import (
    Undisturbed,
    close,
    expect,
    forward_law,
    frequencies,
    kind,
    letters,
)


def check_corruption(corruption: Corruption, *, samples: int = 10_000, seed: int = 0) -> None:
    """`kernel`, `corrupt`, `prior`, `posterior` and `bound` belong to one process.

    Everything is compared over the whole vocabulary, so give it a small one (4 to 8 tokens).
    """
    expect(
        0 <= corruption.mask_id < corruption.vocab_size,
        f"mask_id must be one of the {corruption.vocab_size} tokens; got {corruption.mask_id}",
    )
    _check_kernel(corruption)
    _check_corrupt(corruption, samples, seed)
    _check_prior(corruption, samples, seed)
    for t, s in ((0.9, 0.7), (0.5, 0.499), (0.31, 0.02), (0.999, 0.001)):
        _check_posterior(corruption, t, s)
    for t in (0.03, 0.4, 0.8, 0.98):
        _check_bound(corruption, t, seed)


def _check_kernel(corruption: Corruption) -> None:
    t, h = torch.linspace(0.013, 0.987, 60, dtype=torch.float64), 1e-6
    k = corruption.kernel(t)
    later, earlier = corruption.kernel(t + h), corruption.kernel(t - h)
    total = k.alpha + k.mask + k.spread
    close(total, torch.ones_like(t), 1e-9, "alpha + mask + spread must be 1", at=t)
    expect(
        min(float(part.min()) for part in k[:3]) >= 0,
        "alpha, mask and spread are probabilities: never negative",
    )
    for name, rate, after, before in zip(k._fields[:3], k[3:], later, earlier, strict=False):
        slope = (after - before) / (2 * h)
        close(rate, slope, 1e-4, f"d{name} must be the derivative of {name}", at=t)
    expect(
        corruption.absorbing == bool((k.spread == 0).all()),
        "absorbing must say whether all noise is the mask token",
    )
    law = forward_law(corruption, t)
    jump = torch.linalg.solve(law[:-1], law[1:]).amin((1, 2))
    worst = int(jump.argmin())
    expect(
        float(jump[worst]) > -1e-9,
        "no token may turn into another with negative probability; between t = "
        f"{float(t[worst]):.3f} and {float(t[worst + 1]):.3f} one does: {float(jump[worst]):.2g}",
    )


def _check_corrupt(corruption: Corruption, samples: int, seed: int) -> None:
    size, rng, text = corruption.vocab_size, Rng.from_seed(seed, samples), letters(corruption)
    x0 = text.repeat(samples, 1)
    before = x0.clone()
    with Undisturbed("corrupt"):
        for t in (0.2, 0.7):
            xt = corruption.corrupt(x0, torch.full((samples,), t, dtype=torch.float64), rng)
            expect(
                xt.shape == x0.shape and xt.dtype == torch.int64,
                f"corrupt must return tokens {kind(x0)}; got {kind(xt)}",
            )
            expect(torch.equal(x0, before), "corrupt must not write into its argument")
            law = forward_law(corruption, torch.tensor(t))[text]
            seen = one_hot(xt, size).double().mean(0)
            frequencies(seen, law, samples, f"corrupt at t = {t}")
    times = torch.linspace(0.05, 0.95, samples, dtype=torch.float64)
    together = corruption.corrupt(x0, times, rng)
    wide = corruption.corrupt(x0, times[:, None].expand(x0.shape), rng)
    expect(torch.equal(together, wide), "times [B] and the same times as [B, L] must do the same")
    for row in range(samples // 2, samples // 2 + 5):
        alone = corruption.corrupt(x0[:1], times[row, None], rng.select(torch.tensor([row])))
        expect(
            torch.equal(together[row], alone[0]),
            "corrupt must give a row what its own key gives it, whatever else is in the batch",
        )


def _check_prior(corruption: Corruption, samples: int, seed: int) -> None:
    tokens = corruption.prior((samples, 3), Rng.from_seed(seed, samples))
    expect(
        tokens.shape == (samples, 3) and tokens.dtype == torch.int64,
        f"prior must return tokens [{samples}, 3] int64; got {kind(tokens)}",
    )
    if corruption.schedule.high == 1:  # otherwise a share is still clean at t = 1
        law = forward_law(corruption, torch.tensor(1.0))[letters(corruption)[0]]
        seen = one_hot(tokens, corruption.vocab_size).double().mean(0)
        frequencies(seen, law.expand(seen.shape), samples, "prior, against the law at t = 1")


def _reverse(corruption: Corruption, t: float, s: float) -> tuple[Tensor, Tensor]:
    """Bayes' p(x_s | x_t, x_0) as [x_0, x_t, x_s], and which pairs (x_0, x_t) can occur."""
    then, now = forward_law(corruption, torch.tensor([s, t], dtype=torch.float64))
    jump = torch.linalg.solve(then, now)  # q(x_t | x_s), [x_s, x_t]
    joint = then[:, None, :] * jump.T[None]
    possible = now > 1e-12
    possible[corruption.mask_id] = False  # text has no mask token
    return joint / now.clamp_min(1e-300)[..., None], possible


def _check_posterior(corruption: Corruption, t: float, s: float) -> None:
    bayes, possible = _reverse(corruption, t, s)
    x0, xt = possible.nonzero(as_tuple=True)
    certain = one_hot(x0, corruption.vocab_size).double()
    now, then = (torch.full(xt.shape, value, dtype=torch.float64) for value in (t, s))
    rule = f"posterior from t = {t} to s = {s}"
    law = corruption.posterior(certain, xt, now, then)
    close(law, bayes[x0, xt], 1e-7, f"{rule} must be Bayes' rule for every x_0 and x_t")
    for token in xt.unique():
        rows = xt == token
        p0 = torch.linspace(1, 2, int(rows.sum()), dtype=torch.float64)
        p0 = p0 / p0.sum()
        mixed = corruption.posterior((p0 @ certain[rows])[None], token[None], now[:1], then[:1])
        wanted = (p0 @ bayes[x0[rows], token])[None]
        close(mixed, wanted, 1e-7, f"{rule} must mix over p(x_0 | x_t)")
        p0 = (p0 @ certain[rows])[None]
        ended = corruption.posterior(p0, token[None], now[:1], torch.zeros_like(now[:1]))
        close(ended, p0, 1e-7, f"posterior from t = {t} to s = 0 must be p(x_0 | x_t)")


def _check_bound(corruption: Corruption, t: float, seed: int) -> None:
    """The integrand is the rate at which KL(true reverse || modelled reverse) accrues."""
    size, gap = corruption.vocab_size, 1e-6
    bayes, possible = _reverse(corruption, t, t - gap)
    scores = 2 * Rng.from_seed(seed, size).uniform(size)  # some model of p(x_0 | x_t), [x_t, V]
    p0 = scores.masked_fill(~possible.T, -torch.inf).softmax(-1).nan_to_num(0.0)
    model = torch.einsum("yx,xyz->yz", p0, bayes)
    x0, xt = possible.nonzero(as_tuple=True)
    true, modelled = bayes[x0, xt], model[xt]
    # x_s = x_t makes up for all other x_s, and would drown them in rounding
    ratio = torch.where(true > 0, true / modelled.clamp_min(1e-300), 1.0)
    terms = (modelled - true + torch.xlogy(true, ratio)).scatter(-1, xt[:, None], 0.0)
    times = torch.full(xt.shape, t, dtype=torch.float64)
    logp = p0[xt].log()
    got = corruption.bound(logp, x0, xt, times)
    expect(
        got.shape == xt.shape and bool(got.isfinite().all()),
        f"bound at t = {t} must be finite and of the shape of x_t; got {got}",
    )
    expect(
        bool((got >= 0).all()), f"bound at t = {t} must never be negative; got {float(got.min())}"
    )
    rate = "must be the rate of KL(true reverse || modelled reverse)"
    close(got, terms.sum(-1) / gap, 1e-3, f"bound at t = {t} {rate}")
    single = corruption.bound(logp.float(), x0, xt, times)
    expect(single.dtype == torch.float32, f"bound must keep float32; got {single.dtype}")
    close(single, got, 1e-3, f"bound at t = {t} must be the same in float32")
