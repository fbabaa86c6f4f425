"""Records of files with a delimiter."""

import csv
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from sfumato.data.encoded import lines_of, suffix_of, text_blocks
from sfumato.data.records import Record, no_field, refuse_twice
from sfumato.data.tally import BLANK_LINES, Tally
from sfumato.errors import DataError

DELIMITERS = {".csv": ",", ".tsv": "\t"}  # and what else a header may show: ; and |


def read_csv(path: Path, fields: Sequence[str], tally: Tally) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # the default refuses texts above 128 KiB
    lines = lines_of(text_blocks(path, tally))
    header = next(lines, "")
    delimiter = _delimiter(path, header, fields, tally)
    reader = csv.reader(itertools.chain([header], lines), delimiter=delimiter, strict=True)
    done = 0  # lines
    try:
        names = next(reader, [])
        for field in fields:
            if field not in names:
                raise DataError(no_field(f"{path}, line 1", field, names))
        refuse_twice([f for f in fields if names.count(f) > 1], f"{path}, line 1")
        done = reader.line_num
        tally.pass_over(set(names) - set(fields))
        places = [names.index(field) for field in fields]
        for row in reader:
            done = reader.line_num
            if not row:
                tally.leave_out(BLANK_LINES)
                continue
            if len(row) != len(names):
                raise DataError(
                    f"{path}, line {reader.line_num}: expected {len(names)} fields as in line 1, "
                    f"got {len(row)}; quote texts that hold {delimiter!r} or quotes"
                )
            yield tuple(row[place] for place in places)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {done + 1}: broken CSV ({error}); "
            f"quote texts that hold {delimiter!r} or quotes"
        ) from error


def _delimiter(path: Path, header: str, fields: Sequence[str], tally: Tally) -> str:
    """What is between the columns: what the name says, unless only another gives the fields."""
    own = DELIMITERS[suffix_of(path)]

    def fits(delimiter: str) -> bool:
        return set(fields) <= set(next(csv.reader([header], delimiter=delimiter), []))

    others = [each for each in (",", ";", "\t", "|") if each != own and fits(each)]
    if fits(own) or not others:
        return own
    tally.note(f"{path.name}: columns are apart by {others[0]!r}")
    return others[0]
