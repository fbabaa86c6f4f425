"""What options of several commands have in common.

Options come in groups, a dataclass each, so that a command takes a few values. A field's annotation
is what `--help` says of it.
"""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any

import typer

MODEL = "Folder, hub name, or one that comes with sfumato: 'stories', 'stories-infill'."
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
class Reading:
    """How the documents of a source are found."""

    field: Annotated[str, typer.Option(help="Column or key of the text.")] = "text"
    separator: Annotated[
        str | None, typer.Option(help="Line that ends a document in .txt files: docs/data.md.")
    ] = None
    split: Annotated[str, typer.Option(help="Split of a hub data set.")] = "train"
    config: Annotated[str | None, typer.Option(help="Configuration of a hub data set.")] = None
