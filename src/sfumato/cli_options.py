"""Options of the command line in groups: a dataclass each, so that a command takes a few values.

A field's annotation is what `--help` says of it.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.errors import ConfigError

MODEL = "Folder, hub name, or one that comes with sfumato: 'stories', 'stories-infill'."
STEP_NAMES = (
    "ancestral, first_hitting, random, left_to_right, confidence, probability, margin, entropy, "
    "threshold, factor, entropy_bound, klass, remask_cap, remask_rescale, remask_confidence, "
    "remask_loop, wino"
)
ModelOption = Annotated[str, typer.Option("--model", "-m", help=MODEL)]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
LimitOption = Annotated[int | None, typer.Option(help="Documents, at most.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose groups' fields are options of its own: typer reads the signature."""
    parameters = inspect.signature(command).parameters
    kinds = {name: p.annotation for name, p in parameters.items()}
    groups = {n: kind for n, kind in kinds.items() if isinstance(kind, type) and is_dataclass(kind)}
    flat: list[inspect.Parameter] = []
    for name, parameter in parameters.items():
        if name in groups:
            flat += [_parameter(f.name, f.default, f.type) for f in fields(groups[name])]
        else:
            flat.append(_parameter(name, parameter.default, parameter.annotation))

    @functools.wraps(command)
    def called(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{f.name: values.pop(f.name) for f in fields(group)})
        command(**values)

    called.__signature__ = inspect.Signature(flat)  # pyright: ignore[reportAttributeAccessIssue]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return called


def _parameter(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


@dataclass(frozen=True)
class Writing:
    """How text is written: `GenerationOptions` that differ from the model's own, by their names."""

    length: Annotated[
        int | None, typer.Option(help="New tokens; none: the rest of the canvas.")
    ] = None
    grow: Annotated[
        int | None,
        typer.Option(help="Begin with so many, and add more, up to --length, until it ends."),
    ] = None
    grow_options: Annotated[
        list[str] | None,
        typer.Option("--grow-option", help="Of growing, such as enough=0.6; repeatable."),
    ] = None
    num_steps: Annotated[
        int | None,
        typer.Option(
            "--num-steps", "--steps", help="Steps; none: the model's own, or one a new token."
        ),
    ] = None
    step: Annotated[
        str | None, typer.Option(help=f"Step rule: {STEP_NAMES}. None: the model's own.")
    ] = None
    step_options: Annotated[
        list[str] | None,
        typer.Option("--step-option", help="The rule's own, such as level=0.8; repeatable."),
    ] = None
    guidance: Annotated[
        float | None, typer.Option(help="Above 0: further towards the source or the prompt.")
    ] = None
    temperature: Annotated[float | None, typer.Option("--temperature", "-t", help="0: greedy.")] = (
        None
    )
    top_k: Annotated[int | None, typer.Option(help="Keep the k likeliest tokens.")] = None
    top_p: Annotated[float | None, typer.Option(help="Keep the nucleus of this mass.")] = None
    min_p: Annotated[
        float | None, typer.Option(help="Keep tokens at least this share as likely as the best.")
    ] = None
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: repeat less.")] = None
    suppress: Annotated[
        list[int] | None, typer.Option(help="Id of a token never to write; repeatable.")
    ] = None
    block: Annotated[int | None, typer.Option(help="Decode in blocks of this size.")] = None
    lookahead: Annotated[
        bool | None, typer.Option(help="A block sees what follows it.", show_default="lookahead")
    ] = None
    approx_cache: Annotated[
        str | None,
        typer.Option(help="prefix or dual: read what is around a block once. Not exact."),
    ] = None
    approx_refresh: Annotated[int | None, typer.Option(help="Or once in so many steps.")] = None
    seed: Annotated[int | None, typer.Option(help="The same seed writes the same text.")] = None
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32 or bf16: how the network computes.")
    ] = None
    torch_compile: Annotated[
        bool | None,
        typer.Option(help="Faster passes for one text at a time; tens of seconds at first."),
    ] = None
    regex: Annotated[
        str | None, typer.Option(help="All new text (with --infill: of each gap) matches it.")
    ] = None
    json_schema: Annotated[
        str | None, typer.Option(help="It is JSON, valid under this schema: a file, or the schema.")
    ] = None
    choices: Annotated[
        list[str] | None, typer.Option("--choices", help="It is this text or another; repeatable.")
    ] = None

    def changes(self) -> dict[str, Any]:
        """Those that were given, as `GenerationOptions` have them."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        given |= {
            "grow_options": _pairs(self.grow_options or []),
            "step_options": _pairs(self.step_options or []),
            "suppress": tuple(self.suppress or ()),
            "choices": tuple(self.choices or ()),
            "json_schema": None if self.json_schema is None else _schema(self.json_schema),
        }
        return {name: value for name, value in given.items() if value not in (None, {}, ())}


def _pairs(texts: list[str]) -> dict[str, float]:
    """["level=0.8"] -> {"level": 0.8}; whole numbers stay whole."""
    values: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise ConfigError(f"expected name=number, such as level=0.8, got '{text}'") from None
        values[name] = int(number) if number.is_integer() and "." not in value else number
    return values


def _schema(text: str) -> str:
    """A schema as it is, or what the file of that name holds."""
    if text.lstrip().startswith(("{", "[")):
        return text
    try:
        return Path(text).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(
            f"cannot read the JSON schema {text}: {reason}; give a file, or a schema in {{...}}"
        ) from None


@dataclass(frozen=True)
class Showing:
    """Where text goes while it is written, and how it is told."""

    live: Annotated[bool, typer.Option(help="Show the page while it is written.")] = True
    trajectory: Annotated[
        Path | None, typer.Option(help="Write every page to this JSON-lines file.")
    ] = None
    as_json: JsonOption = False


@dataclass(frozen=True)
class Reading:
    """How the documents of a source are found."""

    field: Annotated[str, typer.Option(help="Column or key of the text.")] = "text"
    separator: Annotated[
        str | None, typer.Option(help="Line that ends a document in .txt files.")
    ] = None
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "train"
    config: Annotated[str | None, typer.Option(help="Configuration of a hub data set.")] = None


@dataclass(frozen=True)
class Pairing:
    """How pairs of texts are found, where pairs are wanted."""

    source_field: Annotated[
        str | None, typer.Option(help="For pairs: column or key of what is written from.")
    ] = None
    target_field: Annotated[str | None, typer.Option(help="And of what is written.")] = None
    pairs: Annotated[
        str | None, typer.Option(help="Or: 'first-sentence' writes the rest of a text from it.")
    ] = None
    skip_empty: Annotated[
        bool, typer.Option("--skip-empty", help="Count pairs with an empty side; don't fail.")
    ] = False

    @property
    def wanted(self) -> bool:
        """Whether pairs are to be made, and not documents."""
        fields = self.source_field is not None or self.target_field is not None
        if self.pairs not in (None, "first-sentence"):
            raise ConfigError(f"unknown --pairs '{self.pairs}'; known: first-sentence")
        if self.pairs is not None and fields:
            raise ConfigError("--pairs cuts one field; leave out --source-field, --target-field")
        if self.skip_empty and not (fields or self.pairs):
            raise ConfigError(
                "--skip-empty is for pairs: name --source-field and --target-field, or --pairs"
            )
        return fields or self.pairs is not None


@dataclass(frozen=True)
class Tokens:
    """The tokenizer that text is prepared with."""

    tokenizer: Annotated[str | None, typer.Option(help="Folder or hub name of one.")] = None
    add_mask_token: Annotated[bool, typer.Option(help="If it has none.")] = False
    eos_token: Annotated[
        str | None, typer.Option(help="What ends a document, if it says nothing of it.")
    ] = None
    vocab_size: Annotated[
        int | None, typer.Option(help="Or: train one of this size.", show_default="8192")
    ] = None


@dataclass(frozen=True)
class Measuring:
    """What is measured: `EvaluateOptions`, by their names."""

    rows: Annotated[int, typer.Option(help="Held-out texts or rows, at most.")] = 256
    num_samples: Annotated[int, typer.Option(help="Random maskings of each row.")] = 8
    exact: Annotated[
        bool, typer.Option(help="Also the exact likelihood under the step rule (slow).")
    ] = False
    step: Annotated[
        str | None, typer.Option(help="Step rule of --exact (none: margin) and of the texts.")
    ] = None
    num_steps: Annotated[int | None, typer.Option("--num-steps", "--steps", help="Its steps.")] = (
        None
    )
    temperature: Annotated[float | None, typer.Option(help="Its temperature.")] = None
    shuffled: Annotated[
        bool, typer.Option("--shuffled", help="Of pairs, also given another row's source.")
    ] = False
    judge: Annotated[
        str | None, typer.Option(help="Causal model that judges generated texts, by path.")
    ] = None
    num_texts: Annotated[int, typer.Option(help="Texts to generate for the judge.")] = 64
    seed: Annotated[int, typer.Option(help="Of maskings and texts.")] = 0


@dataclass(frozen=True)
class Calibrating:
    """What is compared: `CalibrateOptions`, by their names."""

    tolerance: Annotated[
        float, typer.Option(help="Nats a token that may be lost; 0.05 is 5 % of perplexity.")
    ] = 0.05
    confidence: Annotated[float, typer.Option(help="That no more is lost.")] = 0.9
    rows: Annotated[int, typer.Option(help="Held-out texts to measure the loss on.")] = 128
    num_texts: Annotated[
        int, typer.Option(help="Texts to write with every setting, for the clock and the judge.")
    ] = 4
    step: Annotated[
        list[str] | None,
        typer.Option(
            help="Rule, or a rule with values from safe to bold: threshold=0.9,0.7. Repeatable.",
            show_default="threshold, factor, entropy_bound, probability",
        ),
    ] = None
    num_steps: Annotated[
        list[int] | None,
        typer.Option(
            "--num-steps", help="Of rules without values, from most to least; repeatable."
        ),
    ] = None
    block: Annotated[
        list[int] | None,
        typer.Option(help="Block sizes, repeatable.", show_default="the model's, or 8, 16, 32"),
    ] = None
    reference: Annotated[
        str, typer.Option(help="One token a pass by probability, margin, entropy or left_to_right.")
    ] = "probability"
    test: Annotated[str, typer.Option(help="betting or hoeffding_bentkus.")] = "betting"
    judge: Annotated[
        str | None, typer.Option(help="Causal model that judges written texts, by path.")
    ] = None
    seed: Annotated[int, typer.Option(help="Of the texts drawn, and of those written.")] = 0

    def options(self) -> dict[str, Any]:
        """As `CalibrateOptions` have them."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return given | {key: tuple(given[key] or ()) for key in ("step", "num_steps", "block")}
