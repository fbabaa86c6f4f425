"""Training in the terminal: a progress bar, and a line whenever something happened.

Where nobody can see a bar (a file, a pipe), the steps are lines too, one every logging interval.
"""

import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column
from rich.text import Text

from sfumato.cli.live import printable
from sfumato.cli.terminal import is_drawable
from sfumato.estimates import in_words
from sfumato.train.events import (
    Evaluated,
    Event,
    Finished,
    Interrupted,
    Sampled,
    Saved,
    Searched,
    Started,
    Stepped,
)


class Signals:
    """Ctrl-C and SIGTERM, which schedulers send before they kill: noted until a step is done.

    Called, it says whether one came. A second Ctrl-C does not wait.
    """

    def __init__(self):
        self.number = 0
        self._usual: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
                self._usual[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return bool(self.number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == self.number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT:  # print() might be what is being interrupted
            with suppress(OSError):
                os.write(2, b"\nstopping after this step; Ctrl-C once more stops at once\n")
        self.number = number


def show(
    events: Iterable[Event],
    console: Console,
    every: int,
    changes: Sequence[tuple[int, str]] = (),
) -> Event | None:
    """Draw a run while it happens; `every`: steps between two lines where there is no bar;
    `changes`: after which steps another loss is minimised.

    Returns the last event.
    """
    event, last, kinds = None, 0, dict(changes)
    if not is_drawable(console):
        for event in events:
            if isinstance(event, Stepped):
                if event.step % every == 0:
                    _print(console, Text(f"step {event.step}: {_numbers(event)}"))
            else:
                _print(console, describe(event))
            _print(console, _changed(event, kinds))
        return event
    columns = (  # the bar takes the room that the figures leave
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console, transient=True, expand=True) as bar:
        task = bar.add_task("starting", total=None)
        for event in events:
            if isinstance(event, Started):
                last, done = event.max_steps, event.step
                bar.update(task, total=last, completed=done, description=f"{done}/{last}")
            if isinstance(event, Stepped):
                words = f"{event.step}/{last}  {_numbers(event)}"
                bar.update(task, completed=event.step, description=words)
            _print(console, describe(event))
            _print(console, _changed(event, kinds))
    return event


def _changed(event: Event, kinds: Mapping[int, str]) -> Text | None:
    """What is said where the loss begins to mean something else."""
    if not isinstance(event, Stepped) or event.step not in kinds:
        return None
    return Text(f"step {event.step}: {kinds[event.step]} from now on; the loss is another one")


def _print(console: Console, text: Text | None) -> None:
    if text is not None:
        console.print(text, soft_wrap=not console.is_terminal)  # a file gets whole lines


def _numbers(event: Stepped) -> str:
    return (
        f"loss {event.loss:.3f}  {_duration(event.seconds_left)} left  "
        f"{event.tokens_per_second:,.0f} tokens/s"
    )


def describe(event: Event) -> Text | None:
    """What happened, in words; of steps and checkpoints there are too many."""
    match event:
        case Started():
            device = f"{event.num_processes} x " * (event.num_processes > 1) + event.device
            begin = f", going on after step {event.step}" if event.step else ""
            begin += f"; {event.note}" if event.note else ""
            return Text(
                f"{event.num_weights / 1e6:.2f} M weights, {event.num_rows:,} rows, "
                f"{device}, {event.precision}{begin}"
            )
        case Evaluated():
            best = ", best" if event.best else ""
            return Text(
                f"step {event.step}: held-out bound {in_words(event.bound, event.error, 4)} nats a "
                f"position, {event.accuracy:.1%} right{best}"
            )
        case Searched():
            low, high = event.interval
            return Text(
                f"step {event.step}: mask rates from {low} to {high} from now on; the loss varies "
                f"by {event.deviation:.4f} nats a position, with all rates by "
                f"{event.whole_deviation:.4f}"
            )
        case Sampled():
            texts = map(printable, event.texts)
            lines = [Text(f"  {line}", "dim") for text in texts for line in text.split("\n")]
            return Text("\n").join([Text(f"step {event.step} writes:"), *lines])
        case Finished():
            early = ", stopped early" if event.stopped_early else ""
            best = "" if event.best is None else f", best held-out bound {event.best:.4f}"
            return Text(f"done after {event.step} steps{early}{best}: {event.path}")
        case Interrupted():
            return Text(
                f"stopped and saved after step {event.step}; give the same command again to go on"
            )
        case Saved() | Stepped():
            return None


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
