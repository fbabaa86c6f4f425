"""The step rules by their names, and rules of a user's own.

`STEPS` is the one table. What else `step=` takes is accepted here and nowhere else: a rule itself,
a class that makes one for a corruption, and the name of either as `package.module:Rule`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import PlainValidator

from sfumato.arguments import shown
from sfumato.decoding.published import KlassPublished, WinoPublished
from sfumato.decoding.remask import Cap, Remasking, Rescale, Wino, loop
from sfumato.decoding.step import FLAGS, Step
from sfumato.decoding.unmask import (
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
from sfumato.errors import ConfigError, near
from sfumato.noise.corruption import Corruption
from sfumato.user_parts import is_own, make_part, own_part

# what a user may give as a step: `rule_for` says what becomes of it
StepGiven = Annotated[str | Callable[..., Any] | None, PlainValidator(lambda given: given)]


@dataclass(frozen=True)
class Rule:
    """A step rule by its name: how it is made for a corruption, and its own options."""

    make: Callable[..., Step]  # of a corruption, with every option by name
    defaults: Mapping[str, float] = field(default_factory=dict)

    def check(self, name: str, options: Mapping[str, float]) -> None:
        """Raise if the rule, which goes by `name`, has no such option."""
        for key in options:
            if key not in self.defaults:
                hint = near(key, self.defaults) if self.defaults else "; it has none"
                raise ConfigError(f"step '{name}' has no option '{key}'{hint}")

    def __call__(self, corruption: Corruption, options: Mapping[str, float]) -> Step:
        return self.make(corruption, **{**self.defaults, **options})


def _rule(make: Callable[..., Step], **defaults: float) -> Rule:
    return Rule(make, defaults)


STEPS: dict[str, Rule] = {
    "ancestral": _rule(Ancestral),
    "first_hitting": _rule(lambda c: FirstHitting(c.schedule)),
    "random": _rule(lambda c: RandomOrder(c.schedule)),
    "left_to_right": _rule(lambda c: LeftToRight(c.schedule)),
    "confidence": _rule(lambda c: TopConfidence(c.schedule)),
    "probability": _rule(lambda c: TopProbability(c.schedule)),
    "margin": _rule(lambda c: Margin(c.schedule)),
    "entropy": _rule(lambda c: LowEntropy(c.schedule)),
    "threshold": _rule(lambda c, level: Threshold(c.schedule, level), level=0.9),
    "factor": _rule(lambda c, factor: Factor(c.schedule, factor), factor=1.0),
    "entropy_bound": _rule(lambda c, gamma: EntropyBound(c.schedule, gamma), gamma=0.1),
    "klass": _rule(lambda c, **own: Klass(c.schedule, **own), level=0.6, eps=0.015, patience=2),
    "remask_cap": _rule(lambda c, eta: Remasking(c.schedule, c.mask_id, Cap(eta)), eta=0.02),
    "remask_rescale": _rule(
        lambda c, eta: Remasking(c.schedule, c.mask_id, Rescale(eta)), eta=0.02
    ),
    # eta is of all decided tokens together: the share of steps that take one back. Its authors have
    # 1.0, on whole texts of 1,024 tokens; in blocks that costs quality (docs/log.md)
    "remask_confidence": _rule(
        lambda c, eta: Remasking(c.schedule, c.mask_id, Cap(eta), by_confidence=True), eta=0.02
    ),
    "remask_loop": _rule(
        lambda c, **own: loop(c.schedule, c.mask_id, **own),
        eta=0.02,
        t_on=0.55,
        t_off=0.05,
        alpha_on=0.9,
    ),
    "wino": _rule(lambda c, **own: Wino(c.schedule, c.mask_id, **own), draft=0.6, verify=0.9),
    "wino_published": _rule(
        lambda c, **own: WinoPublished(c.schedule, c.mask_id, **own), draft=0.6, verify=0.9
    ),
    "klass_published": _rule(
        lambda c, **own: KlassPublished(c.schedule, **own), level=0.6, eps=0.015, patience=2
    ),
}


def rule_for(given: object, corruption: Corruption, options: Mapping[str, float]) -> Step:
    """The rule that is meant; `options` are for rules by name and for classes."""
    if isinstance(given, str) and not is_own(given):
        if given not in STEPS:
            raise ConfigError(f"unknown step '{given}'{near(given, STEPS)}")
        STEPS[given].check(given, options)
        return STEPS[given](corruption, options)
    name = given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)
    own = own_part(given, "step") if isinstance(given, str) else given
    if callable(own) and not isinstance(own, Step):
        own = make_part(own, f"step {name}", "a corruption", (corruption,), options)
    elif options:
        raise ConfigError(f"step {name} is a rule as it is: put its options {[*options]} into it")
    if not isinstance(own, Step):
        raise ConfigError(
            f"step must be the name of a rule, package.module:Rule, or a rule; {name} is none: "
            "derive it from sfumato.decoding.step.Step, and try it with sfumato.testing.check_step "
            "(docs/adding.md)"
        )
    for flag in FLAGS:
        said = getattr(own, flag)
        if not isinstance(said, bool):
            raise ConfigError(f"step {name}: {flag} must be True or False, got {shown(said)}")
    return own


def rule_name(given: object) -> str | None:
    """How a rule is called in a record: its name, or as it prints."""
    return given if given is None or isinstance(given, str) else repr(given)
