"""Prepared data on disk: what lies in the folder, what is known about it, whether it is whole.

prepared.json               counts, statistics, fingerprints; written last, so it means "done"
tokenizer/                  the tokenizer's files
train/, validation/
    tokens.bin              the ids of all documents, one after the other; uint16 or uint32
    documents.bin           where each document ends in tokens.bin; int64
"""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sfumato.arguments import PATH, TEXT
from sfumato.data.tokenizer import fingerprint
from sfumato.data.tokenizer_files import load_tokenizer
from sfumato.errors import ConfigError, DataError, near
from sfumato.storage.files import Remedy, check_path
from sfumato.storage.structured import check_shape, read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PREPARED, JOURNAL = "prepared.json", "journal.json"
FORMAT = 2
SPLITS: tuple[str, ...] = ("train", "validation")
ENDS = np.dtype("<i8")
DAMAGED = Remedy(DataError, "prepare into a new folder")
PLACE = Remedy(DataError, "give a folder that sfumato data prepare wrote")
COUNTS = ("tokens", "documents", "bytes", "kept_bytes")
FACTS = {
    "fingerprint": str,
    "request": {"content": dict},
    "taken": dict,
    "changes": dict,
    "source_bytes": (int, type(None)),
    "tokenizer": {"name": str, "fingerprint": str, "vocab_size": int, "filler": int},
    "splits": {name: dict.fromkeys(COUNTS, int) | {"lengths": dict} for name in SPLITS},
}
PERCENTILES = (1, 5, 25, 50, 75, 90, 95, 99, 100)


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


class Split(NamedTuple):
    """One split's files, memory mapped."""

    tokens: np.ndarray  # [num_tokens] uint16 or uint32
    ends: np.ndarray  # [num_documents] int64


@dataclass(frozen=True)
class Prepared:
    """A folder of prepared data whose files are all there."""

    folder: Path
    facts: dict[str, Any]  # prepared.json

    @classmethod
    def open(
        cls, folder: str | Path, tokenizer: "PreTrainedTokenizerFast | None" = None
    ) -> "Prepared":
        """Open and check a folder; with a tokenizer, also check that the data are its own."""
        folder = Path(PATH.check("folder", folder))
        check_path(folder, PLACE)
        if not (folder / PREPARED).exists():
            raise DataError(_absent(folder))
        facts = read_object(folder / PREPARED, DAMAGED)
        if facts.get("format") != FORMAT:
            raise DataError(
                f"{folder} has format {facts.get('format')}, expected {FORMAT}; prepare it again"
            )
        check_shape(facts, FACTS, folder / PREPARED, DAMAGED)
        prepared = cls(folder, facts)
        for split in SPLITS:
            prepared._check_sizes(split)
        if tokenizer is not None:
            prepared.check_tokenizer(tokenizer)
        return prepared

    def _check_sizes(self, split: str) -> None:
        counts = self.facts["splits"][split]
        expected = {
            "tokens.bin": counts["tokens"] * self.dtype.itemsize,
            "documents.bin": counts["documents"] * ENDS.itemsize,
        }
        for name, size in expected.items():
            path = self.folder / split / name
            actual = path.stat().st_size if path.is_file() else None
            if actual != size:
                raise DataError(
                    f"{path} is damaged: expected {size} bytes, "
                    f"{'it is missing' if actual is None else f'got {actual}'}; "
                    "prepare into a new folder"
                )

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        """Raise if the data were prepared with another tokenizer."""
        own, other = self.facts["tokenizer"], fingerprint(tokenizer)
        if own["fingerprint"] != other:
            raise DataError(
                f"the data in {self.folder} were prepared with tokenizer {own['name']} "
                f"(fingerprint {own['fingerprint']}), but the tokenizer given is "
                f"{tokenizer.name_or_path or 'unnamed'} (fingerprint {other}); "
                f"use the tokenizer in {self.folder / 'tokenizer'} or prepare the data again"
            )

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The tokenizer that the data were prepared with."""
        if not (self.folder / "tokenizer").is_dir():
            raise DAMAGED.fault(self.folder / "tokenizer", "expected a folder")
        tokenizer = load_tokenizer(self.folder / "tokenizer")
        self.check_tokenizer(tokenizer)
        return tokenizer

    @property
    def dtype(self) -> np.dtype:
        return token_dtype(self.facts["tokenizer"]["vocab_size"])

    @property
    def fingerprint(self) -> str:
        """A hash of all tokens and document borders."""
        return self.facts["fingerprint"]

    def split(self, name: str) -> Split:
        """Map one split into memory."""
        if TEXT.check("split", name) not in SPLITS:
            raise ConfigError(f"no split {name!r}{near(name, SPLITS)}")
        if not self.facts["splits"][name]["tokens"]:
            raise DataError(
                f"split {name!r} of {self.folder} is empty; "
                "prepare with a larger share of validation, or with more text"
            )
        return Split(
            tokens=np.memmap(self.folder / name / "tokens.bin", self.dtype, mode="r"),
            ends=np.memmap(self.folder / name / "documents.bin", ENDS, mode="r"),
        )

    def verify(self) -> None:
        """Read every byte and raise if any differs from what was prepared."""
        actual = hash_files(self.folder)
        if actual != self.fingerprint:
            raise DataError(
                f"the data in {self.folder} are damaged: fingerprint {actual}, "
                f"expected {self.fingerprint}; prepare into a new folder"
            )


def _absent(folder: Path) -> str:
    if folder.exists() and not folder.is_dir():
        return f"expected a folder of prepared data, got {folder}, which is none; {PLACE.mend}"
    if (folder / JOURNAL).exists():
        return (
            f"the preparation in {folder} was interrupted; run the same prepare command again "
            "and it goes on where it stopped"
        )
    return f"no prepared data in {folder} (no prepared.json); run: sfumato data prepare SOURCE OUT"


def hash_files(folder: Path) -> str:
    """A hash of all tokens and document borders."""
    digest = hashlib.blake2b(digest_size=16)
    for split in SPLITS:
        for name in ("tokens.bin", "documents.bin"):
            with (folder / split / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def length_statistics(ends_file: Path) -> dict[str, float]:
    """Mean and percentiles of document lengths in tokens; pass by pass, in bounded memory."""
    counts: Counter[int] = Counter()
    last = np.zeros(1, ENDS)
    with ends_file.open("rb") as file:
        while len(ends := np.frombuffer(file.read(2**23), ENDS)):
            lengths, times = np.unique(np.diff(ends, prepend=last), return_counts=True)
            counts.update(dict(zip(lengths.tolist(), times.tolist(), strict=True)))
            last = ends[-1:]
    if not counts:
        return {}
    lengths = np.array(sorted(counts))
    times = np.array([counts[length] for length in lengths.tolist()])
    shares = np.cumsum(times) / times.sum()
    at = np.searchsorted(shares, np.array(PERCENTILES) / 100 - 1e-12)
    mean = float((lengths * times).sum() / times.sum())
    return {"mean": mean} | {
        f"p{p}": int(lengths[i]) for p, i in zip(PERCENTILES, at.tolist(), strict=True)
    }
