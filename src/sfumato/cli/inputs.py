"""What commands work on: a model, a source of texts, a text."""

import sys
from typing import TYPE_CHECKING, Any

from sfumato.cli.options import Reading
from sfumato.cli.output import tell
from sfumato.cli.terminal import show_status
from sfumato.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sfumato.data.sources import Source
    from sfumato.lm.model import DiffusionLM


def load_model(name: str, device: str) -> "DiffusionLM":
    with show_status("loading the model"):
        from sfumato.lm.model import DiffusionLM

        return DiffusionLM.from_pretrained(name, device=device)


def open_source(name: str, reading: Reading, **options: Any) -> "Source":
    """A source; the separator may spell a line end as \\n."""
    from sfumato.data.sources import Source

    if reading.separator is not None:
        options["separator"] = reading.separator.replace("\\n", "\n")
    return Source(name, field=reading.field, split=reading.split, config=reading.config, **options)


def read_texts(text: str, source: str | None) -> tuple[str, str | None]:
    """The text and the source of a request; one of them may be "-", standard input."""
    if text == source == "-":
        raise ConfigError("standard input is one text: give '-' for the prompt or --source")
    return _read(text), None if source is None else _read(source)


def _read(text: str) -> str:
    if text != "-":
        return text
    if sys.stdin is None:
        raise DataError("standard input is closed; give the text in place of '-'")
    if sys.stdin.isatty():
        tell("reading standard input; Ctrl-D ends it")
    try:
        read = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input is not UTF-8 at byte {error.start + 1}; give text in UTF-8"
        ) from None
    return read.removesuffix("\n").removesuffix("\r")  # as a shell's $(...) does
