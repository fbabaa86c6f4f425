"""Options of `sfumato generate`: how text is written, and where it is shown."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from sfumato.cli.options import JsonOption
from sfumato.errors import ConfigError
from sfumato.storage.files import Remedy, read_text

STEP_NAMES = (
    "ancestral, first_hitting, random, left_to_right, confidence, probability, margin, entropy, "
    "threshold, factor, entropy_bound, klass, remask_cap, remask_rescale, remask_confidence, "
    "remask_loop, wino, wino_published, klass_published"
)


@dataclass(frozen=True)
class Writing:
    """How text is written: `GenerationOptions` that differ from the model's own, by their names."""

    length: Annotated[
        int | None,
        typer.Option(
            "--length", "--max-new-tokens", help="New tokens; none: the rest of the canvas."
        ),
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
        str | None,
        typer.Option(help=f"Step rule: {STEP_NAMES}; or package.module:Rule. None: the model's."),
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
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", help="The text is cut before this, such as \\n; repeatable."),
    ] = None
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
    grammar_states: Annotated[
        int | None, typer.Option(help="States that any of these may need; more take more time.")
    ] = None
    particles: Annotated[
        int | None, typer.Option(help="Canvases a text of a grammar: weighed, one is drawn.")
    ] = None

    def changes(self) -> dict[str, Any]:
        """Those that were given, as `GenerationOptions` have them."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        given |= {
            "grow_options": _pairs(self.grow_options or []),
            "step_options": _pairs(self.step_options or []),
            "suppress": tuple(self.suppress or ()),
            "choices": tuple(self.choices or ()),
            "stop": tuple(each.replace("\\n", "\n") for each in self.stop or ()),
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
    remedy = Remedy(ConfigError, "give the file of a JSON schema, or a schema in {...}")
    return read_text(Path(text), remedy)


@dataclass(frozen=True)
class Showing:
    """Where text goes while it is written, and how it is told."""

    live: Annotated[bool, typer.Option(help="Show the page while it is written.")] = True
    trajectory: Annotated[
        Path | None, typer.Option(help="Write every page to this JSON-lines file.")
    ] = None
    html: Annotated[
        Path | None, typer.Option(help="Write one page of HTML that shows the text as it emerges.")
    ] = None
    log_probs: Annotated[
        bool, typer.Option("--log-probs", help="Of --infill: also log p of what is written.")
    ] = False
    as_json: JsonOption = False
