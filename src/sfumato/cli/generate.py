"""`sfumato generate`: text, live in the terminal as it emerges from noise."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.inputs import load_model, read_texts
from sfumato.cli.options import MODEL, DeviceOption, grouped
from sfumato.cli.output import tell
from sfumato.cli.terminal import is_drawable, open_console
from sfumato.cli.writing import Showing, Writing
from sfumato.errors import ConfigError, DataError
from sfumato.lm.folders import STORIES, STORIES_INFILL

if TYPE_CHECKING:
    from rich.console import Console

    from sfumato.cli.html import Recorder
    from sfumato.decoding.request import Request
    from sfumato.lm.model import DiffusionLM
    from sfumato.lm.pages import Generation, Page, PageReader


@grouped
def generate(
    prompt: Annotated[
        str, typer.Argument(help="Text to go on from; none: from nothing; -: standard input.")
    ] = "",
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
        str | None,
        typer.Option(help="Text to write from, for a model trained on pairs; -: standard input."),
    ] = None,
    infill: Annotated[
        str | None,
        typer.Option(help="Fill the gaps (____) of this text instead; -: of standard input."),
    ] = None,
    gap_length: Annotated[
        str | None,
        typer.Option(help="Tokens a gap; 2-12 or auto: the model chooses.", show_default="16"),
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(help="Of --infill: so many of the likeliest fills, with log p.")
    ] = None,
    num_samples: Annotated[int, typer.Option("--num-samples", "-n", help="Texts to write.")] = 1,
    writing: Writing,
    showing: Showing,
    device: DeviceOption = "auto",
) -> None:
    """Write text, live in the terminal as it emerges from noise."""
    changes = writing.changes()
    _check(prompt, infill, gap_length, candidates, num_samples, showing)
    text, source = read_texts(prompt if infill is None else infill, source)
    whole = infill is not None or writing.grow is not None  # needs full attention
    name = model or (STORIES_INFILL if whole else STORIES)
    lm = load_model(name, device)
    gaps = {} if gap_length is None else {"gap_length": gap_length}
    if candidates is not None:
        found = lm.infill(text, source=source, candidates=candidates, **gaps, **changes)
        _print_candidates(found, name if showing.as_json else None)
        return
    recorder = None
    if showing.html is not None:
        from sfumato.cli.html import Recorder

        recorder = Recorder()
    request = {"source": source, "num_samples": num_samples, **changes}
    request["filters"] = () if recorder is None else (recorder,)
    begin = time.perf_counter()
    start = lm.start if infill is None else partial(lm.start_infill, **gaps)
    _write(lm, name, start(text, **request), showing, recorder, begin)


def _check(
    prompt: str,
    infill: str | None,
    gap_length: str | None,
    candidates: int | None,
    num_samples: int,
    showing: Showing,
) -> None:
    """Raise if arguments do not go together, before a model is loaded."""
    if prompt and infill is not None:
        raise ConfigError("give a prompt or --infill, not both")
    if infill is None and gap_length is not None:
        raise ConfigError("--gap-length is for --infill; the length of a new text is --length")
    if infill is None and candidates is not None:
        raise ConfigError("--candidates are for --infill; give it a text with a gap")
    if infill is None and showing.log_probs:
        raise ConfigError("--log-probs is for --infill; the likelihood of a text is lm.score's")
    stepwise = num_samples != 1 or showing.trajectory is not None or showing.html is not None
    if candidates is not None and stepwise:
        raise ConfigError(
            "candidates are found, not written step by step; leave out --num-samples, "
            "--trajectory and --html"
        )
    if showing.html is not None:
        check_place(showing.html)


def _write(
    lm: "DiffusionLM",
    name: str,
    request: "Request",
    showing: Showing,
    recorder: "Recorder | None",
    begin: float,
) -> None:
    """Write a request, and show it as it is wanted."""
    from sfumato.lm.candidates import fill_log_probs

    screen = open_console()
    coloured = showing.live and not showing.as_json and is_drawable(screen)
    pages = lm.run(request)
    trace = None if showing.trajectory is None else Trace(lm.reader, showing.trajectory)
    if trace is not None:
        pages = trace.written(pages)
    if recorder is not None:
        pages = recorder.recorded(pages)
    if coloured:
        from sfumato.cli.live import watch

        pages = watch(lm.reader, pages, screen)
    last, interrupted = _last(pages)
    seconds = time.perf_counter() - begin
    result = lm.finish(last)
    if showing.log_probs and not interrupted:
        result = replace(result, log_probs=fill_log_probs(lm, last))
    if showing.as_json:
        facts = {"model": name, "seconds": round(seconds, 3), "interrupted": interrupted}
        typer.echo(json.dumps(facts | result.as_dict(), ensure_ascii=False))
    else:
        _print_texts(lm, last, screen if coloured else None)
        tell(_told(result, last, seconds, interrupted), "dim")
        if result.log_probs:
            nats = ", ".join(f"{each:.3f}" for each in result.log_probs)
            tell(f"log p of the fills, given their lengths: {nats}")
        cut = result.finish_reasons.count("canvas")
        if cut:
            tell(_cut(cut, len(result.texts), lm.block_size is not None))
    if recorder is not None and showing.html is not None:
        from sfumato.cli.html import write_page

        tell(write_page(recorder, lm.reader, showing.html, _facts(name, last)), "dim")
    if trace is not None:
        trace.check()
    if interrupted:
        raise typer.Exit(130)


def _last(pages: Iterator["Page"]) -> tuple["Page", bool]:
    """The last page, or after Ctrl-C the last so far; and whether it was that."""
    last = next(pages)
    try:
        for page in pages:
            last = page
    except KeyboardInterrupt:
        return last, True
    return last, False


def _print_candidates(found: "Generation", model: str | None) -> None:
    """A line for each, with its log-probability; as JSON with the name of the model."""
    if model is not None:
        typer.echo(json.dumps({"model": model} | found.as_dict(), ensure_ascii=False))
        return
    for nats, text in zip(found.log_probs, found.full_texts, strict=True):
        typer.echo(f"{nats:8.3f}  {text}")
    exact = "all" in found.searched
    tell(f"log p and text, {'of all fills' if exact else 'the best that were drawn'}", "dim")


def _print_texts(lm: "DiffusionLM", page: "Page", screen: "Console | None") -> None:
    for row in range(len(page.request.rows)):
        if screen is None:
            typer.echo(lm.show(page, row))
        else:
            from sfumato.cli.live import paint

            screen.print(paint(lm.reader, page, row, screen), end="\n\n")


def _told(result: "Generation", page: "Page", seconds: float, interrupted: bool) -> str:
    """What is said of a text below it."""
    count = sum(map(len, result.tokens))
    steps, tokens = _many(result.num_steps, "step"), _many(count, "token")
    told = f"{steps}, {tokens}, {seconds:.1f} s, seed {result.seed}"
    if interrupted:
        left = int(page.canvas.noisy.sum())
        return f"interrupted, {_many(left, 'token')} left to decide: {told}"
    return told


def _many(count: int, thing: str) -> str:
    return f"{count} {thing}{'s' * (count != 1)}"


def _cut(count: int, rows: int, slides: bool) -> str:
    """What is said of texts that have no end."""
    many = "the text has" if rows == 1 else f"{count} of {rows} texts have"
    more = "--length N writes on" if slides else "the model has room for no more"
    return f"{many} no end: the canvas was full; {more}"


def _facts(model: str, page: "Page") -> str:
    """How a text was written, for the page that shows it."""
    options = page.request.options
    rule = options.step or "ancestral"
    return f"{model}, {rule}, temperature {options.temperature:g}, seed {options.seed}"


def check_place(path: Path) -> None:
    """Raise where a page could not be written, before a text is."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; give --html a file")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise DataError(f"cannot write {path}: {folder} is no folder; make it first")


class Trace:
    """Every page as one line of JSON in a file. A file that cannot be written any more does not end
    the text: it is said when that is there."""

    def __init__(self, reader: "PageReader", path: Path):
        self.reader, self.path = reader, path
        self.error: OSError | None = None
        try:
            self.file = path.open("w", encoding="utf-8")
        except OSError as error:
            self.error = error
            self.check()

    def written(self, pages: Iterator["Page"]) -> Iterator["Page"]:
        """The pages, written while they pass by."""
        try:
            for page in pages:
                if self.error is None:
                    self._write(page)
                yield page
        finally:
            try:
                self.file.close()
            except OSError as error:
                self.error = self.error or error

    def _write(self, page: "Page") -> None:
        record = {
            "step": page.step,
            "texts": [self.reader.show(page, row) for row in range(len(page.request.rows))],
            "tokens": page.canvas.tokens.tolist(),
            "decided": page.decided.tolist(),
        }
        try:
            self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            self.error = error

    def check(self) -> None:
        """Raise if not every page is in the file."""
        if self.error is not None:
            raise DataError(f"cannot write the trajectory to {self.path}: {self.error.strerror}")
