"""What a user may say about generation, by name.

`GenerationOptions` is what `generation_config.json`, the command line and Python all fill in;
`STEPS` is the one table of step rules.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sfumato.corruption import Corruption
from sfumato.errors import CheckpointError, ConfigError, near
from sfumato.filters import MinP, Repetition, Suppress, Temperature, TopK, TopP
from sfumato.revising import Cap, Remasking, Rescale, Wino, loop
from sfumato.steps import (
    Ancestral,
    EntropyBound,
    Factor,
    FirstHitting,
    Klass,
    LeftToRight,
    LowEntropy,
    Margin,
    RandomOrder,
    Threshold,
    TopConfidence,
    TopProbability,
)
from sfumato.types import Filter, Step

# name -> rule, given the corruption and the rule's own options
STEPS: dict[str, Callable[..., Step]] = {
    "ancestral": Ancestral,
    "first_hitting": lambda c: FirstHitting(c.schedule),
    "random": lambda c: RandomOrder(c.schedule),
    "left_to_right": lambda c: LeftToRight(c.schedule),
    "confidence": lambda c: TopConfidence(c.schedule),
    "probability": lambda c: TopProbability(c.schedule),
    "margin": lambda c: Margin(c.schedule),
    "entropy": lambda c: LowEntropy(c.schedule),
    "threshold": lambda c, level=0.9: Threshold(c.schedule, level),
    "factor": lambda c, factor=1.0: Factor(c.schedule, factor),
    "entropy_bound": lambda c, gamma=0.1: EntropyBound(c.schedule, gamma),
    "klass": lambda c, level=0.6, eps=0.015, patience=2: Klass(c.schedule, level, eps, patience),
    "remask_cap": lambda c, eta=0.02: Remasking(c.schedule, c.mask_id, Cap(eta)),
    "remask_rescale": lambda c, eta=0.02: Remasking(c.schedule, c.mask_id, Rescale(eta)),
    "remask_confidence": lambda c, eta=0.02: Remasking(
        c.schedule, c.mask_id, Cap(eta), by_confidence=True
    ),
    "remask_loop": lambda c, **how: loop(c.schedule, c.mask_id, **how),
    "wino": lambda c, draft=0.6, verify=0.9: Wino(c.schedule, c.mask_id, draft, verify),
}

# what other packages call the same thing
ALIASES = {
    "max_new_tokens": "length",
    "gen_length": "length",
    "steps": "num_steps",
    "max_denoising_steps": "num_steps",
    "block_length": "block",
    "remasking": "step",
    "alg": "step",
}


@dataclass(frozen=True)
class GenerationOptions:
    """How text is written; change it with `replace`, or `with_changes` to accept aliases."""

    length: int | None = None  # new tokens; None: whatever the canvas has left
    canvas: int | None = None  # positions the model was trained on; None: its largest
    layout: str = "packed"  # "padded": a text ends in eos, and the rest of its canvas is padding
    num_steps: int | None = None  # None: one for every new token
    step: str = "ancestral"
    step_options: Mapping[str, float] = field(default_factory=dict)
    block: int | None = None  # decode in blocks of this many positions
    lookahead: bool = True  # a block sees what follows it
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    suppress: tuple[int, ...] = ()  # token ids that are never written
    seed: int | None = None  # None: another text every time

    def __post_init__(self):
        for name in ("length", "canvas", "num_steps", "block"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if self.layout not in ("packed", "padded"):
            raise ConfigError(f"layout must be 'packed' or 'padded', got '{self.layout}'")
        if self.step not in STEPS:
            raise ConfigError(f"unknown step '{self.step}'{near(self.step, STEPS)}")
        self.filters(())  # their own checks: a bad temperature is refused here, not later

    def with_changes(self, **changes: Any) -> "GenerationOptions":
        """The same with some options changed; unknown names are errors that name the near ones."""
        known = {f.name for f in fields(self)}
        named = {ALIASES.get(name, name): value for name, value in changes.items()}
        for name in named:
            if name not in known:
                raise ConfigError(f"unknown option '{name}'{near(name, known | set(ALIASES))}")
        return replace(self, **named)

    def rule(self, corruption: Corruption) -> Step:
        """The step rule, for a model of this corruption."""
        if not corruption.absorbing and self.step != "ancestral":
            raise ConfigError(
                f"step '{self.step}' needs a masked model, and this one was trained on "
                f"{type(corruption).__name__.lower()} noise; use step='ancestral'"
            )
        try:
            return STEPS[self.step](corruption, **self.step_options)
        except TypeError as error:
            raise ConfigError(f"step '{self.step}': {error}") from None

    def filters(self, never: tuple[int, ...]) -> tuple[Filter, ...]:
        """The filters in their order; `never` are ids that text must not contain."""
        chosen: list[Filter] = []
        if never or self.suppress:
            chosen.append(Suppress((*never, *self.suppress)))
        if self.repetition_penalty is not None:
            chosen.append(Repetition(self.repetition_penalty))
        # top-k, top-p and min-p cut what the temperature has flattened, as in Hugging Face
        if self.temperature != 1:
            chosen.append(Temperature(self.temperature))
        if self.top_k is not None:
            chosen.append(TopK(self.top_k))
        if self.top_p is not None:
            chosen.append(TopP(self.top_p))
        if self.min_p is not None:
            chosen.append(MinP(self.min_p))
        return tuple(chosen)


def write_generation_config(folder: str | Path, options: GenerationOptions, **ids: int) -> None:
    """Save a model's defaults as generation_config.json; `ids` are its special tokens."""
    values = {k: v for k, v in asdict(options).items() if v not in (None, (), {})}
    text = json.dumps({**ids, **values}, indent=2, sort_keys=True)
    (Path(folder) / "generation_config.json").write_text(text + "\n", encoding="utf-8")


def read_generation_config(folder: str | Path) -> GenerationOptions:
    """A model's defaults; keys that are not ours (Hugging Face's own) are left alone."""
    path = Path(folder) / "generation_config.json"
    if not path.exists():
        return GenerationOptions()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    known = {f.name for f in fields(GenerationOptions)}
    ours = {k: v for k, v in values.items() if k in known}
    if "suppress" in ours:
        ours["suppress"] = tuple(ours["suppress"])
    return GenerationOptions(**ours)
