"""Documents out of a stream of text: where they end, and how long ones are cut into pieces.

All work here is linear in the text: nothing that is left over is copied or searched again.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sfumato.data.tally import BLANK, Tally

PIECE = 2**15  # characters; a longer document comes in several pieces
END_OF_TEXT = "<|endoftext|>"  # what the .txt files of many data sets put between documents


class Piece(NamedTuple):
    """A stretch of a document."""

    text: str
    ends: bool  # the document ends here
    key: str | None = None  # decides the document's split, where its own text does not


def cut(chunks: Iterable[Piece], size: int | None, tally: Tally | None = None) -> Iterator[Piece]:
    """The same documents in pieces of at most `size` characters; blank ones are left out, counted.

    A cut goes before a space that follows other text, because byte-level tokenizers start a
    token there anyway: the tokens of the pieces are the tokens of the whole. Where a whole
    piece has no such space it is cut at `size`, and a token there may differ; text never does.
    """
    held: list[str] = []  # of the present document, not yielded yet
    waiting, started = 0, False  # characters held; whether a piece of it has been yielded
    for text, ends, _ in chunks:
        held.append(text)
        waiting += len(text)
        if size is not None and waiting > size:
            whole, start = "".join(held), 0
            while len(whole) - start > size:
                stop = _cut_place(whole, start, size)
                yield Piece(whole[start:stop], False)
                start, started = stop, True
            held, waiting = [whole[start:]], len(whole) - start
        if ends:
            whole = "".join(held)
            if started or whole.strip():
                yield Piece(whole, True)
            elif tally is not None:
                tally.leave_out(BLANK)
            held, waiting, started = [], 0, False


def _cut_place(text: str, start: int, size: int) -> int:
    """Where the piece that begins at `start` ends."""
    at = start + size
    while (at := text.rfind(" ", start + 1, at)) > 0:
        if not text[at - 1].isspace():
            return at
    return start + size


def split_text(blocks: Iterable[str], separator: str | None) -> Iterator[Piece]:
    """Documents of a text file at lines that are the separator alone (see `Source`).

    Line ends at the borders of a document belong to the file, not to its text. A separator at the
    very beginning or end of the file has no empty document beyond it.
    """
    line_ends: list[str] = []  # seen since the last other character: inside, or at the border
    fresh = first = True  # nothing of the present document, of the file, has been seen
    for text, ends in _at_borders(blocks, separator):
        body = text.lstrip("\r\n") if fresh else text
        kept = body.rstrip("\r\n")
        nothing = fresh and not kept and (first or separator == "")
        if kept or (ends and not nothing):
            inside = "".join(line_ends) if kept else ""
            yield Piece(inside + kept, ends)
            line_ends, fresh = [], ends
        if not fresh:
            line_ends.append(body[len(kept) :])
        first = first and not ends
    if not fresh:
        yield Piece("", True)


def _at_borders(blocks: Iterable[str], separator: str | None) -> Iterator[tuple[str, bool]]:
    """Stretches of text, and whether the document ends behind each; nothing ends the last one."""
    border = _border(separator)
    longest = len(separator or "") + PIECE  # a line beyond this is no separator
    # A line end around the file lets its first and last line be separators like any other.
    held = ""
    for block in itertools.chain(["\n"], blocks, ["\n"]):
        text, start = held + block, 0
        for found in border.finditer(text):
            yield text[start : found.start()], True
            start = found.end()
        # The last line may turn out to be a separator.
        stop = max(text.rfind("\n", start), start)
        if len(text) - stop > longest:
            stop = len(text)
        yield text[start:stop], False
        held = text[stop:]
    yield held, False


def count_borders(blocks: Iterable[str], separator: str, most: int) -> int:
    """How many documents a separator ends in a text, counted up to `most`."""
    ends = (ends for _, ends in _at_borders(blocks, separator) if ends)
    return sum(1 for _ in itertools.islice(ends, most))


def _border(separator: str | None) -> re.Pattern[str]:
    """What ends a document: a line feed and the separator's line behind it, without its end.

    Each begins with a plain line feed, which is found fast, and never looks at a character twice.
    """
    if separator is None:
        return re.compile(r"(?!)")
    if separator in ("\n", "\r\n"):
        return re.compile(r"\n(?=.)", re.DOTALL)  # the file's last line end begins no line
    if not separator:
        return re.compile(r"\n(?:[ \t]*\r?\n)*[ \t]*(?=\r?\n)")
    return re.compile(rf"\n{re.escape(separator)}[ \t]*(?=\r?\n)")
