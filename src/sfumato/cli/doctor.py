"""`sfumato doctor`: what is installed and what is missing, or whether a model's folder is whole."""

import sys
from typing import Annotated

import typer

from sfumato.cli.output import shows_colours


def doctor(
    model: Annotated[
        str | None, typer.Argument(help="Check this model's folder, byte by byte, instead.")
    ] = None,
) -> None:
    """Say what is installed, which device is used, what is missing; or what is wrong with a model.

    Exit code 1 if something is missing or at fault.
    """
    if model is None:
        from sfumato.doctor import examine

        findings = examine()
    else:
        from sfumato.model_doctor import examine_model

        findings = examine_model(model)
    whole = True
    for finding in findings:
        state = f"{finding.state:8}"
        if finding.state in ("missing", "fault") and shows_colours(sys.stdout):
            state = typer.style(state, fg="red")
        typer.echo(f"{state} {finding.name:15} {finding.detail}")
        whole = whole and finding.state not in ("missing", "fault")
    raise typer.Exit(0 if whole else 1)
