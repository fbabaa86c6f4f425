"""From a run's options to its network: fresh or loaded, with an encoder if it says so."""

from typing import Any

import torch

from sfumato.data.prepared import Prepared
from sfumato.data.prepared_pairs import PreparedPairs
from sfumato.data.special_tokens import SpecialIds
from sfumato.errors import ConfigError, near
from sfumato.lm.folders import load_folder
from sfumato.models import FAMILIES
from sfumato.models.attention import attend_from
from sfumato.models.config import SHAPE, TransformerConfig
from sfumato.models.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from sfumato.models.hub_loading import KINDS as HUB_KINDS
from sfumato.models.hub_loading import new_hub_network
from sfumato.models.memory import check_memory
from sfumato.models.transformer import DiffusionTransformer
from sfumato.noise.schedules import SCHEDULES
from sfumato.train.build_objective import check_rule
from sfumato.train.config import EncoderOptions, ModelOptions, Run
from sfumato.train.world import World

# the attention of an objective's model; full for the others
ATTENTION = {"next_token": "causal", "block": "block_causal"}


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
    reading = {
        "objective": objective,
        "corruption": corruption,
        "attention": options.attention or ATTENTION.get(run.objective.name, "full"),
        "block_size": options.block_size,
        "time_conditioned": options.time_conditioned,
        "mask_token_id": special.mask,
    }
    common = {
        **_own_shape(options),
        "vocab_size": vocab_size,
        "max_position_embeddings": options.max_position_embeddings or positions or run.data.length,
        "pad_token_id": special.pad,
        "bos_token_id": special.bos,
        "eos_token_id": special.eos,
    }
    if options.family in HUB_KINDS:
        return _hub_network(run, reading, common)
    config_class, network = _family(options.family)
    if options.config:
        raise ConfigError("model.config is for families of transformers; leave it out")
    config = config_class.of_size(
        options.size,
        **common,
        **reading,
        dropout=options.dropout,
        architectures=[network.__name__],
    )
    _check_memory(config)
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        return network(config)


def _hub_network(run: Run, reading: dict[str, Any], common: dict[str, Any]) -> Any:
    """A family of transformers with fresh weights; `model.config` has its keys."""
    options = run.model
    for name in ("size", "dropout", "time_conditioned", "encoder"):
        if getattr(options, name) != getattr(ModelOptions(), name):
            raise ConfigError(
                f"model.{name} is for model.family=sfumato; leave it out, and put keys of "
                f"{options.family} into model.config"
            )
    twice = common.keys() & options.config.keys() - {"max_position_embeddings"}
    if "vocab_size" in twice and options.config["vocab_size"] != common["vocab_size"]:
        raise ConfigError(
            f"model.config.vocab_size is {options.config['vocab_size']}, and the tokenizer of the "
            f"data has {common['vocab_size']}; leave it out"
        )
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        return new_hub_network(options.family, reading, {**common, **options.config})


def _family(name: str) -> tuple[type[TransformerConfig], type[DiffusionTransformer]]:
    """The classes of a kind of network."""
    known = {key: kinds for key, kinds in FAMILIES.items() if not kinds[1].reads_source}
    if name not in known:
        raise ConfigError(f"unknown model.family '{name}'{near(name, {*known, *HUB_KINDS})}")
    return known[name]


def _check_memory(config: TransformerConfig) -> None:
    """Raise before building what this machine's memory cannot hold."""
    width, inner = config.hidden_size, config.intermediate_size
    layer = 4 * width**2 + 3 * width * inner
    weights = config.vocab_size * width + config.num_hidden_layers * layer
    check_memory(
        weights,
        f" of model.hidden_size {width}, intermediate_size {inner} and "
        f"{config.num_hidden_layers} layers",
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
    if decoder.config.model_type not in FAMILIES:
        raise ConfigError("model.encoder is for model.family=sfumato; leave one of them out")
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


def check_spread(run: Run, network: Any, world: World) -> None:
    """Raise for what a network of transformers does not do yet."""
    if network.config.model_type in FAMILIES:
        return
    if world.size > 1 and run.train.parallel == "shard":
        raise ConfigError(
            f"train.parallel=shard is for model.family=sfumato, and this is a "
            f"{network.config.model_type}; use train.parallel=replicate"
        )
    if run.train.gradient_checkpointing and run.objective.name == "block":
        raise ConfigError(
            f"train.gradient_checkpointing with objective.name=block is for model.family=sfumato, "
            f"and this is a {network.config.model_type}; leave one of them out"
        )
