"""What noise does to a token, and how to undo it: masked, uniform and hybrid in one frame.

Every corruption here has the kernel (x_0 the clean token, x_t the noisy one)

    q(x_t | x_0) = alpha_t [x_t = x_0] + noise_t(x_t),   sum of noise_t = 1 - alpha_t,

where noise_t puts `mask` on the mask token and spreads `spread` evenly over all other tokens. From
it follow one posterior and one integrand of the bound on -log p(x_0). Logits are always read as
log p(x_0 | x_t), the clean token given ALL of x_t, its own position included.

Shapes: everything is elementwise over leading dimensions; p0 and logp have V last.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from sfumato.arguments import OPTIONS, check_fields, shown
from sfumato.errors import ConfigError, near
from sfumato.noise.schedules import Linear, Schedule, reveal_rate, schedule_from
from sfumato.rng import Rng


class Kernel(NamedTuple):
    """The parts of q at times t, each shaped like t; the d-fields are derivatives in t."""

    alpha: Tensor
    mask: Tensor  # noise on the mask token
    spread: Tensor  # noise on all other tokens together
    dalpha: Tensor
    dmask: Tensor
    dspread: Tensor


_REMEDY = "for 0 use Masked, for 1 use Uniform"
Size = Annotated[int, Field(ge=1, lt=2**31, description="count the mask token in vocab_size")]
UniformShare = Annotated[float, Field(gt=0, lt=1, title="between 0 and 1", description=_REMEDY)]


@runtime_checkable
class Corruption(Protocol):
    """Protocol of a corruption; see the classes below."""

    @property
    def schedule(self) -> Schedule: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def mask_id(self) -> int: ...
    @property
    def absorbing(self) -> bool: ...  # noise is the mask token only, so noisy tokens are known

    def kernel(self, t: Tensor) -> Kernel: ...
    def prior(self, shape: tuple[int, int], rng: Rng) -> Tensor: ...
    def corrupt(self, x0: Tensor, t: Tensor, rng: Rng) -> Tensor: ...
    def posterior(self, p0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor: ...
    def bound(self, logp: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor: ...


def _noise_vector(like: Tensor, mask: Tensor, spread: Tensor, mask_id: int) -> Tensor:
    """noise_t as a vector over V, broadcast to `like` [..., V]."""
    vocab_size = like.shape[-1]
    noise = (spread / (vocab_size - 1))[..., None].expand(like.shape).clone()
    noise[..., mask_id] = mask.expand(like.shape[:-1])
    return noise


def _noise_at(tokens: Tensor, mask: Tensor, spread: Tensor, mask_id: int, vocab: int) -> Tensor:
    """noise_t of each token."""
    return torch.where(tokens == mask_id, mask, spread / (vocab - 1))


def _posterior(corruption: Corruption, p0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """p(x_s | x_t) = q(x_t | x_s) sum over x_0 of q(x_s | x_0) p0 / q(x_t | x_0), s < t.

    p0 [..., V] = p(x_0 | x_t); t, s shaped like xt. Austin et al. (arXiv 2107.03006), eq. 3-4.
    At s = 0 everything is clean, also where a clipped schedule would stop short of that.
    """
    mask_id, vocab = corruption.mask_id, corruption.vocab_size
    now, then = corruption.kernel(t.double()), corruption.kernel(s.double())
    alpha_s = torch.where(s <= 0, 1.0, then.alpha)
    mask_s, spread_s = torch.where(s <= 0, 0.0, then.mask), torch.where(s <= 0, 0.0, then.spread)
    onehot = torch.nn.functional.one_hot(xt, vocab).double()
    noise_now = _noise_at(xt, now.mask, now.spread, mask_id, vocab)[..., None]
    noise_then = _noise_vector(onehot, mask_s, spread_s, mask_id)
    forward = now.alpha[..., None] * onehot + noise_now  # q(x_t | x_0) over x_0
    ratio = (now.alpha / alpha_s)[..., None]
    jump = ratio * onehot + (noise_now - ratio * noise_then.gather(-1, xt[..., None]))
    weight = torch.where(forward > 0, p0 / forward.clamp_min(1e-300), 0.0)
    law = jump.clamp_min(0) * (
        alpha_s[..., None] * weight + noise_then * weight.sum(-1, keepdim=True)
    )
    return (law / law.sum(-1, keepdim=True)).to(p0.dtype)


def _bound(corruption: Corruption, logp: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
    """The integrand over t of the bound on -log p(x_0), nats, never negative.

    Relative entropy of the true reverse jump rates from the modelled ones (Campbell et al., arXiv
    2205.14987; with x_0 mixed over the model's posterior, as in GIDD, arXiv 2503.04482):
    rate into x_t times the sum over y != x_t of  model_y - true_y + true_y log(true_y / model_y).
    Both reverse rates are multiplied, and the rate into x_t is divided, by the noise at x_t: what
    depends on t is then of order 1, and float32 does for the sums over the vocabulary.
    """
    mask_id, vocab, dtype = corruption.mask_id, corruption.vocab_size, logp.dtype
    t = t.double()
    k = corruption.kernel(torch.where(t < 1, t, 1 - 1e-6))  # at 1 a rate of 1 / 0, times 0
    noise_xt = _noise_at(xt, k.mask, k.spread, mask_id, vocab)
    dnoise_xt = _noise_at(xt, k.dmask, k.dspread, mask_id, vocab)
    possible = noise_xt > 0  # otherwise x_t is x_0, and nothing is to be learnt from it
    rate = torch.where(possible, dnoise_xt / noise_xt - k.dalpha / k.alpha, 0.0)
    share = noise_xt / (k.alpha + noise_xt)  # of noise in q(x_t | x_0 = x_t)
    noise = _noise_vector(logp, k.mask.to(dtype), k.spread.to(dtype), mask_id)
    alpha, same = k.alpha[..., None].to(dtype), (x0 == xt)[..., None]
    logp_xt = logp.gather(-1, xt[..., None])
    # x_0 is not x_t, or it is and x_t is noise all the same
    rest = -torch.expm1(logp_xt) + logp_xt.exp() * share[..., None].to(dtype)
    model = alpha * logp.exp() + noise * rest
    true = noise * torch.where(same, share[..., None].to(dtype), 1.0)
    true = true.scatter_add(-1, x0[..., None], torch.where(same, 0.0, alpha))
    tiny = torch.finfo(dtype).tiny
    terms = model - true + true * (true.clamp_min(tiny).log() - model.clamp_min(tiny).log())
    total = terms.scatter(-1, xt[..., None], 0.0).sum(-1)
    return (rate.to(dtype) * total).clamp_min(0)  # rounding can leave -1e-9


def any_other(corruption: Corruption, u: Tensor) -> Tensor:
    """Any token but the mask, all equally likely, from u uniform in (0, 1)."""
    tokens = (u * (corruption.vocab_size - 1)).long()
    return tokens + (tokens >= corruption.mask_id)


def _mixed(corruption: Corruption, x0: Tensor, t: Tensor, rng: Rng) -> Tensor:
    """x_t given x_0: [B, L] tokens and times [B] or [B, L], two draws a position."""
    k = corruption.kernel(t.double() if t.dim() == 2 else t.double()[:, None].expand(x0.shape))
    u, v = rng.fold(0).uniform(x0.shape[1]), rng.fold(1).uniform(x0.shape[1])
    noisy = torch.where(u < k.alpha + k.spread, any_other(corruption, v), corruption.mask_id)
    return torch.where(u < k.alpha, x0, noisy)


@dataclass(frozen=True)
class Masked:
    """Tokens turn into the mask token, one by one, and stay it (MDLM, arXiv 2406.07524)."""

    vocab_size: Size
    mask_id: int
    schedule: Schedule = field(default_factory=Linear)
    absorbing = True

    def __post_init__(self):
        _check_vocabulary(self)

    def kernel(self, t: Tensor) -> Kernel:
        alpha, dalpha = self.schedule.alpha(t), self.schedule.dalpha(t)
        zero = torch.zeros_like(alpha)
        return Kernel(alpha, 1 - alpha, zero, dalpha, -dalpha, zero)

    def prior(self, shape: tuple[int, int], rng: Rng) -> Tensor:
        return torch.full(shape, self.mask_id, dtype=torch.int64, device=rng.keys.device)

    def corrupt(self, x0: Tensor, t: Tensor, rng: Rng) -> Tensor:
        u = rng.fold(0).uniform(x0.shape[1])
        alpha = self.schedule.alpha(t.double())
        return torch.where(u < (alpha if t.dim() == 2 else alpha[:, None]), x0, self.mask_id)

    def posterior(self, p0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        reveal = torch.where(xt == self.mask_id, reveal_rate(self.schedule, t, s), 1.0)[..., None]
        law = reveal.to(p0.dtype) * p0
        law[..., self.mask_id] += (1 - reveal[..., 0]).to(p0.dtype)
        onehot = torch.nn.functional.one_hot(xt, self.vocab_size).to(p0.dtype)
        return torch.where((xt == self.mask_id)[..., None], law, onehot)

    def bound(self, logp: Tensor, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """-alpha' / (1 - alpha) times the cross-entropy at masked positions (MDLM, eq. 11)."""
        k = self.kernel(t.double())
        noisy = (xt == self.mask_id) & (k.mask > 0)
        weight = torch.where(noisy, k.dmask / k.mask, 0.0)
        nll = -logp.gather(-1, x0[..., None])[..., 0]
        return torch.where(noisy, weight.to(nll.dtype) * nll, 0.0)


@dataclass(frozen=True)
class Uniform:
    """Tokens turn into any token but the mask, again and again (D3PM, UDLM, arXiv 2412.10193)."""

    vocab_size: Size
    mask_id: int
    schedule: Schedule = field(default_factory=Linear)
    absorbing = False

    def __post_init__(self):
        _check_vocabulary(self)

    def kernel(self, t: Tensor) -> Kernel:
        alpha, dalpha = self.schedule.alpha(t), self.schedule.dalpha(t)
        zero = torch.zeros_like(alpha)
        return Kernel(alpha, zero, 1 - alpha, dalpha, zero, -dalpha)

    def prior(self, shape: tuple[int, int], rng: Rng) -> Tensor:
        return any_other(self, rng.uniform(shape[1]))

    corrupt = _mixed
    posterior = _posterior
    bound = _bound


@dataclass(frozen=True)
class Hybrid:
    """Mask and uniform noise mixed, so that a model learns to correct itself (GIDD, 2503.04482).

    With p the noise rate of `schedule` and c = 2 ** gamma p_u / (1 - p_u) (p (1 - p)) ** (gamma/2):
    alpha = (1 - p) / (1 + c), mask = p / (1 + c), spread = c / (1 + c); p_u is the share of uniform
    noise at p = 1/2 (GIDD eq. 9-10, with t replaced by p). GIDD's own networks predict a token from
    all others: log q(x_t | x_0) added to their logits makes them ours.
    """

    vocab_size: Size
    mask_id: int
    schedule: Schedule = field(default_factory=Linear)
    uniform_share: UniformShare = 0.1
    gamma: Annotated[float, Field(gt=0, le=1e3, description="use 1")] = 1.0
    absorbing = False

    def __post_init__(self):
        _check_vocabulary(self)

    def kernel(self, t: Tensor) -> Kernel:
        clean, dp = self.schedule.alpha(t), -self.schedule.dalpha(t)
        p = 1 - clean
        scale = 2**self.gamma * self.uniform_share / (1 - self.uniform_share)
        both = p * clean
        c = scale * both ** (self.gamma / 2)
        steep = both.clamp_min(torch.finfo(both.dtype).tiny)  # keeps dc finite at the ends
        dc = scale * self.gamma / 2 * steep ** (self.gamma / 2 - 1) * (1 - 2 * p) * dp
        total = 1 + c
        alpha, mask, spread = clean / total, p / total, c / total
        return Kernel(
            alpha,
            mask,
            spread,
            (-dp - alpha * dc) / total,
            (dp - mask * dc) / total,
            (dc - spread * dc) / total,
        )

    def prior(self, shape: tuple[int, int], rng: Rng) -> Tensor:
        return torch.full(shape, self.mask_id, dtype=torch.int64, device=rng.keys.device)

    corrupt = _mixed
    posterior = _posterior
    bound = _bound


def _check_vocabulary(corruption: Masked | Uniform | Hybrid) -> None:
    check_fields(corruption)
    if corruption.vocab_size < 2 or not 0 <= corruption.mask_id < corruption.vocab_size:
        raise ConfigError(
            f"mask_id must be one of the {corruption.vocab_size} tokens of the vocabulary, got "
            f"{corruption.mask_id}; count the mask token in vocab_size"
        )


CORRUPTIONS = {"masked": Masked, "uniform": Uniform, "hybrid": Hybrid}


def corruption_from(spec: Mapping[str, Any], vocab_size: int, mask_id: int) -> Corruption:
    """The corruption a model's config or a run file names, with the options beside the name:

    {"name": "hybrid", "uniform_share": 0.2, "schedule": {"name": "power", "exponent": 2}}; for the
    schedule, see `schedule_from`.
    """
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name", "masked"), str):
        raise ConfigError(f"a corruption is {{name: ..., its options}}; got {shown(spec)}")
    options = dict(OPTIONS.check("a corruption's options", spec))
    name = options.pop("name", "masked")
    if name not in CORRUPTIONS:
        raise ConfigError(f"unknown corruption '{name}'{near(str(name), CORRUPTIONS)}")
    chosen = schedule_from(options.pop("schedule", "linear"))
    try:
        return CORRUPTIONS[name](vocab_size, mask_id, schedule=chosen, **options)
    except TypeError as error:
        raise ConfigError(f"corruption '{name}': {error}") from None
