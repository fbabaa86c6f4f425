"""What commands say of themselves while they work, on standard error."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from sfumato.cli.output import tell

if TYPE_CHECKING:
    from rich.console import Console

PAUSE = 10.0  # seconds between two lines of progress where nobody sees a status


def open_console(*, stderr: bool = False, **options: Any) -> "Console":
    """A console of rich that is a terminal only where there is one, whatever FORCE_COLOR says."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, force_terminal=stream.isatty(), **options)


def is_drawable(console: "Console") -> bool:
    """Whether the cursor of a console can be moved."""
    return console.is_terminal and not console.is_dumb_terminal


@contextmanager
def show_status(
    begin: str, interrupted: str = "nothing was changed"
) -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what is being done; a file or a pipe gets one now and
    then. After Ctrl-C, what is left behind."""
    screen = open_console(stderr=True)
    try:
        if is_drawable(screen):
            spinner = "dots" if screen.encoding.startswith("utf") else "line"
            with screen.status(begin, spinner=spinner) as status:
                yield status.update
        else:
            yield _now_and_then()
    except KeyboardInterrupt:
        tell(f"interrupted; {interrupted}")
        raise typer.Exit(130) from None


def _now_and_then() -> Callable[[str], None]:
    due = time.monotonic() + PAUSE

    def told(doing: str) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + PAUSE
            tell(doing)

    return told
