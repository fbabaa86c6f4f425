"""Ways to decode that calibration compares: rules, how bold they are, blocks, numbers of steps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sfumato.arguments import Count, Numbers, check_fields, numbers
from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.rules import STEPS
from sfumato.errors import ConfigError, near
from sfumato.likelihood.teacher_forcing import can_teacher_force
from sfumato.lm.model import DiffusionLM

# of each rule that decides as many positions as it dares: its option, from the safest value on
LADDERS: dict[str, tuple[str, tuple[float, ...]]] = {
    "threshold": ("level", (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)),
    "factor": ("factor", (0.1, 0.2, 0.4, 0.7, 1.0, 1.5)),
    "entropy_bound": ("gamma", (0.03, 0.1, 0.2, 0.4, 0.7, 1.0, 1.5)),
    "klass": ("level", (0.9, 0.8, 0.7, 0.6)),
    "wino": ("draft", (0.95, 0.9, 0.8, 0.7, 0.6)),
}
SHARES = (0.75, 0.5, 0.375, 0.25, 0.125)  # of others: steps for each position of a block
RULES = ("threshold", "factor", "entropy_bound", "probability")  # unless others are named
OWN = "own"  # the rule that the model has, with its options, in several numbers of steps
REFERENCES = ("probability", "margin", "entropy", "left_to_right")  # one token a pass
BLOCKS = (8, 16, 32)  # of a model of full attention, unless others are named


@dataclass(frozen=True)
class Setting:
    """One way to decode; what it does not name is the model's own."""

    step: str
    step_options: Numbers = field(default_factory=dict)
    num_steps: Count | None = None  # for the whole canvas; None: as many as the rule needs
    block: Count | None = None  # None: the model's own, which has no other

    def __post_init__(self):
        check_fields(self)
        object.__setattr__(self, "step_options", numbers("step option", self.step_options))

    def changes(self) -> dict[str, Any]:
        """What `generate` is told."""
        return {**vars(self), "step_options": dict(self.step_options)}

    def applied(self, options: GenerationOptions) -> GenerationOptions:
        """A model's options with it."""
        return options.with_changes(**self.changes())

    @property
    def name(self) -> str:
        """Its rule, and what is not the default."""
        said = [f"{key}={value:g}" for key, value in self.step_options.items()]
        said += [f"num_steps={self.num_steps}"] * (self.num_steps is not None)
        said += [f"block={self.block}"] * (self.block is not None)
        return " ".join([self.step, *said])


@dataclass(frozen=True)
class Family:
    """Settings of one rule in one size of block, from the safest to the boldest."""

    settings: tuple[Setting, ...]
    scored: bool  # texts have a likelihood under it; else only a judge can tell how good it is


@dataclass(frozen=True)
class Wanted:
    """What a user wants compared; empty: what suits the model."""

    step: tuple[
        str, ...
    ] = ()  # rules, a rule with values for its option: threshold=0.9,0.7, or own
    num_steps: tuple[Count, ...] = ()  # of rules without one, from the most
    block: tuple[Count, ...] = ()
    reference: str = "probability"

    def __post_init__(self):
        check_fields(self)
        if self.reference not in REFERENCES:
            raise ConfigError(
                f"the reference must be one of {', '.join(REFERENCES)}, got '{self.reference}'"
            )
        for text in self.step:
            _rule_and_values(text)
        for name in ("step", "num_steps", "block"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ConfigError(f"{name} names something twice: {getattr(self, name)}")


@dataclass(frozen=True)
class Grid:
    """All that is compared."""

    reference: Setting  # one token a pass: what quality is measured against
    in_order: Setting  # one token a pass, from left to right
    families: tuple[Family, ...]
    window: int  # positions that hold whole blocks of every size
    canvas: int

    @classmethod
    def of(cls, lm: DiffusionLM, wanted: Wanted) -> "Grid":
        """For a model: every rule in every size of block."""
        check_calibrated(lm)
        canvas = lm.options.canvas or lm.model.config.max_position_embeddings
        if lm.block_size:
            if wanted.block not in ((), (lm.block_size,)):
                raise ConfigError(
                    f"this model was trained on blocks of {lm.block_size} tokens, got "
                    f"block={wanted.block}: leave it out"
                )
            blocks, own, window = (None,), None, lm.block_size
        else:
            usual = {lm.options.block or BLOCKS[-1], *BLOCKS}
            blocks = wanted.block or tuple(sorted(b for b in usual if canvas % b == 0))
            window = max(blocks, default=canvas)
            own = lm.options.block if lm.options.block in blocks else window
            if not blocks or canvas % window or any(window % block for block in blocks):
                raise ConfigError(
                    f"every block must divide the largest, and that one the canvas of {canvas}; got"
                    f" {wanted.block or lm.options.block}"
                )
        families = [
            _family(lm, text, block, wanted, canvas)
            for block in blocks
            for text in wanted.step or RULES
        ]
        return cls(
            Setting(wanted.reference, block=own),
            Setting("left_to_right", block=own),
            tuple(families),
            window,
            canvas,
        )

    def steps_each(self, lm: DiffusionLM, setting: Setting) -> int | None:
        """Steps that every block has."""
        if setting.num_steps is None:
            return None
        return setting.num_steps // -(-self.canvas // (setting.block or lm.block_size or 1))


def check_calibrated(lm: DiffusionLM) -> None:
    """Raise for models whose decoding has nothing to calibrate, or that something else decides."""
    options = lm.options
    if lm.autoregressive:
        raise ConfigError(
            "this model is autoregressive: it writes one token a pass, so there is nothing to "
            "calibrate; give a diffusion model"
        )
    if not lm.corruption.absorbing:
        raise ConfigError(
            "only a masked model has step rules to choose from; this one was trained on "
            f"{type(lm.corruption).__name__.lower()} noise"
        )
    if hasattr(lm.model, "read"):
        raise ConfigError("calibrate is for models that write from nothing, not from a source")
    if options.approx_cache or options.guidance or not options.free:
        raise ConfigError(
            "calibrate measures plain decoding; take approx_cache, guidance, regex, json_schema "
            "and choices out of the model's generation_config.json"
        )


def _family(lm: DiffusionLM, text: str, block: int | None, wanted: Wanted, canvas: int) -> Family:
    rule, values = _rule_and_values(text)
    size, options = block or lm.block_size or canvas, {}
    if rule == OWN:
        if not isinstance(lm.options.step, str | None):
            raise ConfigError("this model's own step is a rule without a name; name another step")
        rule, options = lm.options.step or "ancestral", dict(lm.options.step_options)
    elif rule in LADDERS:
        option, usual = LADDERS[rule]
        return _checked(lm, [Setting(rule, {option: v}, None, block) for v in values or usual])
    count = -(-canvas // size)
    each = [round(share * size) for share in SHARES]
    numbers = wanted.num_steps or sorted({n * count for n in each if n > 0}, reverse=True)
    for number in numbers:
        if number % count:
            raise ConfigError(
                f"num_steps {number} does not share out evenly over {count} blocks of {size}; "
                f"use a multiple of {count}"
            )
    return _checked(lm, [Setting(rule, options, number, block) for number in numbers])


def _checked(lm: DiffusionLM, settings: Sequence[Setting]) -> Family:
    made = [setting.applied(lm.options).rule(lm.corruption) for setting in settings]
    return Family(tuple(settings), can_teacher_force(made[0]))


def _rule_and_values(text: str) -> tuple[str, Sequence[float]]:
    """ "threshold=0.9,0.7" -> ("threshold", (0.9, 0.7))."""
    rule, equals, listed = text.partition("=")
    if rule not in (*STEPS, OWN):
        raise ConfigError(f"unknown step '{rule}'{near(rule, (*STEPS, OWN))}")
    if not equals:
        return rule, ()
    if rule not in LADDERS:
        raise ConfigError(f"step '{rule}' has no option to try values of; give num_steps instead")
    try:
        values = tuple(float(value) for value in listed.split(","))
    except ValueError:
        raise ConfigError(f"expected numbers after '{rule}=', got '{listed}'") from None
    return rule, values
