"""Pairs of texts as a source: what is written from, and what is written."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from sfumato.arguments import check_fields
from sfumato.data.documents import Piece
from sfumato.data.sentences import cut_first
from sfumato.data.sources import Source
from sfumato.data.tally import Tally
from sfumato.errors import ConfigError, DataError

SOURCES, TARGETS = "sources", "targets"  # the sides
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
