"""The terminal view of a page while it is written: haze first, then words.

A token has the colour of the step that decided it, from violet (the first) to gold (the latest so
far); given text is bold; what is still noise is shade.
"""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sfumato.pages import NOISE

if TYPE_CHECKING:
    from sfumato.pages import Page, Reader

HAZE = " " + 2 * NOISE  # one noisy token, about as wide as a short word
FIRST, LATEST = (140, 110, 240), (240, 190, 70)  # violet, gold
FRAMES_PER_SECOND = 24
# what would move the cursor or clear the screen; rich leaves out carriage returns itself
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"}
CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def colour(step: int, latest: int) -> str:
    """The colour of a step, from FIRST to LATEST."""
    share = (step - 1) / max(latest - 1, 1)
    mixed = (round(a + share * (b - a)) for a, b in zip(FIRST, LATEST, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def printable(text: str) -> str:
    """Text with pictures of its control characters: a model of bytes may write any."""
    return text.translate(CONTROLS)


def paint(reader: "Reader", page: "Page", row: int) -> Text:
    """One row of a page as styled text, cut where its text ends."""
    shown = Text(overflow="fold")
    for piece in reader.pieces(page, row, by_step=True):
        if piece.step < 0:
            shown.append(HAZE * len(piece.tokens), style="dim")
        else:
            style = "bold" if piece.step == 0 else colour(piece.step, page.step)
            shown.append(printable(piece.text), style)
    return shown


def frame(reader: "Reader", page: "Page", console: Console) -> Group:
    """All rows one under another, as much of them as the screen has room for, and how far it is."""
    rows = range(len(page.task.rows))
    lines = [line for row in rows for line in paint(reader, page, row).wrap(console, console.width)]
    left = int(page.canvas.noisy.sum())
    status = Text(f"step {page.step}, {left} tokens to decide", style="dim")
    return Group(*lines[: max(console.height - 2, 1)], status)


def watch(reader: "Reader", pages: Iterator["Page"], console: Console) -> Iterator["Page"]:
    """Draw the pages as they pass by; the screen is clean afterwards.

    Pages that come faster than the screen is drawn are passed on without being looked at.
    """
    due = 0.0
    with Live(console=console, auto_refresh=False, transient=True) as screen:
        for page in pages:
            if time.monotonic() >= due:
                due = time.monotonic() + 1 / FRAMES_PER_SECOND
                screen.update(frame(reader, page, console), refresh=True)
            yield page
