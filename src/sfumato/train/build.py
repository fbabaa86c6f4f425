"""From a run's keys to the values they name."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from sfumato.data.pairs import PreparedPairs
from sfumato.data.prepared import Prepared
from sfumato.data.tokenizer import SpecialIds
from sfumato.errors import ConfigError, near
from sfumato.lm.folders import load_folder
from sfumato.models.attention import attend_from
from sfumato.models.config import SHAPE, TransformerConfig
from sfumato.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from sfumato.models.transformer import DiffusionTransformer
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
from sfumato.train.config import Choice, EncoderOptions, ModelOptions, Run
from sfumato.types import Objective
from sfumato.user_parts import is_own, make_part, own_part

# the attention of an objective's model; full for the others
ATTENTION = {"next_token": "causal", "block": "block_causal"}


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


def build_network(
    run: Run, data: Prepared | PreparedPairs, vocab_size: int, special: SpecialIds
) -> DiffusionTransformer:
    """The run's network: fresh or loaded, with an encoder if it says so, frozen if it says so."""
    pairs = data if isinstance(data, PreparedPairs) else None
    if pairs is not None and run.objective.name == "block":
        raise ConfigError("objective.name=block does not read sources; use objective.name=masked")
    options, network = run.model, None
    if options.init_from is not None:
        network = load_model(run, data)
    room = 0
    reads = options.encoder is not None or (network is not None and network.reads_source)
    if pairs is not None and not reads:
        room = pairs.longest_source  # which stands before the row
    if network is None:
        network = build_model(run, vocab_size, special, run.data.length + room)
    elif network.config.max_position_embeddings < run.data.length + room:
        most = network.config.max_position_embeddings
        raise ConfigError(
            f"the model in {options.init_from} has {most} positions, fewer than data.length "
            f"{run.data.length}"
            + (f" and the longest source, {room} tokens" if room else "")
            + (f"; set data.length={most - room}" if most > room else "; use another model")
        )
    if options.encoder is not None:
        network = add_encoder(run, network, pairs)
    conditional = network.reads_source
    wants = {
        "model.encoder (or a model with one)": conditional,
        "objective.source_dropout": bool(run.objective.source_dropout),
        "samples.sources": bool(run.samples.sources),
    }
    for key, wanted in wants.items():
        if wanted and pairs is None:
            raise ConfigError(
                f"{key} is for pairs, and {run.data.folder} holds none; prepare it with --pairs or "
                "--source-field and --target-field"
            )
    if pairs is not None and conditional:
        most = network.config.encoder["max_position_embeddings"]
        if most < pairs.longest_source:
            raise ConfigError(
                f"the longest source has {pairs.longest_source} tokens, but the encoder was built "
                f"for {most}; set model.encoder.max_position_embeddings={pairs.longest_source}, or "
                "prepare shorter ones"
            )
    if run.model.freeze_decoder:
        network.freeze_decoder()
    return network


def build_model(
    run: Run, vocab_size: int, special: SpecialIds, positions: int | None = None
) -> DiffusionTransformer:
    """The run's network with fresh weights of its seed; `positions` if the run says no other."""
    options = run.model
    check_rule(run.corruption.schedule, SCHEDULES, "corruption.schedule")
    objective, corruption = _reading(run)
    config = TransformerConfig.of_size(
        options.size,
        **_own_shape(options),
        vocab_size=vocab_size,
        max_position_embeddings=options.max_position_embeddings or positions or run.data.length,
        dropout=options.dropout,
        time_conditioned=options.time_conditioned,
        attention=options.attention or ATTENTION.get(run.objective.name, "full"),
        block_size=options.block_size,
        objective=objective,
        corruption=corruption,
        architectures=[DiffusionTransformer.__name__],
        mask_token_id=special.mask,
        pad_token_id=special.pad,
        bos_token_id=special.bos,
        eos_token_id=special.eos,
    )
    _check_memory(config)
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        return DiffusionTransformer(config)


def _check_memory(config: TransformerConfig) -> None:
    """Raise before building what this machine's memory cannot hold."""
    width, inner = config.hidden_size, config.intermediate_size
    layer = 4 * width**2 + 3 * width * inner
    weights = config.vocab_size * width + config.num_hidden_layers * layer
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * weights > memory:
        raise ConfigError(
            f"a network of model.hidden_size {width}, intermediate_size {inner} and "
            f"{config.num_hidden_layers} layers has {weights:.3g} weights: in float32 "
            f"{weights / 2**28:,.0f} GiB, and this machine has {memory / 2**30:,.0f}; make it less"
        )


def _own_shape(options: ModelOptions | EncoderOptions) -> dict[str, int]:
    """What the run says about the network's shape, where that differs from its size."""
    keys = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return {key: getattr(options, key) for key in keys if getattr(options, key) is not None}


def load_model(run: Run, data: Prepared | PreparedPairs) -> DiffusionTransformer:
    """The model that `model.init_from` names, if it fits the data, for this run's noise."""
    name = str(run.model.init_from)
    own = {"init_from", "encoder", "freeze_decoder", "block_size"}
    if run.model != ModelOptions(**run.model.model_dump(include=own)):
        raise ConfigError(
            "model.init_from brings its own shape; leave out the other keys of model (but encoder "
            "and freeze_decoder, and block_size for objective.name=block)"
        )
    model, tokenizer, *_ = load_folder(name, torch.float32)
    data.check_tokenizer(tokenizer)
    config = model.config
    was_shifted = model.shift
    config.objective, config.corruption = _reading(run)
    size = run.model.block_size or config.block_size
    if run.objective.name == "block" and size is None:
        raise ConfigError(
            f"objective.name=block needs model.block_size: the model in {name} has no blocks; "
            "set it, for instance 16"
        )
    if run.objective.name != "block" and run.model.block_size is not None:
        raise ConfigError(
            f"model.block_size is for objective.name=block, not {run.objective.name}; leave it out"
        )
    config.attention = ATTENTION.get(run.objective.name, "full")
    config.block_size = size if run.objective.name == "block" else None
    config.shift = run.objective.name == "block" and was_shifted
    model.attend = attend_from(config.attention, config.block_size)
    return model


def add_encoder(
    run: Run, decoder: DiffusionTransformer, pairs: PreparedPairs | None
) -> EncoderDecoder:
    """The same network with an encoder, fresh by the run's seed or from another model's weights."""
    options, config, start = run.model.encoder, decoder.config, None
    assert options is not None, "asked for"
    assert isinstance(config, TransformerConfig), "the network's own"
    if decoder.reads_source:
        raise ConfigError(f"{run.model.init_from} has an encoder; leave out model.encoder")
    longest = None if pairs is None else pairs.longest_source
    common = {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": options.max_position_embeddings or longest or run.data.length,
        "dropout": options.dropout,
    }
    if options.init_from is None:
        shape = TransformerConfig.of_size(options.size, **_own_shape(options), **common)
    else:
        if _own_shape(options) or options.size != EncoderOptions().size:
            raise ConfigError("model.encoder.init_from brings its own shape; leave out the rest")
        start, tokenizer, *_ = load_folder(options.init_from, torch.float32)
        if pairs is not None:
            pairs.check_tokenizer(tokenizer)
        shape = TransformerConfig(**{key: getattr(start.config, key) for key in SHAPE} | common)
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        network = EncoderDecoder(EncoderDecoderConfig.of(shape, config))
    network.load_decoder(decoder)
    if start is not None:
        network.load_encoder(start)
    return network


def _reading(run: Run) -> tuple[str, dict[str, Any]]:
    """How the outputs of the run's network are to be read: a model config's two fields."""
    causal = run.objective.name == "next_token"
    name = "next_token" if causal else run.corruption.name
    return name, run.corruption.model_dump(exclude_none=True)
