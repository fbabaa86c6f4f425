"""How fast a model writes on this machine: tokens a forward pass, tokens a second."""

import time
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from sfumato.decoding.logits import draw_tokens, most_likely
from sfumato.denoisers.blocks import CachedReader
from sfumato.lm.model import DiffusionLM
from sfumato.rng import Rng
from sfumato.types import Canvas


@dataclass(frozen=True)
class Lap:
    """One text, written alone."""

    text: str
    tokens: int  # of the text: filling behind its end is none
    forwards: int  # of the network, counted where it is called
    seconds: float


@dataclass(frozen=True)
class Pace:
    """Laps of one setting."""

    laps: tuple[Lap, ...]

    @property
    def tokens_per_forward(self) -> float:
        return sum(lap.tokens for lap in self.laps) / sum(lap.forwards for lap in self.laps)

    @property
    def tokens_per_second(self) -> float:
        """The median lap's, which a moment's other work on the machine does not move."""
        return median(lap.tokens / lap.seconds for lap in self.laps)

    @property
    def seconds_per_forward(self) -> float:
        return median(lap.seconds / lap.forwards for lap in self.laps)

    def as_dict(self) -> dict[str, Any]:
        """The numbers, and of every lap what they are made from."""
        return {
            "tokens_per_forward": self.tokens_per_forward,
            "tokens_per_second": self.tokens_per_second,
            "seconds_per_forward": self.seconds_per_forward,
            "laps": [[lap.tokens, lap.forwards, round(lap.seconds, 6)] for lap in self.laps],
        }


def lap(lm: DiffusionLM, **changes: Any) -> Lap:
    """Write one text and stop the time."""
    options = lm.options.with_changes(**changes)
    network = lm.network.compute(options.precision, options.torch_compile)
    before, begin = network.passes, time.perf_counter()
    made = lm.generate(**changes)
    seconds = time.perf_counter() - begin
    return Lap(made.texts[0], len(made.tokens[0]), network.passes - before, seconds)


@torch.no_grad()
def autoregressive_lap(lm: DiffusionLM, length: int, seed: int) -> Lap:
    """`length` tokens by the same weights read causally: each read once, one position a pass.

    The text means nothing, as the weights were trained for another way of reading; the pace is
    that of the same network trained autoregressively, with an exact cache.
    """
    options, device = lm.options, lm.device
    one = torch.ones(1, 1, dtype=torch.bool, device=device)
    token = torch.full((1, 1), lm.special.mask, device=device)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    filters = options.filters(tuple(sorted(lm.never | lm.reader.ends)))
    greedy = any(getattr(change, "greedy", False) for change in filters)
    rng, written = Rng.from_seed(seed, device=device), []
    begin = time.perf_counter()
    network = lm.network.compute(options.precision, options.torch_compile)
    reader = CachedReader(network, lm.special.mask, 1).begin(token, zero)
    for place in range(length):
        logits, reader = reader.advance(token, torch.zeros_like(one).float(), one, one[0])
        for change in filters:
            logits = change(logits, Canvas(token, one, ~one), one)
        drawn = most_likely(logits) if greedy else draw_tokens(logits, rng.fold(place).uniform())
        token = drawn[None]
        written.append(int(drawn))
    seconds = time.perf_counter() - begin
    return Lap(lm.reader.decode(written), length, length, seconds)
