"""`sfumato train`: a run file to a model."""

import signal
from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.output import keep_as_log, tell
from sfumato.cli.terminal import open_console, show_status
from sfumato.errors import ConfigError

# what follows the run file is keys, KEY=VALUE, for `load_run` to read
SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def train(
    context: typer.Context,
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN [KEY=VALUE]...",
            help="A YAML or JSON run file, and keys that differ from it. sfumato init writes one.",
            show_default=False,
        ),
    ] = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="List every key, or those of a section: --keys train.")
    ] = False,
) -> None:
    """Train a model: sfumato train RUN.yaml train.max_steps=500 ...

    Sections of keys: data, model, corruption, objective, train, evaluate, samples, log.
    """
    if keys:
        _tell_keys(None if run is None else str(run))
        return
    if run is None:
        raise typer.BadParameter("give a run file; sfumato init DATA writes one", param_hint="RUN")
    if "=" in run.name and not run.exists():
        raise ConfigError(f"give a run file before {run}; sfumato init DATA writes one")
    with show_status("starting"):
        from accelerate.utils import get_cpu_distributed_information

        from sfumato.train import load_run, training
        from sfumato.train.stages import stages

        wanted = load_run(run, context.args)
    from sfumato.cli.training_view import Signals, show
    from sfumato.train.events import Interrupted

    keep_as_log()
    screen = open_console(quiet=get_cpu_distributed_information().rank != 0)  # of many one prints
    try:
        with Signals() as stop:
            last = show(training(wanted, stop), screen, wanted.log.logging_steps, stages(wanted))
    except KeyboardInterrupt:
        tell("interrupted; give the same command again to go on")
        raise typer.Exit(130) from None
    if isinstance(last, Interrupted):
        raise typer.Exit(128 + (stop.number or signal.SIGTERM))  # it may have come to another one


def _tell_keys(section: str | None) -> None:
    from sfumato.cli.keys import sections, told

    for name in sections() if section is None else [section]:
        typer.echo("\n".join(told(name)))
