"""What only some denoisers can do, and what is said of the others."""

from dataclasses import replace

from torch import Tensor

from sfumato.denoisers.full import Full
from sfumato.denoisers.two_stream import TwoStream
from sfumato.errors import ConfigError
from sfumato.rng import Rng
from sfumato.types import Denoiser, LeavesOut, Look, Trainable


def leave_one_out(denoiser: Denoiser) -> Look:
    """How a denoiser reads each position as if it were masked; raises if it cannot."""
    if not isinstance(denoiser, LeavesOut):
        raise ConfigError(
            f"a step rule that verifies needs leave_one_out, which {type(denoiser).__name__} has "
            "not; use another step"
        )
    return denoiser.leave_one_out


def two_stream(denoiser: Trainable, clean: Tensor, size: int) -> TwoStream:
    """Every block of `size` read at once, each after clean text [B, L]."""
    if not isinstance(denoiser, Full):
        raise ConfigError("block diffusion reads a network in two streams: a denoisers.Full")
    return denoiser.two_stream(clean, size)


def autoregressive(denoiser: Trainable) -> Trainable:
    """The same weights read causally: logits at i are about token i, given all before it."""
    if not isinstance(denoiser, Full):
        raise ConfigError("CausalFirst needs a network to read causally: a denoisers.Full")
    return denoiser.autoregressive()


def conditioned(denoiser: Trainable, source: Tensor) -> Trainable:
    """Also reading a source [B, S], `ABSENT` where it has no token."""
    if not isinstance(denoiser, Full):
        raise ConfigError("a source needs a network that reads it: a denoisers.Full")
    return denoiser.conditioned(source)


def dropping_out(denoiser: Trainable, rng: Rng) -> Trainable:
    """Dropping out by these draws, one key a row; what has no network drops nothing."""
    return replace(denoiser, rng=rng) if isinstance(denoiser, Full) else denoiser
