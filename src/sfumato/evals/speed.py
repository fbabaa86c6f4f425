"""How fast a model writes on this machine: tokens a forward pass, tokens a second."""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from sfumato.filters import Suppress
from sfumato.models.attend import Causal
from sfumato.pipeline import DiffusionLM
from sfumato.types import Filter


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

    @property
    def mean_tokens(self) -> float:
        return sum(lap.tokens for lap in self.laps) / len(self.laps)

    def as_dict(self) -> dict[str, Any]:
        """The numbers, and of every lap what they are made from."""
        return {
            "tokens_per_forward": self.tokens_per_forward,
            "tokens_per_second": self.tokens_per_second,
            "seconds_per_forward": self.seconds_per_forward,
            "laps": [[lap.tokens, lap.forwards, round(lap.seconds, 6)] for lap in self.laps],
        }


def lap(lm: DiffusionLM, *, filters: Sequence[Filter] = (), **changes: Any) -> Lap:
    """Write one text and stop the time."""
    count = 0

    def add(*_: object) -> None:
        nonlocal count
        count += 1

    hook = lm.model.register_forward_hook(add)
    try:
        begin = time.perf_counter()
        made = lm.generate(filters=filters, **changes)
        seconds = time.perf_counter() - begin
    finally:
        hook.remove()
    return Lap(made.texts[0], len(made.tokens[0]), count, seconds)


def autoregressive_twin(lm: DiffusionLM) -> DiffusionLM:
    """The same weights read causally: one position a pass, each read once, cached exactly.

    Its texts mean nothing, as the weights were trained for another way of reading; its pace is that
    of the same network trained autoregressively.
    """
    model = copy.copy(lm.model)  # shares all weights
    model.config = copy.deepcopy(lm.model.config)
    model.config.objective, model.config.attention = "next_token", "causal"
    model.config.block_size = None
    model.attend = Causal()
    options = replace(lm.options, step=None, step_options={}, num_steps=None, block=None)
    return DiffusionLM(model, lm.tokenizer, options)


def autoregressive_lap(twin: DiffusionLM, length: int, seed: int) -> Lap:
    """`length` tokens, one pass each; what would end the text is suppressed."""
    endless = (Suppress(tuple(twin.reader.ends)),)
    made = lap(twin, length=length, seed=seed, filters=endless)
    return replace(made, tokens=length)
