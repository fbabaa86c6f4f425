"""The command line, one file a group of commands. Only these files print.

Texts and results go to standard output, everything about them to standard error. All that is heavy
is imported inside the command that needs it, so that `--help` answers at once.
"""

import errno
import os
import sys
from typing import Annotated, NoReturn

import typer

from sfumato.cli import calibrate, data, doctor, evaluate, generate, init, train
from sfumato.cli.output import outlets, tell
from sfumato.errors import SfumatoError

app = typer.Typer(
    help="Diffusion language models: write, train, prove and evaluate them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
tokenizer_app = typer.Typer(help="Make tokenizers.", no_args_is_help=True)
data_app = typer.Typer(help="Prepare text for training.", no_args_is_help=True)
app.command()(generate.generate)
app.add_typer(tokenizer_app, name="tokenizer")
tokenizer_app.command("train")(data.tokenizer_train)
app.add_typer(data_app, name="data")
data_app.command("prepare")(data.data_prepare)
app.command()(init.init)
app.command(context_settings=train.SETTINGS)(train.train)
app.command()(evaluate.evaluate)
app.command()(calibrate.calibrate)
app.command()(doctor.doctor)


def main() -> NoReturn:
    """Run a command; a user's mistake is one line and exit code 1, an interrupt is 130."""
    with outlets() as out:
        code = _run()
        out.flush()
        if out.error is not None and not out.is_log:
            code = code or 1
            if out.error.errno != errno.EPIPE:  # a reader that went away wants no more
                tell(f"error: cannot write to standard output: {out.error.strerror}", "error")
    sys.exit(code)


def _run() -> int | str | None:
    """What a command exits with."""
    try:
        app()
    except SystemExit as end:
        return end.code
    except KeyboardInterrupt:  # before a command has begun, or after its end
        tell("interrupted")
        return 130
    except SfumatoError as error:
        tell(f"error: {error}", "error")
    except OSError as error:  # a full disk, a folder without permission
        place = f"{error.filename}: " if error.filename else ""
        tell(f"error: {place}{error.strerror or error}", "error")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        smaller = "fewer or shorter rows at a time, or a smaller model"
        tell(f"error: out of memory; try {smaller}", "error")
    return 1


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
    # what fails is said once and in our words; read before these libraries are first imported
    for library in ("TRANSFORMERS", "HF_HUB", "DATASETS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    for bars in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        os.environ.setdefault(bars, "1")
