"""Are prepared data whole? What is looked at on request, as it reads every byte."""

from collections.abc import Iterator
from pathlib import Path

from sfumato.data.prepared import JOURNAL, PREPARED
from sfumato.data.prepared_pairs import PAIRS, PreparedPairs, holds_pairs, open_data
from sfumato.doctor.installation import Finding
from sfumato.errors import SfumatoError


def is_of_data(folder: str | Path) -> bool:
    """Whether a folder holds prepared data, finished or not, rather than a model."""
    try:
        return holds_pairs(folder) or any((Path(folder) / n).exists() for n in (PREPARED, JOURNAL))
    except SfumatoError:  # no path at all: whoever looks for a model says so
        return False


def examine_data(folder: str | Path) -> Iterator[Finding]:
    """Look at prepared data, part by part; changes nothing."""
    try:
        data = open_data(folder)
    except SfumatoError as error:
        yield Finding("files", "fault", str(error))
        return
    sides = [data.sources, data.targets] if isinstance(data, PreparedPairs) else [data]
    splits = [counts for side in sides for counts in side.facts["splits"].values()]
    tokens, documents = (sum(each[key] for each in splits) for key in ("tokens", "documents"))
    record = PAIRS if isinstance(data, PreparedPairs) else PREPARED
    yield Finding("files", "ok", f"{tokens:,} tokens of {documents:,} documents, as {record} says")
    try:
        yield Finding("tokenizer", "ok", f"{len(data.tokenizer()):,} tokens, the data's own")
    except SfumatoError as error:
        yield Finding("tokenizer", "fault", str(error))
    try:
        data.verify()
    except SfumatoError as error:
        yield Finding("content", "fault", str(error))
    else:
        yield Finding("content", "ok", "every byte is as it was prepared")
