"""From a run's keys to the values they name."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sfumato.errors import ConfigError, near
from sfumato.noise.corruption import Corruption, corruption_from
from sfumato.noise.schedules import SCHEDULES
from sfumato.objectives.blocks import BlockDiffusion
from sfumato.objectives.bound import Bound, Continuous
from sfumato.objectives.curriculum import Curriculum, DroppedSource
from sfumato.objectives.masked import MaskedDiffusion
from sfumato.objectives.next_token import CausalFirst, NextToken
from sfumato.objectives.selection import SELECTIONS, ExactK
from sfumato.objectives.times import TIMES, Independent, Systematic, Times
from sfumato.objectives.weights import WEIGHTS
from sfumato.storage.files import brief
from sfumato.train.config import Choice, Run
from sfumato.types import Objective
from sfumato.user_parts import is_own, make_part, own_part


def build_rule(
    choice: Choice, table: Mapping[str, Callable[..., Any]], key: str, **given: Any
) -> Any:
    """The rule that `choice` names in a table of dataclasses; `given` are not the user's to set."""
    check_rule(choice, table, key, given)
    rule = _rule(choice, table, key)
    fields = {field.name for field in dataclasses.fields(rule)}  # type: ignore[arg-type]
    options = choice.options | {name: value for name, value in given.items() if name in fields}
    if not is_own(choice.name):
        return rule(**options)
    made = make_part(rule, f"{key} {choice.name}", "nothing else", (), options)
    if not callable(made) or (table is SELECTIONS and not isinstance(_whole(made), bool)):
        method = "`__call__`" + (" and `whole`, True or False" if table is SELECTIONS else "")
        raise ConfigError(f"{key} {choice.name} must have {method}: see sfumato.objectives")
    return made


def _whole(selection: object) -> object:
    return getattr(selection, "whole", None)


def _rule(choice: Choice, table: Mapping[str, Callable[..., Any]], key: str) -> Callable[..., Any]:
    """The dataclass that `choice` names, in a table or as package.module:Name."""
    if choice.name in table:
        return table[choice.name]
    if not is_own(choice.name):
        raise ConfigError(f"{key}: unknown name '{choice.name}'{near(choice.name, table)}")
    rule = own_part(choice.name, key)
    if not (isinstance(rule, type) and dataclasses.is_dataclass(rule)):
        raise ConfigError(
            f"{key} {choice.name} must be a dataclass, whose fields are its options; got "
            f"{type(rule).__name__} {getattr(rule, '__name__', '')}: see docs/adding.md"
        )
    return rule


def check_rule(
    choice: Choice, table: Mapping[str, Callable[..., Any]], key: str, given: Iterable[str] = ()
) -> None:
    """Raise if there is no such rule, or the rule has no such option."""
    rule = _rule(choice, table, key)
    fields = {field.name for field in dataclasses.fields(rule)}  # type: ignore[arg-type]
    for name, value in choice.options.items():
        known = fields - set(given)
        if name not in known:
            hint = near(name, known) if known else f"; '{choice.name}' has no options"
            raise ConfigError(f"unknown key '{key}.{name}'{hint}")
        if name == "schedule":  # made from another one, as `clipped`
            inner = {"name": value} if isinstance(value, str) else value
            if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
                raise ConfigError(
                    f"{key}.schedule must be a schedule's name, or {{name: ..., its options}}; "
                    f"got {value!r}"
                )
            check_rule(Choice(**inner), SCHEDULES, f"{key}.schedule")
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{key}.{name} must be a number, got {brief(value)}")


def build_corruption(run: Run, vocab_size: int, mask_id: int) -> Corruption:
    """The run's corruption of a vocabulary."""
    check_rule(run.corruption.schedule, SCHEDULES, "corruption.schedule")
    return corruption_from(run.corruption.model_dump(exclude_none=True), vocab_size, mask_id)


def build_objective(
    run: Run,
    corruption: Corruption,
    block_size: int | None,
    interval: tuple[float, float] | None = None,
) -> Objective:
    """What the run minimises, with a model of such blocks; on mask rates that a search found."""
    _check_objective(run, corruption)
    options = run.objective
    if interval is not None:
        selection = Choice(name="exact_k", low=interval[0], high=interval[1])  # type: ignore[call-arg]
        run = run.model_copy(
            update={"objective": options.model_copy(update={"selection": selection})}
        )
    objective = _main_objective(run, corruption, block_size)
    if options.next_token_steps:
        if options.name == "next_token":
            raise ConfigError("objective.next_token_steps is for other objectives than next_token")
        objective = CausalFirst(objective, options.next_token_steps * run.train.batch_size)
    if options.source_dropout:
        return DroppedSource(objective, options.source_dropout)
    return objective


def _check_objective(run: Run, corruption: Corruption) -> None:
    """Raise if keys of the objective do not go together, or with the noise."""
    options, schedule = run.objective, corruption.schedule
    if options.options and not is_own(options.name):
        raise ConfigError(
            "objective.options is for an objective of your own (package.module:Name), not "
            f"{options.name}; leave it out"
        )
    if options.name not in ("masked", "block"):
        for key in ("selection", "weight", "complementary", "search_steps"):
            if getattr(options, key):
                raise ConfigError(
                    f"objective.{key} is for objective.name=masked or block, not {options.name}; "
                    "leave it out"
                )
        needs_all = options.name == "bound" or not (
            corruption.absorbing or options.name == "next_token"
        )
        if needs_all and (schedule.low > 0 or schedule.high < 1):
            raise ConfigError(
                f"the bound of objective.name={options.name} integrates over all noise rates, and "
                f"{schedule} leaves some out; use a corruption.schedule that runs from 0 to 1, or "
                "objective.name=masked"
            )
    elif not corruption.absorbing:
        raise ConfigError(
            f"objective.name={options.name} needs corruption.name=masked, got "
            f"{run.corruption.name}; use objective.name=bound"
        )
    if options.search_steps:
        _check_search(run)
    if options.curriculum and options.name != "block":
        raise ConfigError(
            f"objective.curriculum is for objective.name=block, not {options.name}; leave it out"
        )


def _check_search(run: Run) -> None:
    selection, weight = run.objective.selection, run.objective.weight
    if selection is not None and (selection.name != "exact_k" or selection.options):
        raise ConfigError(
            "objective.search_steps finds the low and high of selection exact_k by itself; leave "
            "out objective.selection, or the search"
        )
    if weight is not None and weight.name not in ("bound", "clipped"):
        raise ConfigError(
            f"objective.search_steps compares losses in nats a token, which weight {weight.name} "
            "does not give; use weight bound or clipped, or no search"
        )


def _main_objective(run: Run, corruption: Corruption, block_size: int | None) -> Objective:
    if is_own(run.objective.name):
        return _own_objective(run, corruption)
    match run.objective.name:
        case "next_token":
            return NextToken()
        case "bound":
            return Bound(corruption, _times(run, 1))
        case "masked":
            return _masked(run, corruption, 1)
    if block_size is None:
        raise ConfigError("objective.name=block needs model.block_size; set it, for instance 16")
    stages, end = [], 0
    for stage in run.objective.curriculum:
        end += stage.steps * run.train.batch_size
        stages.append((end, _blocks(run, corruption, stage.size)))
    last = _blocks(run, corruption, block_size)
    return Curriculum(tuple(stages), last) if stages else last


def _own_objective(run: Run, corruption: Corruption) -> Objective:
    """An objective of the user's own, made of the noise and of how its times are spread."""
    name, options = run.objective.name, run.objective.options
    make, given = own_part(name, "objective.name"), (corruption, _times(run, 1))
    if not callable(make):
        raise ConfigError(
            f"objective.name {name} must be a class or function that makes an objective; got "
            f"{brief(make)}: see docs/adding.md"
        )
    of = "a corruption, times"
    made = make_part(make, f"objective.name {name}", of, given, options)
    if isinstance(made, type) or not callable(made):
        raise ConfigError(
            f"objective.name {name} must make an objective, called with a denoiser, a batch and an "
            f"rng; got {brief(made)}: see docs/adding.md, and try it with "
            "sfumato.testing.check_objective"
        )
    return made  # type: ignore[return-value]


def _blocks(run: Run, corruption: Corruption, size: int) -> BlockDiffusion:
    if size > run.data.length:
        raise ConfigError(
            f"blocks of {size} tokens are longer than data.length {run.data.length}; "
            "make them smaller"
        )
    return BlockDiffusion(size, _masked(run, corruption, math.ceil(run.data.length / size)))


def _masked(run: Run, corruption: Corruption, blocks: int) -> MaskedDiffusion:
    options = run.objective
    return MaskedDiffusion(
        corruption.mask_id,
        _times(run, blocks),
        build_rule(
            options.selection or Choice(name="exact_k"),
            SELECTIONS,
            "objective.selection",
            schedule=corruption.schedule,
        ),
        build_rule(options.weight or Choice(name="bound"), WEIGHTS, "objective.weight"),
        options.complementary,
    )


def _times(run: Run, blocks: int) -> Times:
    """Noise rates of a step, for so many blocks in a row."""
    rule = TIMES[run.objective.times]
    return rule() if rule is Independent else rule(run.train.batch_size * blocks)


def build_measure(
    run: Run, corruption: Corruption, num_rows: int, block_size: int | None
) -> Objective:
    """What held-out rows are measured by: the bound itself, its times spread over all rows."""
    if run.objective.name == "next_token":
        return NextToken()
    size = block_size if run.objective.name == "block" else None
    blocks = math.ceil(run.data.length / size) if size else 1
    times = Systematic(num_rows * blocks)
    if run.objective.name == "bound" or not corruption.absorbing:
        return Continuous(corruption, times)
    masked = MaskedDiffusion(corruption.mask_id, times, ExactK(schedule=corruption.schedule))
    return BlockDiffusion(size, masked) if size else masked
