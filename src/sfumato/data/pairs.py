"""Pairs of texts, prepared: what is written from, and what is written.

pairs.json      counts, skipped pairs by reason, fingerprint; written last, so it means "done"
sources/        prepared data (see `prepared.py`) of all sources
targets/        and of all targets, document for document; ordinary data, too, to learn from alone

Each side is prepared as any text is: bos, tokens, eos, resumable, the same every time.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sfumato.arguments import PATH, Kind, check_fields
from sfumato.data.documents import Piece
from sfumato.data.journal import Progress, write_json
from sfumato.data.prepared import DAMAGED, PLACE, PREPARED, SPLITS, Prepared
from sfumato.data.sentences import cut_first
from sfumato.data.sources import Source
from sfumato.data.tally import Tally
from sfumato.data.text import prepare
from sfumato.data.tokenizing import SHARD
from sfumato.errors import ConfigError, DataError
from sfumato.storage.files import check_path
from sfumato.storage.publish import is_part
from sfumato.storage.structured import check_shape, read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAIRS, SOURCES, TARGETS = "pairs.json", "sources", "targets"
FORMAT = 2
BLANK, NO_SOURCE, NO_TARGET = "blank", "empty source", "empty target"


class Pair(NamedTuple):
    """Two texts, and what decides their split."""

    source: str
    target: str
    whole: str


@dataclass(frozen=True)
class Pairs:
    """Two fields of every record, or else every document cut after its first sentence.

    Records in which both sides are blank are no pairs, and counted. With `skip_empty`, those with
    one blank side are skipped and counted; else they are errors.
    """

    source: Source
    source_field: str | None = None
    target_field: str | None = None
    skip_empty: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "{} of pairs")
        if (self.source_field is None) != (self.target_field is None):
            raise ConfigError("pairs need both fields, of the source and of the target; give both")

    def identity(self) -> dict[str, object]:
        """What must stay equal for an interrupted preparation to go on."""
        kind = [self.source_field, self.target_field] if self.source_field else "first-sentence"
        return {"pairs": kind, "skip_empty": self.skip_empty, **self.source.identity()}

    def content(self) -> dict[str, str]:
        """Digests of what is read, whole files also where a limit takes a part of them."""
        return replace(self.source, limit=None).content()

    def __iter__(self) -> Iterator[Pair]:
        return (pair for pair, skipped in self.read() if skipped is None)

    def skipped(self) -> dict[str, int]:
        """How many records are no pairs, and why; reads everything."""
        return dict(Counter(reason for _, reason in self.read() if reason is not None))

    def read(self, tally: Tally | None = None) -> Iterator[tuple[Pair, str | None]]:
        """Every record, and why it is skipped, if it is; `tally` counts what is no record."""
        for where, pair in self._records(Tally() if tally is None else tally):
            source, target = bool(pair.source.strip()), bool(pair.target.strip())
            if source and target:
                yield pair, None
                continue
            reason = BLANK if not (source or target) else NO_TARGET if source else NO_SOURCE
            if reason != BLANK and not self.skip_empty:
                raise DataError(
                    f"{where}: {reason} in a pair; mend it, or skip and count such pairs: "
                    "--skip-empty"
                )
            yield pair, reason

    def _records(self, tally: Tally) -> Iterator[tuple[str, Pair]]:
        if self.source_field is None or self.target_field is None:
            for number, (text, _, _) in enumerate(self.source.pieces(None, tally), 1):
                yield f"{self.source.name}, document {number}", Pair(*cut_first(text), text)
            return
        left = self.source.limit
        wanted = (self.source_field, self.target_field)
        for where, (source, target) in self.source.records(wanted, tally):
            if left == 0:
                return
            yield where, Pair(source, target, f"{source}\n{target}")
            left = None if left is None else left - bool(source.strip() or target.strip())

    def sample(self, characters: int) -> Iterator[str]:
        """About as much text, for a tokenizer to learn from; of documents, what they are."""
        if self.source_field is None or self.target_field is None:
            yield from self.source.sample(characters)
            return
        for field in (self.source_field, self.target_field):
            yield from replace(self.source, field=field).sample(characters // 2)


PAIRED = Kind(Pairs)


@dataclass(frozen=True)
class Side:
    """One side of all pairs, for `prepare` to read as any source."""

    pairs: Pairs
    side: str  # SOURCES or TARGETS
    digests: dict[str, str]  # of the source, which is read once for both

    @property
    def name(self) -> str:
        return self.pairs.source.name

    def identity(self) -> dict[str, object]:
        return {**self.pairs.identity(), "side": self.side}

    def content(self) -> dict[str, str]:
        return self.digests

    def stamps(self) -> list[tuple[int, int, int]]:
        return self.pairs.source.stamps()

    def one_text(self) -> int | None:
        return None

    def num_bytes(self) -> int | None:
        return self.pairs.source.num_bytes()

    def pieces(self, size: int | None = None, tally: Tally | None = None) -> Iterator[Piece]:
        """Whole texts, of any length: both sides of a pair go to one split."""
        for pair, skipped in self.pairs.read(tally):
            if skipped is None:
                text = pair.source if self.side == SOURCES else pair.target
                yield Piece(text, True, pair.whole)

    def sample(self, characters: int) -> Iterator[str]:
        return self.pairs.sample(characters)


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
