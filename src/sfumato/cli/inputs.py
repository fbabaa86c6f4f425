"""What commands work on: a model, a source of texts."""

from typing import TYPE_CHECKING, Any

from sfumato.cli.options import Reading
from sfumato.cli.terminal import show_status

if TYPE_CHECKING:
    from sfumato.data.sources import Source
    from sfumato.pipeline import DiffusionLM


def load_model(name: str, device: str) -> "DiffusionLM":
    with show_status("loading the model"):
        from transformers.utils import logging

        from sfumato.pipeline import DiffusionLM

        logging.disable_progress_bar()
        logging.set_verbosity_error()
        _quiet_hub()
        return DiffusionLM.from_pretrained(name, device=device)


def open_source(name: str, reading: Reading, **options: Any) -> "Source":
    """A source; the separator may spell a line end as \\n."""
    from sfumato.data.sources import Source

    _quiet_hub()
    if reading.separator is not None:
        options["separator"] = reading.separator.replace("\\n", "\n")
    return Source(name, field=reading.field, split=reading.split, config=reading.config, **options)


def _quiet_hub() -> None:
    """What fails is said in the end, in one line, and not at every attempt before."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()
