"""What was taken from a source and what was left out, counted while it is read."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

BLANK = "blank documents"
BLANK_LINES = "blank lines"
EMPTY_FILES = "empty files"
WITHOUT_TEXT = "files without text"
HIDDEN_FILES = "hidden files and folders"
NO_FILES = "links to folders or to nothing"
OTHER_KINDS = "files of other kinds"

SHOWN = 5  # names in one line
MOST_COLUMNS = 1000  # records may have keys of their own each


@dataclass
class Tally:
    """Filled in by whoever reads; whole when the source has been read to its end."""

    files: Counter[str] = field(default_factory=Counter)  # by format
    left_out: Counter[str] = field(default_factory=Counter)  # by reason
    other_kinds: Counter[str] = field(default_factory=Counter)  # by ending
    columns: set[str] = field(default_factory=set)  # not asked for
    notes: dict[str, None] = field(default_factory=dict)  # how something was read; in order
    revision: str = ""  # of a data set on the Hub, where the Hub told it

    def leave_out(self, reason: str, count: int = 1) -> None:
        self.left_out[reason] += count

    def pass_over(self, columns: Iterable[str]) -> None:
        """Columns that are not taken; of many thousands the first do."""
        if len(self.columns) < MOST_COLUMNS:
            self.columns.update(columns)

    def note(self, what: str) -> None:
        """Say it once, however often it comes."""
        self.notes[what] = None

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; what did not come up is left away."""
        parts = {
            "files": dict(sorted(self.files.items())),
            "left_out": {reason: n for reason, n in sorted(self.left_out.items()) if n},
            "other_kinds": dict(sorted(self.other_kinds.items())),
            "columns_not_taken": sorted(self.columns),
            "notes": list(self.notes),
            "revision": self.revision,
        }
        return {name: found for name, found in parts.items() if found}


def tell(taken: dict[str, Any]) -> list[str]:
    """The lines that say it, of `Tally.as_dict`."""
    lines = []
    if files := taken.get("files"):
        lines.append("read: " + _listed(f"{n:,} {kind}" for kind, n in files.items()))
    for reason, count in taken.get("left_out", {}).items():
        kinds = taken.get("other_kinds", {}) if reason == OTHER_KINDS else {}
        named = _listed(f"{kind} {n:,}" for kind, n in kinds.items())
        lines.append(f"left out, {reason}: {count:,}" + (f" ({named})" if named else ""))
    if revision := taken.get("revision"):
        lines.append(f"read at revision {revision}")
    if columns := taken.get("columns_not_taken"):
        lines.append("columns not taken: " + _listed(columns))
    return [*lines, *taken.get("notes", [])]


def _listed(parts: Iterable[str]) -> str:
    every = list(parts)
    more = f" and {len(every) - SHOWN:,} more" if len(every) > SHOWN else ""
    return ", ".join(every[:SHOWN]) + more
