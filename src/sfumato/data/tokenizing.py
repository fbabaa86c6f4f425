"""Texts to tokens, shard by shard, in several processes."""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sfumato.data.documents import PIECE
from sfumato.data.journal import Journal, Progress, progress_of, write_json, writing_into
from sfumato.data.prepared import (
    ENDS,
    JOURNAL,
    token_dtype,
)
from sfumato.data.round_trip import can_join, is_lossless, refuse_changes
from sfumato.data.shards import Checked, Shard, assign, encode_shard, hold_end, shards
from sfumato.data.sources import Readable
from sfumato.data.special_tokens import special_ids
from sfumato.data.tally import Tally
from sfumato.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHARD = 2**20  # characters tokenized, written and noted in the journal at a time


def tokenize(
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
    skip(todo, journal, out)
    work = partial(
        encode_shard,
        tokenizer=tokenizer,
        special=special_ids(tokenizer),
        verify=not is_lossless(tokenizer),
    )
    with ThreadPoolExecutor(workers) as pool, no_inner_threads(), ExitStack() as stack:
        files = {}
        for split, totals in journal.totals.items():
            for name, size in (
                ("tokens.bin", totals.tokens * dtype.itemsize),
                ("documents.bin", totals.documents * ENDS.itemsize),
            ):
                files[split, name] = stack.enter_context(reopen(out / split / name, size))
        for shard, done in in_order(pool, work, todo, ahead=workers):
            changes = journal.changes.plus(done.changed, done.example)
            if whole is not None:
                refuse_changes(changes, shard.passages[-1].document + 1, whole)
            for split, part in done.splits.items():
                before = journal.totals[split].tokens
                append(out, files[split, "tokens.bin"], part.tokens)
                append(out, files[split, "documents.bin"], part.ends + before)
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
                progress(progress_of(journal))
    return journal


def skip(todo: Iterator[Shard], journal: Journal, out: Path) -> None:
    """Pass over the shards that the journal has, and make sure that they are still the same."""
    digest = ""
    for _, shard in zip(range(journal.shards), todo, strict=False):
        digest = shard.digest
    if digest != journal.digest:
        raise DataError(
            f"the source has changed in the part that is already prepared in {out}; "
            "use another folder or delete it"
        )


def in_order(
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
def no_inner_threads() -> Iterator[None]:
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


def reopen(path: Path, size: int) -> FileIO:
    """Open for appending behind the first `size` bytes; what a killed run left there goes."""
    with writing_into(path.parents[1]):
        path.parent.mkdir(exist_ok=True)
        file = FileIO(path, "a")
        file.truncate(size)
        return file


def append(out: Path, file: FileIO, values: np.ndarray) -> None:
    with writing_into(out):
        left = memoryview(values.tobytes())
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
