"""The terminal view of a page while it is written: haze first, then words.

A token has the colour of the step that decided it, from violet (the first) to gold (the latest so
far); given text is bold; what is still noise is shade. A terminal of few colours, whose grounds and
colours nobody can know, marks the latest alone.
"""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sfumato.cli.colours import BETWEEN, level, shade
from sfumato.lm.pages import NOISE

if TYPE_CHECKING:
    from sfumato.lm.pages import Page, PageReader

HAZE = " " + 2 * NOISE  # one noisy token, about as wide as a short word
FRAMES_PER_SECOND = 24
# what would move the cursor or clear the screen; rich leaves out carriage returns itself
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"}
CONTROLS |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def colour(step: int, latest: int) -> str:
    """The colour of a step, from violet to gold; it can be read on black and on white."""
    return shade(level((step - 1) / max(latest - 1, 1)), BETWEEN)


def printable(text: str) -> str:
    """Text with pictures of its control characters: a model of bytes may write any."""
    return text.translate(CONTROLS)


def haze(console: Console) -> str:
    """A noisy token, in characters that the console's encoding has."""
    try:
        HAZE.encode(console.encoding)
    except UnicodeEncodeError:
        return " " + 2 * "."
    return HAZE


def paint(reader: "PageReader", page: "Page", row: int, console: Console | None = None) -> Text:
    """One row of a page as styled text, cut where its text ends."""
    few = console is not None and (
        console.no_color or console.color_system in (None, "standard", "windows")
    )
    noise = HAZE if console is None else haze(console)
    shown = Text(overflow="fold")
    for piece in reader.pieces(page, row, by_step=True):
        if piece.step < 0:
            shown.append(noise * len(piece.tokens), style="dim")
        elif piece.step == 0:
            shown.append(printable(piece.text), "bold")
        elif few:
            shown.append(printable(piece.text), "underline" if piece.step == page.step else "")
        else:
            shown.append(printable(piece.text), colour(piece.step, page.step))
    return shown


def frame(reader: "PageReader", page: "Page", console: Console) -> Group:
    """All rows one under another, and how far they are; where the screen lacks the room, the part
    of each row that is being written."""
    room = max(console.height - 2, 1)
    rows = range(len(page.request.rows))
    painted = [list(paint(reader, page, r, console).wrap(console, console.width)) for r in rows]
    shown = _windows(painted, room)
    left = int(page.canvas.noisy.sum())
    status = f"step {page.step}, {left} tokens to decide"
    total = sum(map(len, painted))
    if total > len(shown):
        status += f"; {len(shown)} of {total} lines"
    return Group(*shown, Text(status, style="dim", overflow="ellipsis", no_wrap=True))


def _windows(painted: Sequence[Sequence[Text]], room: int) -> list[Text]:
    """As many lines as there is room for: of every row an equal share, around its first noise; rows
    that need less leave it to the others. Of too many rows, the first."""
    shares = [0] * len(painted)
    for _ in range(room):  # line by line, to whoever has the fewest
        wanting = [row for row, lines in enumerate(painted) if shares[row] < len(lines)]
        if not wanting:
            break
        shares[min(wanting, key=lambda row: shares[row])] += 1
    shown = []
    for lines, share in zip(painted, shares, strict=True):
        noisy = (at for at, line in enumerate(lines) if _is_noisy(line))
        front = next(noisy, len(lines) - 1)
        # what was just written stays in sight, and some of what comes
        top = min(max(front - (2 * share) // 3, 0), len(lines) - share)
        shown += lines[top : top + share]
    return shown


def _is_noisy(line: Text) -> bool:
    return any(span.style == "dim" for span in line.spans)


def watch(reader: "PageReader", pages: Iterator["Page"], console: Console) -> Iterator["Page"]:
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
