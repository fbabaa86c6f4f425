"""A run: everything that decides what training does, key by key.

Names are those of Hugging Face's `TrainingArguments` where one exists. Sizes are of the whole
run, never of one process: `batch_size` rows make a step whatever the number of processes.
`run_file` reads and writes runs.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import Field

from sfumato.errors import near
from sfumato.user_parts import is_own

MOST = 2**31 - 1  # of anything that is counted
Count = Annotated[int, Field(ge=1, le=MOST)]
Steps = Annotated[int, Field(ge=0, le=MOST)]  # every so many steps; 0: never
Width = Annotated[int, Field(ge=1, le=2**20)]
Depth = Annotated[int, Field(ge=1, le=2**12)]
Length = Annotated[int, Field(ge=1, le=2**24)]  # tokens
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _place(value: Any) -> Any:
    """A path with `~` as the home folder; NUL and nothing are in no file's name."""
    if not isinstance(value, str | Path):
        return value
    if not str(value) or "\0" in str(value):
        raise ValueError(f"expected the name of a file or folder, got {str(value)!r}")
    try:
        return Path(value).expanduser() if str(value).startswith("~") else value
    except RuntimeError:
        raise ValueError(f"no home folder is known for {str(value)!r}; write it out") from None


def _name(value: Any) -> Any:
    return str(_place(value)) if isinstance(value, str | Path) else value


Place = Annotated[Path, pydantic.BeforeValidator(_place)]
ModelName = Annotated[str, pydantic.BeforeValidator(_name)]  # a folder, or a name on the Hub


def kinds(annotation: Any) -> set[Any]:
    """The plain types that a key's annotation allows."""
    inner = get_args(annotation)
    return set().union(*map(kinds, inner)) if inner else {annotation}


class Section(pydantic.BaseModel):
    """One group of keys: unknown ones are errors, values never change."""

    model_config = pydantic.ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,  # what `sfumato train --help` tells of a key
    )

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        wanted = kinds(cls.model_fields[info.field_name or ""].annotation)
        if isinstance(value, bool) and bool not in wanted and wanted & {int, float}:
            raise ValueError(f"expected a number, got {str(value).lower()}")
        if isinstance(value, int | float) and not isinstance(value, bool) and bool in wanted:
            raise ValueError(f"expected true or false, got {value}")
        return value


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
    """As model.size."""
    hidden_size: Width | None = None
    """Width; none: that of the size."""
    num_hidden_layers: Depth | None = None
    """Layers; none: those of the size."""
    num_attention_heads: Width | None = None
    """Heads of each layer; none: those of the size."""
    intermediate_size: Width | None = None
    """Width of the gated MLP; none: 8/3 of hidden_size, rounded up to a multiple of 64."""
    max_position_embeddings: Length | None = None
    """Longest source in tokens; none: the longest in the data."""
    dropout: Share = 0.0
    """Share of activations that training sets to 0."""
    init_from: ModelName | None = None
    """A model, by folder or name, whose weights the encoder starts from."""


class ModelOptions(Section):
    """The network: a size by name, and what differs from it."""

    family: str = "sfumato"
    """sfumato, or a type of transformers, such as modernbert or llama."""
    config: dict[str, Any] = {}
    """Keys of a type of transformers, by its own names."""
    size: str = "small"
    """tiny, small, medium, large, xlarge or xxlarge."""
    hidden_size: Width | None = None
    """Width; none: that of the size."""
    num_hidden_layers: Depth | None = None
    """Layers; none: those of the size."""
    num_attention_heads: Width | None = None
    """Heads of each layer; none: those of the size."""
    intermediate_size: Width | None = None
    """Width of the gated MLP; none: 8/3 of hidden_size, rounded up to a multiple of 64."""
    max_position_embeddings: Length | None = None
    """Longest text in tokens; none: data.length."""
    dropout: Share = 0.0
    """Share of activations that training sets to 0."""
    time_conditioned: bool = False
    """The network is told the noise time."""
    attention: str | None = None
    """full, causal or block_causal; none: what the objective reads."""
    block_size: Length | None = None
    """Tokens of a block, with objective.name=block."""
    init_from: ModelName | None = None
    """A model, by folder or name, whose weights the run starts from."""
    encoder: EncoderOptions | None = None
    """Reads the sources of pairs; none: they are a prefix."""
    freeze_decoder: bool = False
    """Only the encoder and the cross-attention learn."""


class DataOptions(Section):
    """Which prepared rows are learnt from."""

    folder: Place
    """What `sfumato data prepare` wrote."""
    length: Length = 256
    """Tokens of a row."""
    layout: Literal["packed", "padded"] = "packed"
    """packed: texts one after another; padded: every text in rows of its own."""


class CorruptionOptions(Section):
    """What noise does to a token, and how fast."""

    name: Literal["masked", "uniform", "hybrid"] = "masked"
    """A token turns into the mask token, into any token, or into either."""
    schedule: Choice = Choice(name="linear")
    """A schedule with its options, also of your own, as package.module:Name."""
    uniform_share: float | None = None
    """Of hybrid noise: the share of uniform noise where half is noise."""
    gamma: float | None = None
    """Of hybrid noise: how fast that share vanishes at the ends."""


OBJECTIVES = ("masked", "block", "bound", "next_token")


def _objective_name(name: str) -> str:
    """One of ours, or of the user's own."""
    if name not in OBJECTIVES and not is_own(name):
        raise ValueError(f"unknown name '{name}'{near(name, OBJECTIVES)}")
    return name


class SizeStage(Section):
    """Steps that learn blocks of another size than the model's own."""

    size: Length
    """Tokens of a block."""
    steps: Count
    """How long."""


class ObjectiveOptions(Section):
    """What is minimised."""

    name: Annotated[str, pydantic.AfterValidator(_objective_name)] = "masked"
    """Masked cross-entropy in whole rows or in blocks, any noise's bound, or next tokens."""
    options: dict[str, bool | int | float | str] = {}
    """Of an objective of your own, package.module:Name: what it is made with, by name."""
    times: Literal["systematic", "stratified", "independent"] = "systematic"
    """How the noise times of a step are spread."""
    selection: Choice | None = None
    """Of masked and block: exact_k (none) or bernoulli, with its options."""
    weight: Choice | None = None
    """Of masked and block: bound (none), constant, clipped or cart, with its options."""
    complementary: bool = False
    """Of masked and block: every row twice, the second time with the other tokens masked."""
    search_steps: Steps = 0
    """Of masked and block: steps between searches for an interval of mask rates; 0: never."""
    source_dropout: Share = 0.0
    """Share of rows that do not see their source, for guidance."""
    curriculum: tuple[SizeStage, ...] = ()
    """Of block: sizes and steps that come before model.block_size."""
    next_token_steps: Steps = 0
    """First steps that learn next tokens instead, with the same weights."""


class TrainOptions(Section):
    """The steps: how many, how large, how far."""

    max_steps: Count = 10_000
    """Steps of the whole run; may be raised to go on."""
    batch_size: Count = 64
    """Rows of a step, over all processes."""
    gradient_accumulation_steps: Count = 1
    """Parts that a step's rows are read in, one after another."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """Muon for the matrices in the blocks and AdamW for the rest, or AdamW for everything."""
    learning_rate: Positive = 0.02
    """Of the matrices in the blocks; AdamW: of everything."""
    adam_learning_rate: Positive | None = None
    """Of the rest under Muon; none: 3e-3."""
    adam_beta1: Share = 0.9
    """AdamW's memory of gradients."""
    adam_beta2: Share = 0.95
    """AdamW's memory of their squares."""
    adam_epsilon: Positive = 1e-8
    """Added to AdamW's denominator."""
    momentum: Share = 0.95
    """Muon's."""
    weight_decay: NotNegative = 0.0
    """Of the matrices in the blocks only."""
    max_grad_norm: NotNegative = 1.0
    """Longer gradients are shortened to it; 0: never."""
    lr_scheduler_type: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_steps: Steps = 100
    """First steps, in which the learning rate rises."""
    decay_steps: Count | None = None
    """Of wsd: last steps, in which it falls; none: a fifth of max_steps."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """What is left of the peak at the last step."""
    ema_decay: Share = 0.0
    """Of an average of the weights, which is then the model; 0: none is kept."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the network's products; auto: bf16 where the device multiplies it faster."""
    gradient_checkpointing: bool = False
    """Activations are computed again instead of kept: less memory, more time."""
    torch_compile: bool = False
    """Blocks are compiled: faster steps, tens of seconds at the start."""
    device: str = "auto"
    """cpu, cuda, mps, ...; auto: the best there is."""
    parallel: Literal["replicate", "shard"] = "replicate"
    """Of several processes: all weights in each (DDP), or a part in each (FSDP2)."""
    dataloader_num_workers: Steps = 0
    """Processes that read rows ahead."""
    save_steps: Count = 1_000
    """Steps between checkpoints."""
    save_total_limit: Count = 2
    """Newest checkpoints that are kept, beside the best model."""


class EvaluateOptions(Section):
    """The held-out bound that decides which weights are best."""

    eval_steps: Steps = 500
    """Steps between evaluations; 0: never."""
    rows: Count = 256
    """First rows of the validation split."""
    batch_size: Count = 32
    """Rows of one pass."""
    early_stopping_patience: Steps = 0
    """Evaluations without a better one before the run ends; 0: it goes on."""


class SampleOptions(Section):
    """Texts written while training; the same prompts and seed every time."""

    sample_steps: Steps = 0
    """Steps between texts; 0: never."""
    prompts: Annotated[tuple[str, ...], pydantic.BeforeValidator(_listed)] = ("",)
    """What they go on from."""
    sources: Annotated[tuple[str, ...], pydantic.BeforeValidator(_listed)] = ()
    """Of pairs: what they are written from."""
    length: Length | None = None
    """New tokens; none: the rest of a row."""
    num_steps: Count | None = 64
    """Denoising steps; none: one for every new token."""
    temperature: NotNegative = 1.0
    """0: the most likely token."""


class LogOptions(Section):
    """Where numbers go, besides metrics.jsonl and metrics.csv."""

    logging_steps: Count = 10
    """Steps between records."""
    report_to: Annotated[
        tuple[Literal["png", "tensorboard", "wandb"], ...], pydantic.BeforeValidator(_listed)
    ] = ()
    """png, tensorboard, wandb."""
    run_name: str | None = None
    """In Weights & Biases; none: the output folder's name."""
    project: str = "sfumato"
    """In Weights & Biases."""


class Run(Section):
    """A whole run; `run_file.load_run` makes one, `run_file.dump_run` writes it."""

    output: Place
    """Folder of checkpoints, metrics and the model."""
    seed: Seed = 0
    """Of everything that is drawn."""
    overwrite: bool = False
    """Replace another run in the folder; a run of the same settings goes on."""
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
        for name, rows in (("train", train.batch_size), ("evaluate", self.evaluate.batch_size)):
            if rows * self.data.length > MOST:
                raise ValueError(
                    f"{name}.batch_size {rows} rows of data.length {self.data.length} are "
                    f"{rows * self.data.length:,} tokens, expected at most {MOST:,}; make one of "
                    "them smaller"
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
