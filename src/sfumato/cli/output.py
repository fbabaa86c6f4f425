"""Standard output and standard error as they should be: nothing that happens to them ends the work.

What an encoding lacks is escaped as JSON has it, so that JSON stays JSON. A stream that is closed,
full or without a reader takes nothing more, and the command goes on to its end.
"""

import codecs
import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO, cast

import typer

ESCAPED = "sfumato.escaped"  # how UnicodeEncodeErrors are met


class Outlet(io.TextIOBase):
    """A text stream in front of another one, which may fail."""

    def __init__(self, stream: TextIO | None):
        self.stream = stream
        self.error: OSError | None = None  # why nothing more is written
        self.is_log = False  # what is lost here is no failure

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return getattr(self.stream, "encoding", None) or "utf-8"

    def write(self, text: str, /) -> int:
        if not isinstance(text, str):  # libraries find out like this what a stream takes
            raise TypeError(f"expected text, got {type(text).__name__}")
        if text and self.error is None:
            try:
                if self.stream is None:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                self.stream.write(self.printable(text))
            except (OSError, ValueError) as error:  # ValueError: it was closed
                self._drop(error)
        return len(text)

    def printable(self, text: str) -> str:
        """Text with escapes for what the encoding lacks."""
        return text.encode(self.encoding, ESCAPED).decode(self.encoding)

    def flush(self) -> None:
        if self.error is None and self.stream is not None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._drop(error)

    def isatty(self) -> bool:
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        if self.stream is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self.stream.fileno()

    def writable(self) -> bool:
        return True

    def _drop(self, error: Exception) -> None:
        """Take no more; what is left in a buffer goes nowhere, or it would fail again at the end
        of the process."""
        closed = OSError(errno.EBADF, os.strerror(errno.EBADF))
        self.error = error if isinstance(error, OSError) else closed
        with suppress(OSError, ValueError):
            if self.stream is not None:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)


def _escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


@contextmanager
def outlets() -> Iterator[Outlet]:
    """Standard output, given to the command as an outlet, and so is standard error."""
    codecs.register_error(ESCAPED, _escape)
    _fill_descriptors()
    out, err = Outlet(sys.stdout), Outlet(sys.stderr)
    with redirect_stdout(cast(TextIO, out)), redirect_stderr(cast(TextIO, err)):
        try:
            yield out
        finally:
            out.flush()
            err.flush()


def _fill_descriptors() -> None:
    """Where one of 0, 1, 2 is closed, the next file that is opened would get its number, and then
    all that libraries write to standard error."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number


def keep_as_log() -> None:
    """From now on standard output only tells how the work goes: losing it is no failure."""
    if isinstance(sys.stdout, Outlet):
        sys.stdout.is_log = True


def tell(text: str, style: str | None = None) -> None:
    """A line on standard error; `style` is "error" or "dim", where colours are welcome."""
    if style is not None and shows_colours(sys.stderr):
        text = typer.style(text, fg="red") if style == "error" else typer.style(text, dim=True)
    print(text, file=sys.stderr, flush=True)


def shows_colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal whose user wants colours."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return not plain and stream.isatty()
