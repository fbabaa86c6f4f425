"""What a user may say about generation, by name.

`GenerationOptions` is what `generation_config.json`, the command line and Python all fill in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, Unpack

from pydantic import BeforeValidator, Field

from sfumato.arguments import MOST, Count, Numbers, Seed, Share, check_fields, numbers
from sfumato.decoding.changes import ALIASES, Changes
from sfumato.decoding.filters import (
    Floor,
    Heat,
    MinP,
    Most,
    Nucleus,
    Penalty,
    Repetition,
    Suppress,
    Temperature,
    TokenId,
    TopK,
    TopP,
)
from sfumato.decoding.rules import StepGiven, rule_for, rule_name
from sfumato.decoding.step import Step
from sfumato.devices import Precision
from sfumato.errors import ConfigError, near
from sfumato.grammar.dfa import BUDGET, Budget
from sfumato.grammar.grammar import Grammar
from sfumato.noise.corruption import Corruption, Masked
from sfumato.types import Filter

_ANY = Masked(2, 1)  # any corruption
Stops = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(lambda given: (given,) if isinstance(given, str) else given),
    Field(title="a string of at least one character, or several"),
]
Layout = Literal["packed", "padded"]
Guidance = Annotated[float, Field(ge=0, le=1e4)]
Many = Annotated[int, Field(ge=1, le=4096)]
Schema = Annotated[
    Mapping[str, Any] | bool | str, Field(title="a JSON schema, as a mapping or as text")
]


@dataclass(frozen=True)
class Growth:
    """When a canvas grows, and by how much; the values of DAEDAL (arXiv 2508.00819)."""

    by: Annotated[int, Field(ge=2, le=MOST)] = 8  # masks that are added, or that one becomes
    window: Count = 32  # last positions, whose mean probability of an end is looked at
    enough: Share = 0.5  # below it the blank canvas is too short
    sure: Share = 0.9  # below it a position of which nothing is known may become several
    doubt: Share = 0.1  # the most likely token's probability of such a position, at most

    def __post_init__(self):
        check_fields(self, "grow option '{}'")


@dataclass(frozen=True)
class GenerationOptions:
    """How text is written; change it with `replace`, or `with_changes` to accept aliases."""

    length: Count | None = None  # new tokens; None: whatever the canvas has left
    grow: Count | None = (
        None  # begin with so many new tokens; add more, up to `length`, until it ends
    )
    grow_options: Numbers = field(default_factory=dict)
    canvas: Count | None = None  # positions the model was trained on; None: its largest
    layout: Layout = "packed"  # "padded": a text ends in eos, and the rest of its canvas is padding
    num_steps: Count | None = None  # None: one for every new token
    step: StepGiven = None  # see `rules`; None: "ancestral"; "left_to_right" if autoregressive
    step_options: Numbers = field(default_factory=dict)
    block: Count | None = None  # decode in blocks of this many positions
    lookahead: bool = True  # a block sees what follows it
    guidance: Guidance = 0.0  # further towards source or prompt, by this; twice the cost
    approx_cache: Literal["prefix", "dual"] | None = None  # what is around a block is read once
    approx_refresh: Count | None = None  # or once in so many steps
    temperature: Heat = 1.0
    top_k: Most | None = None
    top_p: Nucleus | None = None
    min_p: Floor | None = None
    repetition_penalty: Penalty | None = None
    suppress: tuple[TokenId, ...] = ()  # token ids that are never written
    regex: str | None = None  # all of the new text, and of every gap, matches it
    json_schema: Schema | None = None  # ... is JSON that is valid under it
    choices: tuple[str, ...] | None = None  # ... is one of these
    grammar_states: Count = BUDGET.states  # that any of them may need, at most
    particles: Many = 1  # canvases that each text of a grammar is written on, to weigh them
    stop: Stops = ()  # strings; a text is cut before the first one that is written
    seed: Seed | None = None  # None: another text every time
    precision: Precision = "auto"  # of the network: or what the device multiplies fastest
    torch_compile: bool = False  # one text at a time, of a model with an exact cache: faster passes

    def __post_init__(self):
        check_fields(self)
        object.__setattr__(self, "step_options", numbers("step option", self.step_options))
        object.__setattr__(self, "grow_options", numbers("grow option", self.grow_options))
        if self.approx_refresh is not None and self.approx_cache is None:
            raise ConfigError("approx_refresh is for an approx_cache; name it, 'prefix' or 'dual'")
        if self.step is None and self.step_options:
            raise ConfigError("step_options without a step; name the step that they are for")
        if self.step is not None:
            rule_for(self.step, _ANY, self.step_options)  # its own checks
        if len([g for g in (self.regex, self.json_schema, self.choices) if g is not None]) > 1:
            raise ConfigError("regex, json_schema and choices exclude each other; give one of them")
        if self.stop and not self.free:
            raise ConfigError("a text of a grammar ends where the grammar does; leave stop out")
        if self.grow is None and self.grow_options:
            raise ConfigError("grow_options without grow; give it the tokens to begin with")
        if self.grow is not None and self.length is not None and self.grow > self.length:
            raise ConfigError(f"grow {self.grow} begins with more tokens than length {self.length}")
        self.growth()
        self.filters(())  # their own checks: a bad temperature is refused here, not later

    def with_changes(self, **changes: Unpack[Changes]) -> "GenerationOptions":
        """The same with some options changed; unknown names are errors that name the near ones.

        Another step leaves the old one's `step_options` behind, a canvas that grows the blocks.
        """
        known = {f.name for f in fields(self)}
        named: dict[str, Any] = {}
        for given, value in changes.items():
            name = ALIASES.get(given, given)
            if name not in known:
                raise ConfigError(f"unknown option '{given}'{near(given, known | set(ALIASES))}")
            if name in named:
                raise ConfigError(f"'{given}' is another word for '{name}'; give one of them")
            named[name] = value
        if named.get("step", self.step) != self.step:
            named.setdefault("step_options", {})
        if named.get("grow") is not None:
            named.setdefault("block", None)  # of a block's order, texts seldom end: docs/length.md
        return replace(self, **named)

    def within(self, positions: int, vocab_size: int) -> "GenerationOptions":
        """For a model of so many positions and tokens."""
        canvas = self.canvas or positions
        if canvas > positions:
            raise ConfigError(f"canvas {canvas} is larger than the model's {positions} positions")
        if any(not 0 <= i < vocab_size for i in self.suppress):
            raise ConfigError(
                f"suppress must hold token ids from 0 to {vocab_size - 1}, got {self.suppress}"
            )
        return replace(self, canvas=canvas)

    def growth(self) -> Growth:
        """How the canvas grows, if it does."""
        known = {f.name for f in fields(Growth)}
        for key in self.grow_options:
            if key not in known:
                raise ConfigError(f"no grow option '{key}'{near(key, known)}")
        return Growth(**self.grow_options)  # type: ignore[arg-type]

    def rule(self, corruption: Corruption) -> Step:
        """The step rule, for a diffusion model of this corruption."""
        given = self.step or "ancestral"
        rule = rule_for(given, corruption, self.step_options)
        if not corruption.absorbing and rule.absorbing:
            raise ConfigError(
                f"step '{rule_name(given)}' needs a masked model, and this one was trained on "
                f"{type(corruption).__name__.lower()} noise; use step='ancestral'"
            )
        return rule

    @property
    def free(self) -> bool:
        """Whether new text is in no grammar."""
        return self.regex is None and self.json_schema is None and self.choices is None

    def grammar(self) -> Grammar | None:
        """What all new text must match, if there is anything."""
        budget = Budget(self.grammar_states)
        if self.regex is not None:
            return Grammar.regex(self.regex, budget)
        if self.json_schema is not None:
            return Grammar.json_schema(self.json_schema, budget)
        return None if self.choices is None else Grammar.choices(self.choices, budget)

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
