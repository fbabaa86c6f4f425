import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from small_runs import stepped

from sfumato.cli.training_view import show
from sfumato.train.events import Evaluated, Finished, Sampled, Saved, Started

STARTED = Started(
    step=0,
    max_steps=6,
    num_weights=1_234_567,
    num_rows=1000,
    num_processes=1,
    device="cpu",
    precision="bfloat16",
)
EVENTS = (
    STARTED,
    *map(stepped, (1, 2, 3)),
    Evaluated(3, 3.25, 0.5, 0.25, True),
    Sampled(3, ("[red]Once[/red] upon\na time", "x" * 100)),
    Saved(3, Path("out/checkpoints/step-3")),
    *map(stepped, (4, 5, 6)),
    Evaluated(6, 3.5, 0.5, 0.125, False),
    Finished(6, Path("out"), 3.25, False),
)


TERMINAL = {"force_terminal": True, "legacy_windows": False, "color_system": None}


def shown(events, every=2, width=80, **options) -> str:
    file = io.StringIO()
    show(events, Console(file=file, width=width, **options), every)
    return file.getvalue()


def test_a_file_gets_plain_lines_one_every_logging_interval():
    assert shown(EVENTS).splitlines() == [
        "1.23 M weights, 1,000 rows, cpu, bfloat16",
        "step 2: loss 4.800  1:02:05 left  12,346 tokens/s",
        "step 3: held-out bound 3.2500 +- 0.5000 nats a position, 25.0% right, best",
        "step 3 writes:",
        "  [red]Once[/red] upon",
        "  a time",
        "  " + "x" * 100,
        "step 4: loss 4.600  1:02:05 left  12,346 tokens/s",
        "step 6: loss 4.400  1:02:05 left  12,346 tokens/s",
        "step 6: held-out bound 3.5000 +- 0.5000 nats a position, 12.5% right",
        "done after 6 steps, best held-out bound 3.2500: out",
    ]


def test_a_terminal_gets_a_bar_and_the_same_lines():
    out = shown(EVENTS, force_terminal=True, legacy_windows=False)
    assert "6/6" in out
    assert "loss 4.400" in out
    assert "\u2501" in out, "the bar"
    for words in (
        "1.23 M weights",
        "25.0% right, best",
        "[red]Once[/red] upon",
        "done after 6 steps",
    ):
        assert words in out
    assert out.rindex("\x1b[?25h") > out.rindex("\x1b[?25l"), "the cursor is back"


@pytest.mark.parametrize("width", [120, 80, 50, 40])
def test_the_bar_is_one_line_and_the_last_figures_are_what_a_narrow_terminal_lacks(width):
    out = shown(EVENTS, width=width, **TERMINAL)
    lines = [line for part in out.split("\n") for line in part.split("\r\x1b[2K")]
    bars = [line.strip() for line in lines if "/6  loss" in line]
    assert bars
    assert all(len(line) <= width for line in bars)
    assert all("  1:02:05 left  12,3" in line for line in bars)
    assert all(("\u2501" in line) == (width > 45) for line in bars)
    assert all(line.endswith(" tokens/s") == (width > 45) for line in bars)


def test_control_characters_that_a_model_writes_do_not_reach_the_screen():
    out = shown([STARTED, Sampled(1, ("a\x1b[2Jb\x07\x7f\x9bc\td",))], **TERMINAL)
    assert "a\u241b[2Jb\u2407\u2421\ufffdc" in out
    for one in ("\x1b[2Jb", "\x07", "\x7f", "\x9b"):
        assert one not in out


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = shown(EVENTS, **TERMINAL)
    assert "step 4: loss 4.600" in out
    assert "\x1b" not in out


def test_a_run_that_goes_on_or_stops_early_says_so():
    lines = shown(
        [
            replace(STARTED, step=7, num_processes=4),
            Finished(8, Path("out"), None, True),
        ]
    )
    assert lines.splitlines() == [
        "1.23 M weights, 1,000 rows, 4 x cpu, bfloat16, going on after step 7",
        "done after 8 steps, stopped early: out",
    ]
