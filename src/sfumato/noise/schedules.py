"""How fast text turns into noise: alpha(t) is the probability that a token is still clean.

t runs from 0 (clean) to 1 (noise). "Cosine" names two formulas in the literature; both are here
under names that say which. `SCHEDULES` maps every name a paper or a run file may use.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from sfumato.arguments import OPTIONS, TEXT, Share, check_fields, shown
from sfumato.errors import ConfigError, near
from sfumato.user_parts import is_own, make_part, own_part


@runtime_checkable
class Schedule(Protocol):
    """alpha falls from 1 - low at t = 0 to 1 - high at t = 1; most schedules have 0 and 1."""

    @property
    def low(self) -> float: ...  # noise rate at t = 0

    @property
    def high(self) -> float: ...  # noise rate at t = 1

    def alpha(self, t: Tensor) -> Tensor:
        """P(still clean) at t, any shape."""
        ...

    def dalpha(self, t: Tensor) -> Tensor:
        """The derivative of alpha, never positive."""
        ...

    def time(self, alpha: Tensor) -> Tensor:
        """The t at which alpha is reached, the inverse of alpha; the nearer end if it never is."""
        ...


@dataclass(frozen=True)
class Linear:
    """alpha = 1 - t: LLaDA, RADD, and MDLM's log-linear noise without its cut."""

    low = 0.0
    high = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def dalpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def time(self, alpha: Tensor) -> Tensor:
        return (1 - alpha).clamp(0, 1)


@dataclass(frozen=True)
class CosineMask:
    """Mask rate 1 - cos(pi t / 2), so alpha = cos(pi t / 2): MDLM's CosineNoise."""

    low = 0.0
    high = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sin(math.pi / 2 * (1 - t))  # exactly 0 at t = 1, which cos is not

    def dalpha(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * torch.sin(math.pi / 2 * t)

    def time(self, alpha: Tensor) -> Tensor:
        return (1 - torch.asin(alpha.clamp(0, 1)) * 2 / math.pi).clamp(0, 1)


@dataclass(frozen=True)
class CosineAlpha:
    """alpha = 1 - cos(pi (1 - t) / 2): MD4, Duo."""

    low = 0.0
    high = 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return 2 * torch.sin(math.pi / 4 * (1 - t)) ** 2  # 1 - cos without cancellation near t = 1

    def dalpha(self, t: Tensor) -> Tensor:
        return -math.pi / 2 * torch.sin(math.pi / 2 * (1 - t))

    def time(self, alpha: Tensor) -> Tensor:
        return (1 - torch.asin((alpha.clamp(0, 1) / 2).sqrt()) * 4 / math.pi).clamp(0, 1)


@dataclass(frozen=True)
class LogLinear:
    """alpha = 1 - (1 - eps) t: MDLM's log-linear noise; a share eps is still clean at t = 1."""

    eps: Annotated[float, Field(ge=0, lt=1, description="use 1e-3")] = 1e-3
    low = 0.0

    def __post_init__(self):
        check_fields(self, "LogLinear {}")

    @property
    def high(self) -> float:
        return 1 - self.eps

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - self.high * t

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -self.high)

    def time(self, alpha: Tensor) -> Tensor:
        return ((1 - alpha) / self.high).clamp(0, 1)


@dataclass(frozen=True)
class Power:
    """alpha = 1 - t ** exponent."""

    exponent: Annotated[float, Field(gt=0, le=1e3, description="use 2")] = 2.0
    low = 0.0
    high = 1.0

    def __post_init__(self):
        check_fields(self, "Power {}")

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**self.exponent

    def dalpha(self, t: Tensor) -> Tensor:
        return -self.exponent * t ** (self.exponent - 1)

    def time(self, alpha: Tensor) -> Tensor:
        return (1 - alpha).clamp(0, 1) ** (1 / self.exponent)


@dataclass(frozen=True)
class Clipped:
    """Another schedule with its noise rate stretched over [low, high]: BD3-LM's clipped schedules.

    For training: it leaves noise rates out. Generation starts from pure noise all the same, and
    ends with nothing noisy; what was left out goes in its last step.
    """

    schedule: Schedule = field(default_factory=Linear)
    low: Share = 0.3
    high: Share = 0.8

    def __post_init__(self):
        check_fields(self, "Clipped {}")
        if not 0 <= self.low < self.high <= 1:
            raise ConfigError(
                f"Clipped needs 0 <= low < high <= 1, got low {self.low} and high {self.high}"
            )

    @property
    def _stretch(self) -> float:
        """The other schedule may stop short, too: its own range is what fills [low, high]."""
        return (self.high - self.low) / (self.schedule.high - self.schedule.low)

    def alpha(self, t: Tensor) -> Tensor:
        above = self.schedule.alpha(t) - (1 - self.schedule.high)
        return 1 - self.high + self._stretch * above

    def dalpha(self, t: Tensor) -> Tensor:
        return self._stretch * self.schedule.dalpha(t)

    def time(self, alpha: Tensor) -> Tensor:
        above = (alpha - 1 + self.high) / self._stretch
        return self.schedule.time(above + (1 - self.schedule.high))


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "linear": Linear,
    "cosine_mask": CosineMask,
    "cosine_alpha": CosineAlpha,
    "log_linear": LogLinear,
    "power": Power,
    "clipped": Clipped,
    # as papers and other packages say it
    "cosine": CosineMask,
    "loglinear": LogLinear,
    "polynomial": Power,
}


def schedule(name: str, **options: Any) -> Schedule:
    """The schedule of a name in `SCHEDULES`, or of one's own by package.module:Name.

    An option that is a schedule is given like it.
    """
    if TEXT.check("a schedule's name", name) not in SCHEDULES and not is_own(name):
        raise ConfigError(f"unknown schedule '{name}'{near(name, SCHEDULES)}")
    if "schedule" in options:
        options["schedule"] = schedule_from(options["schedule"])
    if is_own(name):
        return _own_schedule(name, options)
    try:
        return SCHEDULES[name](**options)
    except TypeError as error:
        raise ConfigError(f"schedule '{name}': {error}") from None


def _own_schedule(name: str, options: Mapping[str, Any]) -> Schedule:
    """A schedule of the user's own. A model's config may name it: nothing else is called."""
    remedy = "see docs/adding.md, and try it with sfumato.testing.check_schedule"
    kind, methods = own_part(name, "schedule"), ("alpha", "dalpha", "time")
    lacking = [method for method in methods if not callable(getattr(kind, method, None))]
    if lacking or not (isinstance(kind, type) and is_dataclass(kind)):
        what = f"has no method {lacking[0]}" if lacking else "is none"
        raise ConfigError(f"schedule must be a dataclass, and {name} {what}: {remedy}")
    made = make_part(kind, f"schedule {name}", "nothing else", (), options)
    for end, t in (("low", 0.0), ("high", 1.0)):
        rate = getattr(made, end, None)
        if not isinstance(rate, int | float) or not 0 <= rate <= 1:
            raise ConfigError(
                f"schedule {name}: `{end}` must be the noise rate at t = {t:.0f}, a number from 0 "
                f"to 1; got {rate!r}: {remedy}"
            )
        alpha = float(made.alpha(torch.tensor(t, dtype=torch.float64)))
        if not abs(alpha - (1 - rate)) < 1e-6:
            raise ConfigError(
                f"schedule {name}: alpha({t:.0f}) must be 1 - {end}, which is {1 - rate:.4g}; got "
                f"{alpha:.4g}: {remedy}"
            )
    return made


def schedule_from(spec: str | Mapping[str, Any]) -> Schedule:
    """The schedule that a model's config or a run file names: its name, or the name and options,

    {"name": "clipped", "low": 0.2, "schedule": {"name": "power", "exponent": 3}}.
    """
    if isinstance(spec, str):
        return schedule(spec)
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name", "linear"), str):
        raise ConfigError(f"a schedule is a name, or {{name: ..., its options}}; got {shown(spec)}")
    return schedule(**{"name": "linear", **OPTIONS.check("a schedule's options", spec)})


def reveal_rate(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """P(a noisy token becomes clean between t and s), s < t: (alpha_s - alpha_t) / (1 - alpha_t).

    The posterior of MDLM (arXiv 2406.07524, eq. 7). At s = 0 it is 1 for every schedule: generation
    ends with nothing noisy, also where a clipped schedule would stop short of that.
    """
    alpha_t, alpha_s = schedule.alpha(t.double()), schedule.alpha(s.double())
    alpha_s = torch.where(s <= 0, torch.ones_like(alpha_s), alpha_s)
    rate = (alpha_s - alpha_t) / (1 - alpha_t).clamp_min(1e-300)
    return rate.clamp(0, 1)
