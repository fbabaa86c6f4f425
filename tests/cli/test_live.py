import io
import re
import time
from dataclasses import replace

import pytest
from rich.console import Console
from tiny_lm import tiny_lm

from sfumato.cli.colours import BETWEEN, LEVELS, shade
from sfumato.cli.live import HAZE, colour, frame, paint, printable, watch
from sfumato.lm.model import DiffusionLM
from sfumato.lm.pages import NOISE


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
    assert colour(1, 9) == shade(0, BETWEEN)
    assert colour(9, 9) == shade(LEVELS, BETWEEN)
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
        cut = "" if height == 500 else f"; {lines - 1} of 60 lines"
        assert drawn[-1].plain == "step 0, 900 tokens to decide" + cut
        assert max(console.measure(line).maximum for line in drawn) <= 60


@pytest.fixture(scope="module")
def wide():
    """A canvas for texts that are longer than a screen."""
    lm = tiny_lm(max_position_embeddings=512)
    return DiffusionLM(lm.model, lm.tokenizer, replace(lm.options, canvas=512))


def lines_of(lm, page, height, width=40, **more) -> list[str]:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, **more)
    return [line.plain for line in frame(lm.reader, page, console).renderables]


def test_a_text_longer_than_the_screen_scrolls_with_what_is_written(wide):
    """What is being written is in sight at every step, and the end when all is."""
    lm = wide
    pages = list(lm.stream(" ".join(map(str, range(120))), length=90, seed=1, step="left_to_right"))
    tops = []
    for page in pages:
        shown, whole = lines_of(lm, page, 8), lines_of(lm, page, 500)
        assert len(shown) == 7
        assert "of" in shown[-1]
        first = whole.index(shown[0])
        assert whole[first : first + 6] == shown[:-1]
        noisy = [n for n, line in enumerate(whole[:-1]) if NOISE in line]
        assert not noisy or first <= noisy[0] < first + 6
        tops.append(first)
    assert tops[0] > 0
    assert tops[-1] > tops[0]
    assert lines_of(lm, pages[-1], 8)[:-1] == lines_of(lm, pages[-1], 500)[-7:-1]


def test_rows_share_a_small_screen(wide):
    lm = wide
    page = next(lm.stream(["A " * 150, "B", "C " * 150], length=5, seed=1))
    shown = lines_of(lm, page, 11)[:-1]
    assert len(shown) == 9
    assert [sum(line.startswith(row) for line in shown) for row in "ABC"] == [4, 1, 4]
    assert sum(NOISE in line for line in shown) >= 3, "all rows are being written"


@pytest.mark.parametrize("width", [100, 50, 40, 12, 1])
def test_a_frame_fits_a_narrow_terminal(lm, width):
    page = next(lm.stream(["The fox met", "A caf\u00e9"], length=30, seed=1))
    assert max(map(len, lines_of(lm, page, 10, width)[:-1])) <= width
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=10)
    console.print(frame(lm.reader, page, console))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", drawn(console))
    assert max(map(len, plain.splitlines())) <= width, "the status too"


def test_colours_are_left_to_terminals_that_have_them(lm):
    page = list(lm.stream("The fox", length=6, seed=1, step="margin"))[-1]

    def styles(**more):
        console = Console(file=io.StringIO(), force_terminal=True, **more)
        return {str(span.style) for span in paint(lm.reader, page, 0, console).spans}

    assert styles(color_system="truecolor") > {"bold", colour(6, 6)}
    assert styles(color_system="standard") == {"bold", "underline"}
    assert styles(color_system="truecolor", no_color=True) == {"bold", "underline"}


def test_haze_is_in_characters_that_the_terminal_has(lm):
    page = next(lm.stream("The fox", length=4, seed=1))
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=narrow, force_terminal=True, width=60)
    console.print(frame(lm.reader, page, console))
    narrow.flush()
    assert b" .. .. .. .." in narrow.buffer.getvalue()
