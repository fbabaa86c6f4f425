"""Data sets on the Hugging Face Hub, record by record."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from sfumato.data.local_files import near_names
from sfumato.data.records import Record, text_of
from sfumato.data.tally import Tally
from sfumato.errors import DataError, told


def _revision(name: str) -> str | None:
    """The commit that a data set on the Hub is at; None where nothing tells it, as offline."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, timeout=20).sha
    except Exception:  # of a network and its libraries; reading says what is wrong, if anything is
        return None


def read_hub(
    name: str,
    config: str | None,
    split: str,
    streaming: bool,
    wanted: Sequence[str],
    tally: Tally,
) -> Iterator[Record]:
    """The wanted fields of every record of a data set on the Hub."""
    from datasets import load_dataset

    what, revision = f"data set {name}", _revision(name)
    tally.revision = revision or ""
    try:
        rows = load_dataset(
            name,
            config,
            split=split,
            streaming=streaming,
            revision=revision,
        )
        names = rows.column_names
        if names is not None and set(wanted) <= set(names):
            rows = rows.select_columns(list(dict.fromkeys(wanted)))
        for number, row in enumerate(rows, 1):
            where = f"{what}, row {number}"
            yield tuple(text_of(row, field, where) for field in wanted)
    except DataError:
        raise
    # The library and the network below it fail in more ways than can be listed.
    except Exception as error:
        reason = told(error)
        near = near_names(Path(name))
        raise DataError(
            f"no file or folder {name} here{near and f' ({near})'}, and cannot read {what}, "
            f"split {split!r}, from the Hugging Face Hub: {reason}; check the name, split, "
            "config and connection and run the same command again; without a network give a file"
        ) from error
