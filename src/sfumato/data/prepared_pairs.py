"""Pairs of texts in prepared form: what is written from, and what is written.

pairs.json      counts, skipped pairs by reason, fingerprint; written last, so it means "done"
sources/        prepared data (see `prepared.py`) of all sources
targets/        and of all targets, document for document; ordinary data, too, to learn from alone

Each side is prepared as any text is: bos, tokens, eos, resumable, the same every time.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfumato.arguments import PATH, Kind
from sfumato.data.journal import Progress, write_json
from sfumato.data.pairs import SOURCES, TARGETS, Pairs, Side
from sfumato.data.preparation import prepare
from sfumato.data.prepared import DAMAGED, PLACE, PREPARED, SPLITS, Prepared
from sfumato.data.tokenizing import SHARD
from sfumato.errors import DataError
from sfumato.storage.files import check_path
from sfumato.storage.publish import is_part
from sfumato.storage.structured import check_shape, read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


PAIRS = "pairs.json"
FORMAT = 2
PAIRED = Kind(Pairs)


@dataclass(frozen=True)
class PreparedPairs:
    """A folder of prepared pairs whose files are all there."""

    folder: Path
    facts: dict[str, Any]  # pairs.json
    sources: Prepared
    targets: Prepared

    @classmethod
    def open(cls, folder: str | Path) -> "PreparedPairs":
        """Open and check a folder."""
        folder = Path(PATH.check("folder", folder))
        if not (folder / PAIRS).exists():
            raise DataError(
                f"the preparation of pairs in {folder} was interrupted; run the same prepare "
                "command again and it goes on where it stopped"
            )
        facts = read_object(folder / PAIRS, DAMAGED)
        if facts.get("format") != FORMAT:
            raise DataError(
                f"{folder} has format {facts.get('format')}, expected {FORMAT}; prepare it again"
            )
        check_shape(facts, {"fingerprint": str}, folder / PAIRS, DAMAGED)
        sources, targets = Prepared.open(folder / SOURCES), Prepared.open(folder / TARGETS)
        if _fingerprint(sources, targets) != facts["fingerprint"]:
            raise DataError(
                f"the two sides in {folder} do not belong together; prepare into a new folder"
            )
        return cls(folder, facts, sources, targets)

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        """Raise if the data were prepared with another tokenizer."""
        self.targets.check_tokenizer(tokenizer)

    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The tokenizer that the data were prepared with."""
        return self.targets.tokenizer()

    @property
    def fingerprint(self) -> str:
        """A hash of all tokens and document borders."""
        return self.facts["fingerprint"]

    def verify(self) -> None:
        """Read every byte of both sides and raise if any differs from what was prepared."""
        self.sources.verify()
        self.targets.verify()

    @property
    def longest_source(self) -> int:
        """Tokens of the longest source, in both splits."""
        lengths = [self.sources.facts["splits"][split]["lengths"] for split in SPLITS]
        return max(found["p100"] for found in lengths if found)


def holds_pairs(folder: str | Path) -> bool:
    """Whether a folder is one of pairs, finished or not."""
    folder = Path(folder)
    check_path(folder, PLACE)
    return (folder / PAIRS).is_file() or (
        (folder / TARGETS).is_dir() and not (folder / PREPARED).exists()
    )


def open_data(folder: str | Path) -> Prepared | PreparedPairs:
    """Prepared data of either kind."""
    return PreparedPairs.open(folder) if holds_pairs(folder) else Prepared.open(folder)


def prepare_pairs(
    pairs: Pairs,
    out: str | Path,
    tokenizer: "PreTrainedTokenizerFast | str | Path | None" = None,
    *,
    vocab_size: int | None = None,
    validation: float = 0.05,
    workers: int | None = None,
    shard: int = SHARD,
    lossy: bool = False,
    progress: Callable[[Progress], None] | None = None,
) -> PreparedPairs:
    """Tokenize both sides of all pairs into a folder; the arguments are those of `prepare`.

    Both sides go to the split that the hash of the whole pair says. Documents that are cut after
    their first sentence are held out exactly where `prepare` holds them out uncut.
    """
    pairs, out = PAIRED.check("pairs", pairs), Path(PATH.check("out", out))
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    foreign = {name for name in names - {PAIRS, SOURCES, TARGETS} if not is_part(name)}
    if foreign:
        raise DataError(
            f"{out} holds other files ({', '.join(sorted(foreign)[:3])}); "
            "give a new or an empty folder"
        )
    common: dict[str, Any] = {
        "validation": validation,
        "workers": workers,
        "shard": shard,
        "lossy": lossy,
        "progress": progress,
    }
    sides = {side: Side(pairs, side, pairs.content()) for side in (TARGETS, SOURCES)}
    targets = prepare(sides[TARGETS], out / TARGETS, tokenizer, vocab_size=vocab_size, **common)
    sources = prepare(sides[SOURCES], out / SOURCES, targets.tokenizer(), **common)
    if not (out / PAIRS).exists():
        counts = {split: targets.facts["splits"][split]["documents"] for split in SPLITS}
        facts = {
            "format": FORMAT,
            "pairs": counts,
            "skipped": pairs.skipped(),
            "fingerprint": _fingerprint(sources, targets),
        }
        write_json(out / PAIRS, facts)
    return PreparedPairs.open(out)


def _fingerprint(sources: Prepared, targets: Prepared) -> str:
    both = [
        (side.fingerprint, [side.facts["splits"][split]["documents"] for split in SPLITS])
        for side in (sources, targets)
    ]
    aligned = both[0][1] == both[1][1]
    digest = hashlib.blake2b(f"{both[0][0]} {both[1][0]}".encode(), digest_size=16).hexdigest()
    return digest if aligned else "of different numbers of documents"
