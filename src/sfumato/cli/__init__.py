"""The command line, one file a group of commands. Only these files print.

Texts and results go to standard output, everything about them to standard error. All that is heavy
is imported inside the command that needs it, so that `--help` answers at once.
"""

import sys
from typing import Annotated, NoReturn

import typer

from sfumato.cli import calibrate, data, doctor, evaluate, generate, train
from sfumato.errors import SfumatoError

app = typer.Typer(
    help="Diffusion language models: write, train, prove and evaluate them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tokenizer_app = typer.Typer(help="Make tokenizers.", no_args_is_help=True)
data_app = typer.Typer(help="Prepare text for training.", no_args_is_help=True)
app.command()(generate.generate)
app.add_typer(tokenizer_app, name="tokenizer")
tokenizer_app.command("train")(data.tokenizer_train)
app.add_typer(data_app, name="data")
data_app.command("prepare")(data.data_prepare)
app.command(context_settings=train.SETTINGS)(train.train)
app.command()(evaluate.evaluate)
app.command()(calibrate.calibrate)
app.command()(doctor.doctor)


def main() -> NoReturn:
    """Run a command; a user's mistake is one line and exit code 1, an interrupt is 130."""
    try:
        app()
    except SfumatoError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
    except OSError as error:  # a full disk, a folder without permission
        place = f"{error.filename}: " if error.filename else ""
        typer.secho(f"error: {place}{error.strerror or error}", fg="red", err=True)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        smaller = "fewer or shorter rows at a time, or a smaller model"
        typer.secho(f"error: out of memory; try {smaller}", fg="red", err=True)
    sys.exit(1)


def _is_out_of_memory(error: Exception) -> bool:
    """On a CPU, PyTorch has only words for it."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(
        error
    )


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("sfumato"))
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version
