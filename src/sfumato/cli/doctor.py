"""`sfumato doctor`: what is installed, which device is used, and what is missing."""

import typer


def doctor() -> None:
    """Say what is installed, which device is used, and what is missing."""
    from sfumato.doctor import examine

    colours = {"ok": "green", "note": "yellow", "missing": "red"}
    whole = True
    for finding in examine():
        state = typer.style(f"{finding.state:8}", fg=colours[finding.state])
        typer.echo(f"{state} {finding.name:15} {finding.detail}")
        whole = whole and finding.state != "missing"
    raise typer.Exit(0 if whole else 1)
