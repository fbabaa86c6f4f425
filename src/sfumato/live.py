"""The terminal view of a page while it is written: haze first, then words.

A decided token has the colour of the step that decided it, from violet (early) to gold (late);
given text is plain; what is still noise is shown as shade.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

if TYPE_CHECKING:
    from sfumato.pipeline import DiffusionLM, Page

NOISE = "\u2591\u2591\u2591"  # three cells: about the width of a token
FIRST, LAST = (140, 110, 240), (240, 190, 70)  # violet, gold
FRAMES_PER_SECOND = 24


def colour(step: int, num_steps: int) -> str:
    """The colour of a step, from FIRST to LAST."""
    share = (step - 1) / max(num_steps - 1, 1)
    mixed = (round(a + share * (b - a)) for a, b in zip(FIRST, LAST, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def paint(lm: "DiffusionLM", page: "Page", row: int, num_steps: int) -> Text:
    """One row of a page as styled text, cut where its text ends."""
    shown = Text(overflow="fold")
    given = [(token, 0) for token in page.given[row].tolist()]
    own = zip(page.canvas.tokens[row].tolist(), page.decided[row].tolist(), strict=True)
    for step, run in groupby((*given, *own), key=lambda pair: pair[1]):
        ids = [token for token, _ in run]
        if step < 0:
            shown.append(NOISE * len(ids), style="dim")
            continue
        ends = [n for n, i in enumerate(ids) if i in (lm.special.eos, lm.special.pad)]
        text = lm.tokenizer.decode(ids[: ends[0]] if ends else ids, skip_special_tokens=True)
        shown.append(text, style="bold" if step == 0 else colour(step, num_steps))
        if ends:
            break
    return shown


def watch(
    lm: "DiffusionLM", pages: Iterator["Page"], num_steps: int, console: Console
) -> Iterator["Page"]:
    """Draw the pages as they pass by; all rows, one under another."""
    with Live(console=console, refresh_per_second=FRAMES_PER_SECOND, transient=True) as screen:
        for page in pages:
            rows = len(page.canvas.tokens)
            texts = [paint(lm, page, row, num_steps) for row in range(rows)]
            left = int(page.canvas.noisy.sum())
            status = Text(f"step {page.step}, {left} tokens to decide", style="dim")
            screen.update(Group(*texts, status))
            yield page
