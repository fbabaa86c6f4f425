"""Training in the terminal: a progress bar, and a line whenever something happened."""

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sfumato.train.events import Evaluated, Event, Finished, Sampled, Saved, Started, Stepped


def show(events: Iterable[Event], console: Console) -> None:
    """Draw a run while it happens; off a terminal, one line every few steps is left to the log."""
    columns = (BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.fields[numbers]}"))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, numbers="")
        for event in events:
            if isinstance(event, Started):
                bar.update(task, total=event.max_steps, completed=event.step)
            if isinstance(event, Stepped):
                bar.update(task, completed=event.step, numbers=_numbers(event))
            line = _line(event)
            if line:
                console.print(line, highlight=False)


def _numbers(event: Stepped) -> str:
    return (
        f"loss {event.loss:.3f}  {event.tokens_per_second:,.0f} tokens/s  "
        f"{_duration(event.seconds_left)} left"
    )


def _line(event: Event) -> str | None:
    match event:
        case Started():
            begin = f", going on after step {event.step}" if event.step else ""
            return (
                f"{event.num_weights / 1e6:.2f} M weights, {event.num_rows:,} rows, "
                f"{event.device}, {event.precision}{begin}"
            )
        case Evaluated():
            best = "  best so far" if event.best else ""
            return (
                f"step {event.step}: held-out bound {event.bound:.4f} +- {event.error:.4f} nats a "
                f"token, {event.accuracy:.1%} right{best}"
            )
        case Sampled():
            return "\n".join(f"[dim]{escape(text)}[/]" for text in event.texts)
        case Finished():
            early = ", stopped early" if event.stopped_early else ""
            best = "" if event.best is None else f", best held-out bound {event.best:.4f}"
            return f"done after {event.step} steps{early}{best}: {event.path}"
        case Saved() | Stepped():
            return None


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
