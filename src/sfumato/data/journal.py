"""What a preparation has done so far, on disk: it goes on from there after a kill."""

import json
import shutil
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sfumato.data.identity import changed_names
from sfumato.data.prepared import (
    JOURNAL,
    SPLITS,
)
from sfumato.data.round_trip import Changes
from sfumato.data.shards import Encoded
from sfumato.errors import DataError
from sfumato.storage.files import Remedy, foreign
from sfumato.storage.replace import write_text, writing
from sfumato.storage.structured import check_shape, read_object

if TYPE_CHECKING:
    pass


JOURNAL_SHAPE = {
    "request": dict,
    "shards": int,
    "digest": str,
    "changes": dict,
    "totals": dict.fromkeys(SPLITS, list),
}


LOCK = "lock"  # its being there means nothing, only a lock on it does


@dataclass(frozen=True)
class Progress:
    """How far a preparation has come, both splits together."""

    documents: int
    tokens: int
    bytes: int  # of text


def writing_into(out: Path) -> AbstractContextManager[None]:
    return writing(out, DataError)


def check_request(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    asked = [key for key in new if key not in ("content", "one_text")]
    differing = [key for key in asked if old.get(key) != new[key]]
    if differing:
        details = "; ".join(f"{key} {old.get(key)} there, {new[key]} here" for key in differing)
        raise DataError(
            f"{out} holds another preparation ({details}); use another folder or delete it"
        )


def _check_change(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise if a stopped preparation of a source that changed cannot become as a fresh one.

    It can, if what changed comes after what is prepared (`skip` compares that), and neither the
    tokenizer nor the place where the held-out end begins came from the whole.
    """
    names = changed_names(old["content"], new["content"])
    learnt = isinstance(new["tokenizer"], dict)
    if names and (learnt or old["one_text"] != new["one_text"]):
        what = "its tokenizer was learnt from" if learnt else "the end to hold out was found in"
        raise DataError(
            f"{names} changed since the preparation in {out} was stopped, and {what} the text as "
            f"it was; delete {out} and prepare anew, or bring the old text back"
        )


class Totals(NamedTuple):
    """What has been written to one split."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0  # of text, in UTF-8
    kept_bytes: int = 0  # of what the tokens stand for

    def plus(self, encoded: Encoded, num_bytes: int) -> "Totals":
        return Totals(
            self.tokens + len(encoded.tokens),
            self.documents + len(encoded.ends),
            self.bytes + num_bytes,
            self.kept_bytes + encoded.kept_bytes,
        )


@dataclass(frozen=True)
class Journal:
    """How far the files are whole."""

    request: dict[str, Any]
    shards: int = 0
    digest: str = ""  # of all text of the source up to here
    changes: Changes = field(default_factory=Changes)  # what the tokenizer does not keep
    totals: dict[str, Totals] = field(default_factory=lambda: dict.fromkeys(SPLITS, Totals()))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """All or nothing: the file is the old one or the new one, whatever happens."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n", DataError)


def open_journal(out: Path, request: dict[str, Any]) -> Journal:
    """The journal of an interrupted run of the same request, or a new one."""
    if (out / JOURNAL).exists():
        remedy = Remedy(DataError, f"delete {out} and prepare again")
        stored = read_object(out / JOURNAL, remedy)
        check_shape(stored, JOURNAL_SHAPE, out / JOURNAL, remedy)
        with foreign(out / JOURNAL, remedy):
            totals = {split: Totals(*numbers) for split, numbers in stored["totals"].items()}
            changes = Changes(**stored["changes"])
            journal = Journal(**{**stored, "totals": totals, "changes": changes})
        if journal.shards:
            check_request(out, journal.request, request)
            _check_change(out, journal.request, request)
            return replace(journal, request=request)
    journal = Journal(request)
    write_json(out / JOURNAL, asdict(journal))
    # Of a run that was stopped before its first shard, a tokenizer may be left.
    shutil.rmtree(out / "tokenizer", ignore_errors=True)
    return journal


def progress_of(journal: Journal) -> Progress:
    train, validation = journal.totals["train"], journal.totals["validation"]
    return Progress(
        documents=train.documents + validation.documents,
        tokens=train.tokens + validation.tokens,
        bytes=train.bytes + validation.bytes,
    )
