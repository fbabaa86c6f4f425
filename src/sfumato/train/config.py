"""A run: everything that decides what training does, from a file, overrides, or Python.

Names are those of Hugging Face's `TrainingArguments` where one exists. Sizes are of the whole
run, never of one process: `batch_size` rows make a step whatever the number of processes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args

import pydantic
import yaml
from pydantic import Field

from sfumato.errors import ConfigError, near

Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]  # every so many steps; 0: never
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(pydantic.BaseModel):
    """One group of keys: unknown ones are errors, values never change."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True
    )


class Choice(Section):
    """A rule by its name, alone or with its own options beside it: {name: clipped, limit: 4}."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)

    name: str

    @pydantic.model_validator(mode="before")
    @classmethod
    def _of_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def _listed(value: Any) -> Any:
    """One word where several may stand."""
    return (value,) if isinstance(value, str) else value


class EncoderOptions(Section):
    """The encoder of a network that reads a source, as the data of pairs have them."""

    size: str = "small"
    hidden_size: Count | None = None
    num_hidden_layers: Count | None = None
    num_attention_heads: Count | None = None
    intermediate_size: Count | None = None
    max_position_embeddings: Count | None = None  # none: the longest source in the data
    dropout: Share = 0.0
    init_from: str | None = None  # a model, by folder or name, whose weights it starts from


class ModelOptions(Section):
    """The network: a size by name, and what differs from it."""

    size: str = "small"
    hidden_size: Count | None = None
    num_hidden_layers: Count | None = None
    num_attention_heads: Count | None = None
    intermediate_size: Count | None = None
    max_position_embeddings: Count | None = None  # none: data.length
    dropout: Share = 0.0
    time_conditioned: bool = False
    attention: str | None = None  # none: causal for next_token, block_causal for block, else full
    block_size: Count | None = None  # of block_causal attention
    init_from: str | None = None  # a model, by folder or name, whose weights start the run
    encoder: EncoderOptions | None = None  # reads the sources of pairs; none: they are a prefix
    freeze_decoder: bool = False  # only the encoder and the cross-attention learn


class DataOptions(Section):
    """Which prepared rows are learnt from."""

    folder: Path
    length: Count = 256  # tokens a row
    layout: Literal["packed", "padded"] = "packed"


class CorruptionOptions(Section):
    """What noise does to a token, and how fast."""

    name: Literal["masked", "uniform", "hybrid"] = "masked"
    schedule: Choice = Choice(name="linear")
    uniform_share: float | None = None  # hybrid's
    gamma: float | None = None  # hybrid's


class SizeStage(Section):
    """Steps that learn blocks of another size than the model's own."""

    size: Count
    steps: Count


class ObjectiveOptions(Section):
    """What is minimised: masked cross-entropy, in whole rows or in blocks, the bound of any
    corruption, or next tokens."""

    name: Literal["masked", "block", "bound", "next_token"] = "masked"
    times: Literal["systematic", "stratified", "independent"] = "systematic"
    selection: Choice | None = None  # of masked and block; none: exact_k
    weight: Choice | None = None  # of masked and block; none: bound
    complementary: bool = False  # of masked and block
    search_steps: Steps = 0  # of masked and block: steps between searches for an interval of mask
    # rates to train on; 0: never, and objective.selection may set one
    source_dropout: Share = 0.0  # share of rows that do not see their source, for guidance
    curriculum: tuple[SizeStage, ...] = ()  # of block: what comes before model.block_size
    next_token_steps: Steps = 0  # first steps that learn next tokens instead, with the same weights


class TrainOptions(Section):
    """The steps: how many, how large, how far."""

    max_steps: Count = 10_000
    batch_size: Count = 64  # rows a step, over all processes
    gradient_accumulation_steps: Count = 1
    optimizer: Literal["muon", "adamw"] = "muon"
    learning_rate: Positive = 0.02  # of the matrices in the blocks; AdamW: of everything
    adam_learning_rate: Positive | None = None  # of the rest under Muon; none: 3e-3
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.95
    adam_epsilon: Positive = 1e-8
    momentum: Share = 0.95  # Muon's
    weight_decay: NotNegative = 0.0  # matrices in the blocks only
    max_grad_norm: NotNegative = 1.0  # 0: never clipped
    lr_scheduler_type: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    warmup_steps: Steps = 100
    decay_steps: Count | None = None  # wsd: last steps; none: a fifth of max_steps
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0  # of the peak, at the last step
    ema_decay: Share = 0.0  # 0: no average of the weights is kept
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    gradient_checkpointing: bool = False
    torch_compile: bool = False
    device: str = "auto"  # cpu, cuda, ...
    parallel: Literal["replicate", "shard"] = "replicate"  # DDP or FSDP2, with several processes
    dataloader_num_workers: Steps = 0
    save_steps: Count = 1_000
    save_total_limit: Count = 2  # newest checkpoints kept, beside the best


class EvaluateOptions(Section):
    """The held-out bound that decides which weights are best."""

    eval_steps: Steps = 500  # 0: never
    rows: Count = 256  # first rows of the validation split
    batch_size: Count = 32
    early_stopping_patience: Steps = 0  # evaluations without a better one; 0: go on


class SampleOptions(Section):
    """Texts written while training; the same prompts and seed every time."""

    sample_steps: Steps = 0  # 0: never
    prompts: Annotated[tuple[str, ...], pydantic.BeforeValidator(_listed)] = ("",)
    sources: Annotated[tuple[str, ...], pydantic.BeforeValidator(_listed)] = ()  # of pairs
    length: Count | None = None  # new tokens; none: the rest of a row
    num_steps: Count | None = 64  # none: one for every new token
    temperature: NotNegative = 1.0


class LogOptions(Section):
    """Where numbers go, besides metrics.jsonl and metrics.csv."""

    logging_steps: Count = 10
    report_to: Annotated[
        tuple[Literal["png", "tensorboard", "wandb"], ...], pydantic.BeforeValidator(_listed)
    ] = ()
    run_name: str | None = None
    project: str = "sfumato"  # Weights & Biases


class Run(Section):
    """A whole run; `load_run` makes one, `dump_run` writes it."""

    output: Path
    seed: Seed = 0
    overwrite: bool = False  # start again in a folder that holds another run
    data: DataOptions
    model: ModelOptions = ModelOptions()
    corruption: CorruptionOptions = CorruptionOptions()
    objective: ObjectiveOptions = ObjectiveOptions()
    train: TrainOptions = TrainOptions()
    evaluate: EvaluateOptions = EvaluateOptions()
    samples: SampleOptions = SampleOptions()
    log: LogOptions = LogOptions()

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> "Run":
        train = self.train
        if train.warmup_steps >= train.max_steps:
            raise ValueError(
                f"train.warmup_steps {train.warmup_steps} must be less than train.max_steps "
                f"{train.max_steps}; try train.warmup_steps={train.max_steps // 10}"
            )
        if train.batch_size % train.gradient_accumulation_steps:
            raise ValueError(
                f"train.batch_size {train.batch_size} must be a multiple of "
                f"train.gradient_accumulation_steps, got {train.gradient_accumulation_steps}"
            )
        if train.optimizer == "adamw" and train.adam_learning_rate is not None:
            raise ValueError(
                "train.adam_learning_rate is for train.optimizer=muon; "
                "with adamw set train.learning_rate only"
            )
        if train.decay_steps is not None and train.lr_scheduler_type != "wsd":
            raise ValueError(
                "train.decay_steps is for train.lr_scheduler_type=wsd, got "
                f"{train.lr_scheduler_type}; leave it out"
            )
        if self.evaluate.early_stopping_patience and not self.evaluate.eval_steps:
            raise ValueError(
                "evaluate.early_stopping_patience needs evaluations; set evaluate.eval_steps"
            )
        return self


def load_run(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Run:
    """The run of a YAML or JSON file, or of a mapping, with `a.b=c` or `--a.b c` on top."""
    keys = dict(source) if isinstance(source, Mapping) else _read(Path(source))
    for path, value in _parse(overrides):
        keys = _put(keys, path.split("."), value, path)
    try:
        return Run.model_validate(keys)
    except pydantic.ValidationError as error:
        raise ConfigError("\n".join(map(_explain, error.errors()))) from None


def dump_run(run: Run) -> str:
    """The run as YAML, every default written out; a key that is left out is none."""
    keys = run.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(keys, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """YAML as one expects it: 3e-4 is a number."""


_Loader.yaml_implicit_resolvers = {
    first: list(rules) for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the run file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"the run file {path} is not UTF-8 text: {error.reason}") from None
    try:
        keys = json.loads(text) if path.suffix == ".json" else yaml.load(text, _Loader)
    except (yaml.YAMLError, json.JSONDecodeError) as error:
        kind = "JSON" if path.suffix == ".json" else "YAML"
        raise ConfigError(f"{path} is not valid {kind}: {_one_line(error)}") from None
    if not isinstance(keys, dict):
        raise ConfigError(f"{path} must hold keys and values such as 'output: out', got {keys!r}")
    return keys


def _one_line(error: Exception) -> str:
    """What a reader found wrong; YAML's says it in several lines."""
    return " ".join(str(error).split())


def _parse(overrides: Sequence[str]) -> list[tuple[str, Any]]:
    """('train.max_steps', 100) of 'train.max_steps=100', '--train.max_steps 100' or '...=100'."""
    found, words = [], list(overrides)
    while words:
        word = words.pop(0)
        path, equals, value = word.removeprefix("--").partition("=")
        if not equals:
            if not word.startswith("--") or not words:
                raise ConfigError(
                    f"expected key=value, got '{word}'; for instance train.max_steps=1000"
                )
            value = words.pop(0)
        try:
            found.append((path, yaml.load(value, _Loader)))
        except yaml.YAMLError as error:
            reason = _one_line(error)
            raise ConfigError(f"the value of '{path}' is not valid YAML: {reason}") from None
    return found


def _put(keys: Mapping[str, Any], path: list[str], value: Any, name: str) -> dict[str, Any]:
    """A copy of nested `keys` with `value` at `path`."""
    if len(path) == 1:
        return {**keys, path[0]: value}
    inner = keys.get(path[0]) or {}
    if not isinstance(inner, Mapping):
        raise ConfigError(f"'{name}': {path[0]} is {inner!r}, not a section of keys")
    return {**keys, path[0]: _put(inner, path[1:], value, name)}


def _explain(problem: Mapping[str, Any]) -> str:
    """One line for one of pydantic's errors, in our words."""
    place = [str(part) for part in problem["loc"]]
    name = ".".join(place)
    if problem["type"] == "extra_forbidden":
        section = _section(place[:-1])
        return f"unknown key '{name}'{near(place[-1], section.model_fields)}"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    if problem["type"] == "missing":
        return f"'{name}' is missing; add it to the run file or say {name}=..."
    return f"{name}: {problem['msg'][0].lower()}{problem['msg'][1:]}, got {problem['input']!r}"


def _section(place: list[str]) -> type[Section]:
    section: type[Section] = Run
    for key in place:
        kind = section.model_fields[key].annotation
        kinds = [one for one in get_args(kind) if one is not type(None)] or [kind]
        section = cast(type[Section], kinds[0])
    return section
