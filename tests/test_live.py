import io
import time

import pytest
from rich.console import Console
from tiny_lm import tiny_lm

from sfumato.cli.live import FIRST, HAZE, LATEST, colour, frame, paint, printable, watch
from sfumato.pages import NOISE


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


def screen() -> Console:
    options = {"width": 60, "height": 20, "color_system": "truecolor"}
    return Console(file=io.StringIO(), force_terminal=True, legacy_windows=False, **options)


def drawn(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_colours_go_from_the_first_step_to_the_latest():
    assert colour(1, 9) == "#{:02x}{:02x}{:02x}".format(*FIRST)
    assert colour(9, 9) == "#{:02x}{:02x}{:02x}".format(*LATEST)
    assert len({colour(step, 9) for step in range(1, 10)}) == 9
    assert colour(1, 1) == colour(1, 9)


def test_a_page_is_painted_by_the_steps_that_decided_it(lm):
    pages = list(lm.stream("The fox", length=6, seed=1, step="margin"))
    blank, middle, done = (paint(lm.reader, pages[n], 0) for n in (0, 3, -1))
    assert blank.plain == "The fox" + 6 * HAZE
    assert [span.style for span in blank.spans] == ["bold", "dim"]
    assert middle.plain.count(HAZE) == 3
    assert done.plain == lm.finish(pages[-1]).text
    styles = [span.style for span in done.spans][1:]
    steps = [piece.step for piece in lm.reader.pieces(pages[-1], 0, by_step=True)][1:]
    assert styles == [colour(step, pages[-1].step) for step in steps]
    assert len(set(styles)) > 2


def test_what_would_move_the_cursor_is_a_picture(lm):
    page = next(lm.stream("a\x1b[2Jb", length=1, seed=1))
    assert paint(lm.reader, page, 0).plain == "a\u241b[2Jb" + HAZE
    assert printable("\x00\x1f\x7f\x80\x9f") == "\u2400\u241f\u2421\ufffd\ufffd"
    assert printable("caf\u00e9\t\u00a0\n\u241b") == "caf\u00e9\t\u00a0\n\u241b"


def test_watching_draws_every_row_and_changes_nothing(lm):
    console = screen()
    again = {"prompt": ["The fox", "A caf\u00e9"], "length": 6, "seed": 1, "num_steps": 3}
    pages = []
    for page in watch(lm.reader, lm.stream(**again), console):
        pages.append(page)
        time.sleep(0.05)  # longer than a frame
    assert lm.finish(pages[-1]) == lm.generate(**again)
    shown = drawn(console)
    for words in ("The fox", "A caf\u00e9", "step 0, 12 tokens to decide", "step 3, 0 tokens"):
        assert words in shown
    assert NOISE in shown


def test_the_screen_is_clean_and_has_its_cursor_afterwards(lm):
    console = screen()
    list(watch(lm.reader, lm.stream("The fox", length=4, seed=1), console))
    before, after = drawn(console).split("\x1b[?25h")  # shows the cursor
    assert before.startswith("\x1b[?25l")
    assert after.count("\x1b[1A\x1b[2K") == 2, "the text and the line below it are gone"


def test_pages_that_nobody_could_see_are_not_drawn(lm):
    console = screen()
    pages = list(lm.stream("", length=8, seed=1))
    passed = list(watch(lm.reader, iter(pages * 50), console))
    assert len(passed) == 50 * len(pages)
    assert drawn(console).count("tokens to decide") < len(passed) / 2


def test_a_frame_is_no_larger_than_the_screen(lm):
    """What scrolls off the screen cannot be taken back."""
    page = next(lm.stream(["The fox met"] * 30, length=30, seed=1))
    for height, lines in ((10, 9), (3, 2), (500, 30 * 2 + 1)):
        console = Console(file=io.StringIO(), force_terminal=True, width=60, height=height)
        drawn = frame(lm.reader, page, console).renderables
        assert len(drawn) == lines
        assert drawn[-1].plain == "step 0, 900 tokens to decide"
        assert max(console.measure(line).maximum for line in drawn) <= 60
