"""Prepare text for training: once, in parallel, and never again from the start.

Documents are read as a stream of pieces, tokenized in shards by a few threads (the tokenizer's
own code runs outside Python's lock), and appended to files in the source's order. After every
shard a journal notes how far the files are whole, so a killed run goes on where it stopped, and
the result is the same to the byte.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from sfumato.arguments import AMOUNT, COUNT, FLAG, PATH, Kind
from sfumato.data.identity import changed_names
from sfumato.data.journal import (
    LOCK,
    Journal,
    Progress,
    check_request,
    open_journal,
    progress_of,
    write_json,
    writing_into,
)
from sfumato.data.prepared import (
    FORMAT,
    JOURNAL,
    PREPARED,
    Prepared,
    hash_files,
    length_statistics,
)
from sfumato.data.round_trip import Changes, refuse_changes
from sfumato.data.sources import Readable, Source
from sfumato.data.special_tokens import special_ids
from sfumato.data.tally import Tally
from sfumato.data.tokenizer import fingerprint
from sfumato.data.tokenizer_files import load_tokenizer, write_tokenizer
from sfumato.data.tokenizer_training import train_tokenizer
from sfumato.data.tokenizing import SHARD, tokenize
from sfumato.errors import ConfigError, DataError
from sfumato.storage.publish import is_part
from sfumato.storage.replace import created

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A new tokenizer learns from this much text. It is plenty for its few thousand merges, and the
# trainer keeps every distinct word, at about a kilobyte each.
TRAINING_CHARACTERS = 2**26

HELD_OUT = Kind(Annotated[float, Field(ge=0, lt=1, title="a share of the text in [0, 1)")])
TELL = Kind(Annotated[Callable[..., Any] | None, Field(title="a function of one argument")])
SOURCE = Kind(Annotated[str | Path | Readable, Field(title="a path, a name or a Source")])


def prepare(
    source: str | Path | Readable,
    out: str | Path,
    tokenizer: "PreTrainedTokenizerFast | str | Path | None" = None,
    *,
    vocab_size: int | None = None,
    validation: float = 0.05,
    workers: int | None = None,
    shard: int = SHARD,
    lossy: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> Prepared:
    """Tokenize a source into a folder of memory-mapped files; see `prepared.py` for the layout.

    tokenizer: a tokenizer, its folder, or its name on the Hub. Without one, a byte-level BPE of
        at most `vocab_size` tokens is trained on the source first.
    validation: share of the text to hold out. Which split a document goes to depends on its text
        alone, so exact copies are never in both.
    workers: threads; by default one for each core.
    lossy: take a tokenizer that does not give every text back as it was, which else is an error.
        Every document is compared, unless the tokenizer's parts prove that nothing is lost.

    A document is stored as bos (if the tokenizer has one), its tokens, eos. Documents of more
    than 32,768 characters are held out in part: every so many of their pieces go to validation.
    Of a source that is one document, the end is held out.

    Run it again after a kill and it goes on; run it again when done and it returns at once.
    """
    threads: int = COUNT.check("workers", (os.cpu_count() or 1) if workers is None else workers)
    validation, shard = HELD_OUT.check("validation", validation), AMOUNT.check("shard", shard)
    lossy, progress = FLAG.check("lossy", lossy), TELL.check("progress", progress)
    out, source = Path(PATH.check("out", out)), SOURCE.check("source", source)
    source = Source(str(source)) if isinstance(source, str | Path) else source
    if vocab_size is not None:
        vocab_size = COUNT.check("vocab_size", vocab_size)
    if (tokenizer is None) == (vocab_size is None):
        raise ConfigError("give a tokenizer, or the vocab_size of a new one, and not both")
    if isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(tokenizer)
    if tokenizer is not None:
        special_ids(tokenizer)
    name = "trained on the source" if tokenizer is None else tokenizer.name_or_path or "unnamed"
    request = {
        "source": source.identity(),
        "tokenizer": {"vocab_size": vocab_size} if tokenizer is None else fingerprint(tokenizer),
        "validation": validation,
        "shard": shard,
    }
    stamps = source.stamps()
    request |= {"content": source.content(), "one_text": source.one_text()}
    if (out / JOURNAL).exists() or not (out / PREPARED).exists():
        _check_place(out, source)
        with _sole_user(out):
            if not (out / PREPARED).exists():  # else another process has just finished it
                journal = open_journal(out, request)
                tokenizer = _settle_tokenizer(out, tokenizer, vocab_size, source)
                taken, whole = Tally(), None if lossy else name
                parts = (source, out, tokenizer, journal, taken, threads, progress)
                journal = tokenize(*parts, whole=whole)
                if source.stamps() != stamps:
                    raise DataError(
                        f"{source.name} was written to while it was prepared; when it is whole, "
                        "run the same command again"
                    )
                _finish(source, out, tokenizer, name, journal, taken)
            with writing_into(out):
                for leftover in (LOCK, JOURNAL):  # while there is a journal, we come here again
                    (out / leftover).unlink(missing_ok=True)
    done = Prepared.open(out)
    check_request(out, done.facts["request"], request)
    if others := changed_names(done.facts["request"]["content"], request["content"]):
        raise DataError(
            f"{out} was prepared from other text: {others} changed since; "
            "use another folder or delete it"
        )
    if not lossy:
        documents = sum(counts["documents"] for counts in done.facts["splits"].values())
        refuse_changes(Changes(**done.facts["changes"]), documents, name)
    return done


def _check_place(out: Path, source: Readable) -> None:
    place = Path(source.name).expanduser()
    if place.is_dir() and out.resolve().is_relative_to(place.resolve()):
        raise ConfigError(f"{out} lies inside the source {source.name}; use a folder outside of it")
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    foreign = {name for name in names - {LOCK} if not is_part(name)}
    if JOURNAL not in names and foreign:
        raise DataError(
            f"{out} holds other files ({', '.join(sorted(foreign)[:3])}); "
            "give a new or an empty folder"
        )


@contextmanager
def _sole_user(out: Path) -> Iterator[None]:
    """Hold a lock on the folder; the system lets go of it even if the process is killed."""
    with writing_into(out):
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / LOCK, os.O_WRONLY | os.O_CREAT)
    try:
        with writing_into(out):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(
                    f"another process is preparing into {out}; wait for it or use another folder"
                ) from error
        yield
    finally:
        os.close(handle)


def _settle_tokenizer(
    out: Path,
    tokenizer: "PreTrainedTokenizerFast | None",
    vocab_size: int | None,
    source: Readable,
) -> "PreTrainedTokenizerFast":
    """The tokenizer given, or one trained on the source; saved beside the data, once."""
    folder = out / "tokenizer"
    if folder.exists():
        return load_tokenizer(folder)
    if tokenizer is None:
        assert vocab_size is not None, "checked by prepare"
        tokenizer = train_tokenizer(source.sample(TRAINING_CHARACTERS), vocab_size)
    with created(folder, DataError) as new:
        write_tokenizer(tokenizer, new)
    return tokenizer


def _finish(
    source: Readable,
    out: Path,
    tokenizer: "PreTrainedTokenizerFast",
    name: str,
    journal: Journal,
    taken: Tally,
) -> None:
    if not progress_of(journal).documents:
        raise DataError(f"no text in {source.name}: every document is blank; give some text")
    splits = {}
    for split, totals in journal.totals.items():
        splits[split] = {
            **totals._asdict(),
            "bytes_per_token": totals.bytes / max(totals.tokens, 1),
            "lengths": length_statistics(out / split / "documents.bin"),
        }
    facts = {
        "format": FORMAT,
        "request": journal.request,
        "source_bytes": source.num_bytes(),
        "taken": taken.as_dict(),
        "changes": asdict(journal.changes),
        "tokenizer": {
            "name": name,
            "fingerprint": fingerprint(tokenizer),
            "vocab_size": len(tokenizer),
            "filler": special_ids(tokenizer).filler,
        },
        "splits": splits,
        "fingerprint": hash_files(out),
    }
    write_json(out / PREPARED, facts)
