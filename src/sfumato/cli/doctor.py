"""`sfumato doctor`: what is installed and what is missing, or whether a folder is whole."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.output import shows_colours

if TYPE_CHECKING:
    from sfumato.doctor.installation import Finding


def _findings(folder: str | None) -> "Iterator[Finding]":
    """What there is to tell of this installation, of prepared data or of a model."""
    if folder is None:
        from sfumato.doctor.installation import examine

        return examine()
    from sfumato.doctor.data import examine_data, is_of_data

    if is_of_data(folder):
        return examine_data(folder)
    from sfumato.doctor.model import examine_model

    return examine_model(folder)


def doctor(
    folder: Annotated[
        str | None,
        typer.Argument(help="Check this model, or these prepared data, byte by byte, instead."),
    ] = None,
) -> None:
    """Say what is installed, which device is used, what is missing; or what is wrong in a folder.

    Exit code 1 if something is missing or at fault.
    """
    findings = _findings(folder)
    whole = True
    for finding in findings:
        state = f"{finding.state:8}"
        if finding.state in ("missing", "fault") and shows_colours(sys.stdout):
            state = typer.style(state, fg="red")
        typer.echo(f"{state} {finding.name:15} {finding.detail}")
        whole = whole and finding.state not in ("missing", "fault")
    raise typer.Exit(0 if whole else 1)
