"""Which files of a folder hold text."""

import difflib
import os
from pathlib import Path

from sfumato.data.formats import kind_of, known_kinds
from sfumato.data.tally import EMPTY_FILES, HIDDEN_FILES, NO_FILES, OTHER_KINDS, Tally
from sfumato.errors import DataError


def files_inside(folder: Path, tally: Tally) -> list[Path]:
    """The files of a folder that can be read, and have something in them; in order."""

    def fail(error: OSError) -> None:
        raise DataError(f"cannot read folder {error.filename}: {error.strerror}") from error

    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=fail):
        tally.leave_out(HIDDEN_FILES, sum(name.startswith(".") for name in folders))
        folders[:] = [name for name in folders if not name.startswith(".")]
        tally.leave_out(NO_FILES, sum((Path(place) / name).is_symlink() for name in folders))
        for path in (Path(place) / name for name in names):
            if path.name.startswith("."):
                tally.leave_out(HIDDEN_FILES)
            elif not path.is_file():
                tally.leave_out(NO_FILES)
            elif kind_of(path) is None:
                tally.leave_out(OTHER_KINDS)
                tally.other_kinds[path.suffix or path.name] += 1
            elif not path.stat().st_size:
                tally.leave_out(EMPTY_FILES)
            else:
                found.append(path)
    if not found:
        raise DataError(
            f"folder {folder} holds no file of a known format with something in it: {known_kinds()}"
        )
    return sorted(found)


def near_names(path: Path) -> str:
    """'did you mean a, b?' for a misspelt path, or nothing."""
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    close = difflib.get_close_matches(path.name, [p.name for p in siblings])
    return f"did you mean {', '.join(close)}?" if close else ""
