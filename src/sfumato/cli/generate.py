"""`sfumato generate`: text, live in the terminal as it emerges from noise."""

import json
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sfumato.cli.inputs import load_model
from sfumato.cli.options import MODEL, DeviceOption, grouped
from sfumato.cli.terminal import open_console
from sfumato.cli.writing import Showing, Writing
from sfumato.errors import ConfigError, DataError
from sfumato.folders import STORIES, STORIES_INFILL

if TYPE_CHECKING:
    from rich.console import Console

    from sfumato.pages import Page, Reader, Task
    from sfumato.pipeline import DiffusionLM


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
    lm = load_model(model, device)
    begin = time.perf_counter()
    if infill is None:
        task = lm.start(prompt, source=source, num_samples=num_samples, **changes)
    else:
        gaps = {} if gap_length is None else {"gap_length": gap_length}
        task = lm.start_infill(infill, source=source, num_samples=num_samples, **gaps, **changes)
    screen = open_console()
    coloured = showing.live and not showing.as_json and screen.is_terminal
    last = _write(lm, task, showing.trajectory, screen if coloured else None)
    result, seconds = lm.finish(last), time.perf_counter() - begin
    if showing.as_json:
        facts = {"model": model, "seconds": round(seconds, 3)}
        typer.echo(json.dumps(facts | result.as_dict(), ensure_ascii=False))
        return
    for row, text in enumerate(result.full_texts):
        if coloured:
            from sfumato.cli.live import paint

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
        from sfumato.cli.live import watch

        pages = watch(lm.reader, pages, screen)
    return deque(pages, maxlen=1)[0]


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
