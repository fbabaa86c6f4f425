"""What commands say of themselves while they work, on standard error."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console


def open_console(**options: Any) -> "Console":
    from rich.console import Console

    return Console(**options)


@contextmanager
def show_status(
    begin: str, interrupted: str = "nothing was changed"
) -> Iterator[Callable[[str], None]]:
    """A line on standard error that says what is being done, where it is seen; after Ctrl-C, what
    is left behind."""
    screen = open_console(stderr=True)
    try:
        if screen.is_terminal:
            with screen.status(begin) as status:
                yield status.update
        else:
            yield lambda doing: None
    except KeyboardInterrupt:
        typer.echo(f"interrupted; {interrupted}", err=True)
        raise typer.Exit(130) from None
