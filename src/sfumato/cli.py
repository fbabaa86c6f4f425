"""The command line: one function a command. Only this file prints.

Texts and results go to standard output, everything about them to standard error. All that is heavy
is imported inside the command that needs it, so that `--help` answers at once.
"""

import json
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from sfumato.cli_options import (
    MODEL,
    Calibrating,
    DeviceOption,
    JsonOption,
    LimitOption,
    Measuring,
    Pairing,
    Reading,
    Showing,
    Tokens,
    Writing,
    grouped,
)
from sfumato.errors import ConfigError, DataError, SfumatoError
from sfumato.folders import STORIES, STORIES_INFILL

if TYPE_CHECKING:
    from rich.console import Console

    from sfumato.data.sources import Source
    from sfumato.pages import Page, Reader, Task
    from sfumato.pipeline import DiffusionLM

app = typer.Typer(
    help="Diffusion language models: write, train, prove and evaluate them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
tokenizer_app = typer.Typer(help="Make tokenizers.", no_args_is_help=True)
data_app = typer.Typer(help="Prepare text for training.", no_args_is_help=True)
app.add_typer(tokenizer_app, name="tokenizer")
app.add_typer(data_app, name="data")


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


@app.command()
@grouped
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to go on from; none: from nothing.")] = "",
    *,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help=MODEL,
            show_default="stories; stories-infill for --infill and --grow",
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Text to write from, for a model trained on pairs.")
    ] = None,
    infill: Annotated[
        str | None, typer.Option(help="Fill the gaps (____) of this text instead.")
    ] = None,
    gap_length: Annotated[
        str | None,
        typer.Option(help="Tokens a gap; 2-12 or auto: the model chooses.", show_default="16"),
    ] = None,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", help="Texts to write.")] = 1,
    writing: Writing,
    showing: Showing,
    device: DeviceOption = "auto",
) -> None:
    """Write text, live in the terminal as it emerges from noise."""
    changes = writing.changes()
    if prompt and infill is not None:
        raise ConfigError("give a prompt or --infill, not both")
    if infill is None and gap_length is not None:
        raise ConfigError("--gap-length is for --infill; the length of a new text is --length")
    whole = infill is not None or writing.grow is not None  # needs full attention
    model = model or (STORIES_INFILL if whole else STORIES)
    lm = _load(model, device)
    begin = time.perf_counter()
    if infill is None:
        task = lm.start(prompt, source=source, num_samples=num_samples, **changes)
    else:
        gaps = {} if gap_length is None else {"gap_length": gap_length}
        task = lm.start_infill(infill, source=source, num_samples=num_samples, **gaps, **changes)
    screen = _console()
    coloured = showing.live and not showing.as_json and screen.is_terminal
    last = _write(lm, task, showing.trajectory, screen if coloured else None)
    result, seconds = lm.finish(last), time.perf_counter() - begin
    if showing.as_json:
        facts = {"model": model, "seconds": round(seconds, 3)}
        typer.echo(json.dumps(facts | result.as_dict(), ensure_ascii=False))
        return
    for row, text in enumerate(result.full_texts):
        if coloured:
            from sfumato.live import paint

            screen.print(paint(lm.reader, last, row), end="\n\n")
        else:
            typer.echo(text)
    count = sum(map(len, result.tokens))
    told = f"{result.num_steps} steps, {count} tokens, {seconds:.1f} s, seed {result.seed}"
    typer.secho(told, dim=True, err=True)


def _write(
    lm: "DiffusionLM", task: "Task", trajectory: Path | None, screen: "Console | None"
) -> "Page":
    """Write a task to its last page: into the trajectory and on the screen, if there are any."""
    pages = lm.run(task)
    if trajectory is not None:
        pages = _traced(lm.reader, pages, trajectory)
    if screen is not None:
        from sfumato.live import watch

        pages = watch(lm.reader, pages, screen)
    return deque(pages, maxlen=1)[0]


@tokenizer_app.command("train")
@grouped
def tokenizer_train(
    source: Annotated[str, typer.Argument(help="File, folder, or hub data set.")],
    out: Annotated[Path, typer.Argument(help="Folder for the tokenizer.")],
    reading: Reading,
    vocab_size: Annotated[int, typer.Option(help="Tokens, special ones included.")] = 8192,
    limit: LimitOption = None,
) -> None:
    """Learn a byte-level BPE tokenizer."""
    from sfumato.data.text import TRAINING_CHARACTERS
    from sfumato.data.tokenizer import save_tokenizer, train_tokenizer

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is there already; give a new or an empty folder")
    wanted = _source(source, reading, limit=limit)
    with _status("learning"):
        tokenizer = train_tokenizer(wanted.sample(TRAINING_CHARACTERS), vocab_size)
    save_tokenizer(tokenizer, out)
    fewer = f", not {vocab_size:,}: there is little text" if len(tokenizer) < vocab_size else ""
    typer.echo(f"{len(tokenizer):,} tokens{fewer}: {out}")


@data_app.command("prepare")
@grouped
def data_prepare(
    source: Annotated[str, typer.Argument(help="File, folder, or hub data set.")],
    out: Annotated[Path, typer.Argument(help="Folder for the prepared data.")],
    tokens: Tokens,
    reading: Reading,
    pairing: Pairing,
    validation: Annotated[float, typer.Option(help="Share of the text to hold out.")] = 0.05,
    streaming: Annotated[bool, typer.Option(help="Stream a hub data set.")] = True,
    limit: LimitOption = None,
    workers: Annotated[int | None, typer.Option(help="Threads; none: one a core.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Tokenize text into memory-mapped files. Run it again after a kill and it goes on."""
    from sfumato.data.pairs import Pairs, prepare_pairs
    from sfumato.data.text import prepare
    from sfumato.data.tokenizer import load_tokenizer

    for option, given in (
        ("--add-mask-token", tokens.add_mask_token),
        ("--eos-token", tokens.eos_token is not None),
    ):
        if given and tokens.tokenizer is None:
            raise ConfigError(f"{option} is for a tokenizer given by --tokenizer")
    vocab_size, tokenizer = tokens.vocab_size, None
    if tokens.tokenizer is None and vocab_size is None:
        vocab_size = 8192
    wanted = _source(source, reading, streaming=streaming, limit=limit)
    fields = (pairing.source_field, pairing.target_field)
    pairs = Pairs(wanted, *fields, pairing.skip_empty) if pairing.wanted else None
    with _status("reading", "give the same command again to go on") as tell:
        if tokens.tokenizer is not None:
            tokenizer = load_tokenizer(
                tokens.tokenizer, add_mask_token=tokens.add_mask_token, eos_token=tokens.eos_token
            )
        common: dict[str, Any] = {
            "vocab_size": vocab_size,
            "validation": validation,
            "workers": workers,
            "progress": lambda p: tell(f"{p.documents:,} documents, {p.tokens:,} tokens"),
        }
        if pairs is None:
            facts = prepare(wanted, out, tokenizer, **common).facts
        else:
            both = prepare_pairs(pairs, out, tokenizer, **common)
            sides = {"sources": both.sources.facts, "targets": both.targets.facts}
            facts = {**both.facts, **sides}
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    if pairs is None:
        _tell_splits(facts)
    else:
        for side in ("sources", "targets"):
            _tell_splits(facts[side], f"{side}, ")
        for reason, count in facts["skipped"].items():
            typer.echo(f"skipped: {count:,} with {reason}")
        facts = facts["targets"]
    typer.echo(f"{facts['tokenizer']['vocab_size']:,} tokens in the vocabulary: {out}")


def _tell_splits(facts: dict[str, Any], side: str = "") -> None:
    for name, counts in facts["splits"].items():
        lengths = counts["lengths"]
        typer.echo(
            f"{side}{name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, "
            f"{counts['bytes_per_token']:.2f} bytes a token"
            + (f", {lengths['p50']:,} tokens in the median document, " if lengths else "")
            + (f"{lengths['p100']:,} in the longest" if lengths else "")
        )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(help="A YAML or JSON run file.")],
) -> None:
    """Train a model: sfumato train RUN.yaml train.max_steps=500 ..."""
    with _status("starting"):
        from accelerate.utils import get_cpu_distributed_information

        from sfumato.train import load_run
        from sfumato.train.trainer import train as events

        wanted = load_run(run, context.args)
    from sfumato.train.events import Interrupted
    from sfumato.training_view import Signals, show

    screen = _console(quiet=get_cpu_distributed_information().rank != 0)  # of many one prints
    try:
        with Signals() as stop:
            last = show(events(wanted, stop), screen, wanted.log.logging_steps)
    except KeyboardInterrupt:
        typer.echo("interrupted; give the same command again to go on", err=True)
        raise typer.Exit(130) from None
    if isinstance(last, Interrupted):
        raise typer.Exit(128 + (stop.number or signal.SIGTERM))  # it may have come to another one


@app.command()
@grouped
def evaluate(
    model: Annotated[str, typer.Argument(help=MODEL)],
    data: Annotated[str, typer.Argument(help="Prepared folder, or texts as for data prepare.")],
    measuring: Measuring,
    reading: Reading,
    out: Annotated[Path | None, typer.Option(help="Write the whole record, as JSON.")] = None,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Measure a model: likelihood bound, accuracy and, with a judge, its texts."""
    with _status("starting"):
        from sfumato.evals.evaluate import EvaluateOptions
        from sfumato.evals.evaluate import evaluate as measure
        from sfumato.evals.record import write

    options = EvaluateOptions(**asdict(measuring))
    source = _source(data, reading)
    lm = _load(model, device)
    with _status("reading") as tell:
        record = measure(lm, source, options, model_name=model, progress=tell)
    if as_json:
        typer.echo(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        typer.echo("\n".join(_summary(record["results"])))
    if out is not None:
        write(record, out)


@app.command()
@grouped
def calibrate(
    model: Annotated[str, typer.Argument(help=MODEL)],
    data: Annotated[str, typer.Argument(help="Prepared folder, or texts as for data prepare.")],
    calibrating: Calibrating,
    reading: Reading,
    out: Annotated[
        Path | None, typer.Option(help="Leave the model as it is, and make a copy here.")
    ] = None,
    plot: Annotated[bool, typer.Option(help="Draw the frontier, calibration.png.")] = True,
    as_json: JsonOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Find the fastest decoding whose loss of quality is within a tolerance; make it the model's.

    Writes calibration.json and calibration.png beside the model's generation_config.json.
    """
    from sfumato.calibration_view import PICTURE, RECORD, copy_model, show, target

    folder = target(model, out)
    with _status("starting"):
        from sfumato.evals.calibrate import CalibrateOptions, write_chosen
        from sfumato.evals.calibrate import calibrate as measure
        from sfumato.evals.frontier import draw, figure_class
        from sfumato.evals.record import write

    options = CalibrateOptions(**calibrating.options())
    if plot:
        figure_class()
    lm = _load(model, device)
    left = "nothing was changed. Fewer --rows or --step take less"
    with _status("starting", left) as tell:
        made = measure(lm, _source(data, reading), options, model_name=model, progress=tell)
    chosen = made["results"]["chosen"] is not None
    if chosen and out is not None:
        copy_model(model, folder)
    write(made, folder / RECORD)
    if plot:
        draw(made, folder / PICTURE)
    if chosen:
        write_chosen(made, folder)
    if as_json:
        typer.echo(json.dumps(made, indent=2, ensure_ascii=False))
        return
    show(made, _console(width=None if sys.stdout.isatty() else 120))  # whole lines in a file
    done = f"{folder} decodes so from now on" if chosen else f"{folder}: nothing is changed"
    typer.echo(f"{done}; the record is in {folder / RECORD}")


@app.command()
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


# --- what commands share ---


def _console(**options: Any) -> "Console":
    from rich.console import Console

    return Console(**options)


@contextmanager
def _status(
    begin: str, interrupted: str = "nothing was changed"
) -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what is being done, where it is seen; after Ctrl-C, what
    is left behind."""
    screen = _console(stderr=True)
    try:
        if screen.is_terminal:
            with screen.status(begin) as status:
                yield status.update
        else:
            yield lambda doing: None
    except KeyboardInterrupt:
        typer.echo(f"interrupted; {interrupted}", err=True)
        raise typer.Exit(130) from None


def _load(name: str, device: str) -> "DiffusionLM":
    with _status("loading the model"):
        from transformers.utils import logging

        from sfumato.pipeline import DiffusionLM

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        _quiet_hub()
        return DiffusionLM.from_pretrained(name, device=device)


def _quiet_hub() -> None:
    """What fails is said in the end, in one line, and not at every attempt before."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()


def _source(name: str, reading: Reading, **options: Any) -> "Source":
    """A source; the separator may spell a line end as \\n."""
    from sfumato.data.sources import Source

    _quiet_hub()
    if reading.separator is not None:
        options["separator"] = reading.separator.replace("\\n", "\n")
    return Source(name, field=reading.field, split=reading.split, config=reading.config, **options)


def _traced(reader: "Reader", pages: Iterator["Page"], path: Path) -> Iterator["Page"]:
    """Write every page as one line of JSON while it passes by."""
    try:
        with path.open("w", encoding="utf-8") as file:
            for page in pages:
                record = {
                    "step": page.step,
                    "texts": [reader.show(page, row) for row in range(len(page.task.rows))],
                    "tokens": page.canvas.tokens.tolist(),
                    "decided": page.decided.tolist(),
                }
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                yield page
    except OSError as error:
        raise DataError(f"cannot write the trajectory to {path}: {error.strerror}") from error


def _summary(results: dict[str, Any]) -> list[str]:
    """What `evaluate` found, in a few lines."""

    def number(estimate: dict[str, float], digits: int) -> str:
        return f"{float(estimate['value']):.{digits}f} +- {float(estimate['error']):.{digits}f}"

    lines = []
    for key in ("likelihood", "exact_likelihood", "shuffled_likelihood"):
        if key in results:
            found = results[key]
            lines += [
                f"{key.replace('_', ' ')}, {found['estimator']}:",
                f"  {number(found['nats_per_token'], 4)} nats a token",
                f"  {number(found['bits_per_byte'], 4)} bits a byte",
                f"  {number(found['perplexity'], 2)} perplexity",
                f"  {found['accuracy']:.1%} right of the {found['accuracy_of']}",
                f"  {results['rows']:,} rows, {found['tokens']:,} tokens, {found['bytes']:,} bytes",
            ]
    if "nats_from_source" in results:
        told = number(results["nats_from_source"], 4)
        lines.append(f"  {told} nats a token more than with the right source, on the same draws")
    for key in ("generated", "held_out") if "texts" in results else ():
        found = results["texts"][key]
        distinct = ", ".join(f"{float(share):.3f}" for share in found["distinct"].values())
        lines += [
            f"{found['texts']} {key.replace('_', ' ')} texts, judged by {found['judge']['model']}:",
            f"  {number(found['perplexity'], 2)} generative perplexity",
            f"  {float(found['entropy']):.3f} nats of entropy, {distinct} distinct 1-, 2-, 3-grams",
            f"  {float(found['bleu']):.2f} BLEU, {float(found['self_bleu']):.2f} Self-BLEU",
        ]
    return lines


if __name__ == "__main__":
    main()
