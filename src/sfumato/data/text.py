"""Prepare text for training: once, in parallel, and never again from the start.

Documents are read as a stream of pieces, tokenized in shards by a few threads (the tokenizer's
own code runs outside Python's lock), and appended to files in the source's order. After every
shard a journal notes how far the files are whole, so a killed run goes on where it stopped, and
the result is the same to the byte.
"""

import fcntl
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from pydantic import Field

from sfumato.arguments import AMOUNT, COUNT, FLAG, PATH, Kind
from sfumato.data.documents import PIECE
from sfumato.data.identity import changed_names
from sfumato.data.prepared import (
    ENDS,
    FORMAT,
    JOURNAL,
    PREPARED,
    SPLITS,
    Prepared,
    hash_files,
    length_statistics,
    token_dtype,
)
from sfumato.data.round_trip import Changes, can_join, is_lossless, refuse_changes
from sfumato.data.shards import Checked, Encoded, Shard, assign, encode_shard, hold_end, shards
from sfumato.data.sources import Readable, Source
from sfumato.data.tally import Tally
from sfumato.data.tokenizer import (
    fingerprint,
    load_tokenizer,
    special_ids,
    train_tokenizer,
    write_tokenizer,
)
from sfumato.errors import ConfigError, DataError
from sfumato.storage.files import Remedy, check_shape, foreign, read_object
from sfumato.storage.publish import created, is_part, write_text, writing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

JOURNAL_SHAPE = {
    "request": dict,
    "shards": int,
    "digest": str,
    "changes": dict,
    "totals": dict.fromkeys(SPLITS, list),
}
LOCK = "lock"  # its being there means nothing, only a lock on it does
SHARD = 2**20  # characters tokenized, written and noted in the journal at a time
# A new tokenizer learns from this much text. It is plenty for its few thousand merges, and the
# trainer keeps every distinct word, at about a kilobyte each.
TRAINING_CHARACTERS = 2**26

HELD_OUT = Kind(Annotated[float, Field(ge=0, lt=1, title="a share of the text in [0, 1)")])
TELL = Kind(Annotated[Callable[..., Any] | None, Field(title="a function of one argument")])
SOURCE = Kind(Annotated[str | Path | Readable, Field(title="a path, a name or a Source")])


@dataclass(frozen=True)
class Progress:
    """How far a preparation has come, both splits together."""

    documents: int
    tokens: int
    bytes: int  # of text


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
                journal = _open_journal(out, request)
                tokenizer = _settle_tokenizer(out, tokenizer, vocab_size, source)
                taken, whole = Tally(), None if lossy else name
                parts = (source, out, tokenizer, journal, taken, threads, progress)
                journal = _tokenize(*parts, whole=whole)
                if source.stamps() != stamps:
                    raise DataError(
                        f"{source.name} was written to while it was prepared; when it is whole, "
                        "run the same command again"
                    )
                _finish(source, out, tokenizer, name, journal, taken)
            with _writing(out):
                for leftover in (LOCK, JOURNAL):  # while there is a journal, we come here again
                    (out / leftover).unlink(missing_ok=True)
    done = Prepared.open(out)
    _check_request(out, done.facts["request"], request)
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
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        handle = os.open(out / LOCK, os.O_WRONLY | os.O_CREAT)
    try:
        with _writing(out):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DataError(
                    f"another process is preparing into {out}; wait for it or use another folder"
                ) from error
        yield
    finally:
        os.close(handle)


def _writing(out: Path) -> AbstractContextManager[None]:
    return writing(out, DataError)


def _check_request(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    asked = [key for key in new if key not in ("content", "one_text")]
    differing = [key for key in asked if old.get(key) != new[key]]
    if differing:
        details = "; ".join(f"{key} {old.get(key)} there, {new[key]} here" for key in differing)
        raise DataError(
            f"{out} holds another preparation ({details}); use another folder or delete it"
        )


def _check_change(out: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise if a stopped preparation of a source that changed cannot become as a fresh one.

    It can, if what changed comes after what is prepared (`_skip` compares that), and neither the
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


def _open_journal(out: Path, request: dict[str, Any]) -> Journal:
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
            _check_request(out, journal.request, request)
            _check_change(out, journal.request, request)
            return replace(journal, request=request)
    journal = Journal(request)
    write_json(out / JOURNAL, asdict(journal))
    # Of a run that was stopped before its first shard, a tokenizer may be left.
    shutil.rmtree(out / "tokenizer", ignore_errors=True)
    return journal


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


def _tokenize(
    source: Readable,
    out: Path,
    tokenizer: "PreTrainedTokenizerFast",
    journal: Journal,
    taken: Tally,
    workers: int,
    progress: Callable[[Progress], None] | None,
    *,
    whole: str | None,  # the tokenizer's name, if all text has to come back
) -> Journal:
    """Append every shard that the journal does not have yet."""
    dtype = token_dtype(len(tokenizer))
    pieces = source.pieces(PIECE if can_join(tokenizer) else None, taken)
    share, characters = journal.request["validation"], journal.request["one_text"]
    if characters is not None and share > 0:
        passages = hold_end(pieces, share, characters)
    else:
        passages = assign(pieces, share)
    todo = shards(passages, journal.request["shard"])
    _skip(todo, journal, out)
    work = partial(
        encode_shard,
        tokenizer=tokenizer,
        special=special_ids(tokenizer),
        verify=not is_lossless(tokenizer),
    )
    with ThreadPoolExecutor(workers) as pool, _no_inner_threads(), ExitStack() as stack:
        files = {}
        for split, totals in journal.totals.items():
            for name, size in (
                ("tokens.bin", totals.tokens * dtype.itemsize),
                ("documents.bin", totals.documents * ENDS.itemsize),
            ):
                files[split, name] = stack.enter_context(_reopen(out / split / name, size))
        for shard, done in _in_order(pool, work, todo, ahead=workers):
            changes = journal.changes.plus(done.changed, done.example)
            if whole is not None:
                refuse_changes(changes, shard.passages[-1].document + 1, whole)
            for split, part in done.splits.items():
                before = journal.totals[split].tokens
                _append(out, files[split, "tokens.bin"], part.tokens)
                _append(out, files[split, "documents.bin"], part.ends + before)
            journal = replace(
                journal,
                shards=journal.shards + 1,
                digest=shard.digest,
                changes=changes,
                totals={
                    split: totals.plus(done.splits[split], shard.num_bytes[split])
                    for split, totals in journal.totals.items()
                },
            )
            write_json(out / JOURNAL, asdict(journal))
            if progress is not None:
                progress(_progress(journal))
    return journal


def _progress(journal: Journal) -> Progress:
    train, validation = journal.totals["train"], journal.totals["validation"]
    return Progress(
        documents=train.documents + validation.documents,
        tokens=train.tokens + validation.tokens,
        bytes=train.bytes + validation.bytes,
    )


def _skip(todo: Iterator[Shard], journal: Journal, out: Path) -> None:
    """Pass over the shards that the journal has, and make sure that they are still the same."""
    digest = ""
    for _, shard in zip(range(journal.shards), todo, strict=False):
        digest = shard.digest
    if digest != journal.digest:
        raise DataError(
            f"the source has changed in the part that is already prepared in {out}; "
            "use another folder or delete it"
        )


def _in_order(
    pool: ThreadPoolExecutor,
    work: Callable[[Shard], Checked],
    todo: Iterator[Shard],
    ahead: int,
) -> Iterator[tuple[Shard, Checked]]:
    """The results in the shards' order, with a bounded number of shards under way."""
    pending: deque[tuple[Shard, Future[Checked]]] = deque()
    for shard in todo:
        pending.append((shard, pool.submit(work, shard)))
        if len(pending) > ahead:
            shard, future = pending.popleft()
            yield shard, future.result()
    for shard, future in pending:
        yield shard, future.result()


@contextmanager
def _no_inner_threads() -> Iterator[None]:
    """Each call of the tokenizer stays in its thread, so that `workers` is what is used.

    It also keeps the library quiet when a data loader forks the process later.
    """
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def _reopen(path: Path, size: int) -> FileIO:
    """Open for appending behind the first `size` bytes; what a killed run left there goes."""
    with _writing(path.parents[1]):
        path.parent.mkdir(exist_ok=True)
        file = FileIO(path, "a")
        file.truncate(size)
        return file


def _append(out: Path, file: FileIO, values: np.ndarray) -> None:
    with _writing(out):
        left = memoryview(values.tobytes())
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())


def _finish(
    source: Readable,
    out: Path,
    tokenizer: "PreTrainedTokenizerFast",
    name: str,
    journal: Journal,
    taken: Tally,
) -> None:
    if not _progress(journal).documents:
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
