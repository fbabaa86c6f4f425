"""Where the first sentence of a text ends."""

import re

ENDINGS = ".!?\u2026\u3002\uff01\uff1f"
UNSPACED = ENDINGS[4:]  # after these no space is needed
CLOSING = "\"'\u2019\u201d)]\u00bb\u300d"
OPENING = "\"'\u2018\u201c([\u00ab\u300c-\u2013\u2014 "
ABBREVIATIONS = frozenset(
    ("mr", "mrs", "ms", "dr", "st", "prof", "sr", "jr", "vs", "etc", "e.g", "i.e")
)
LONGEST = max(map(len, ABBREVIATIONS))

_CANDIDATE = re.compile(rf"[\n{ENDINGS}]")
_EMPTY_LINE = re.compile(r"\n[ \t\r]*\n")
_MARKS = re.compile(f"[{re.escape(ENDINGS + CLOSING)}]+")
_NEXT = re.compile(rf"(?P<space>\s*)[{re.escape(OPENING)}]*(?P<letter>.?)", re.DOTALL)


def cut_first(text: str) -> tuple[str, str]:
    """The first sentence and the rest, without the space between; no end, no rest.

    A sentence ends at a full stop or its like (and quotes after it) if then comes a space and no
    small letter, and not after "Mr." and its like; or at an empty line.
    """
    begin = len(text) - len(text.lstrip())
    end, spaced, goes_on = 0, False, True  # of the marks that stand together here
    for found in _CANDIDATE.finditer(text, begin):
        at, mark = found.start(), found[0]
        if mark == "\n":
            if _EMPTY_LINE.match(text, at):
                return text[begin:at].rstrip(), text[at:].strip()
            continue
        if at >= end:
            end = _end(text, at)
            following = _NEXT.match(text, end)
            assert following is not None, "it can be empty"
            letter = following["letter"]
            spaced, goes_on = bool(following["space"]), not letter or letter.islower()
        if goes_on or not (spaced or mark in UNSPACED):
            continue
        if mark != "." or not _abbreviated(text, at):
            return text[begin:end].rstrip(), text[end:].strip()
    return text.strip(), ""


def _end(text: str, at: int) -> int:
    found = _MARKS.match(text, at)
    assert found is not None, "there is a mark"
    return found.end()


def _abbreviated(text: str, at: int) -> bool:
    """Whether the word before a full stop is one that takes it, whatever opens before the word."""
    while at and text[at - 1].isspace():
        at -= 1
    start = at
    while start and at - start <= LONGEST and not _apart(text[start - 1]):
        start -= 1
    if text[start:at].lower() not in ABBREVIATIONS:
        return False
    while start and text[start - 1] in OPENING and not text[start - 1].isspace():
        start -= 1
    return not start or text[start - 1].isspace()


def _apart(character: str) -> bool:
    return character.isspace() or character in OPENING
