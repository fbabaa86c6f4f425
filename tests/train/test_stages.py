"""Where the loss of a run changes its meaning, and that it is marked."""

import io

import pytest
from matplotlib.figure import Figure
from rich.console import Console
from small_runs import stepped

from sfumato.cli.training_view import show
from sfumato.train import load_run
from sfumato.train.log import draw
from sfumato.train.stages import stages

LEAST = {"output": "o", "data": {"folder": "d"}, "train": {"max_steps": 50, "warmup_steps": 1}}
BLOCKS = ("objective.name=block", "model.block_size=8")
GROWING = "objective.curriculum=[{size: 2, steps: 10}, {size: 4, steps: 20}]"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ((), []),
        (BLOCKS, []),
        (("objective.next_token_steps=20",), [(20, "masked")]),
        (("objective.next_token_steps=50",), []),
        ((*BLOCKS, GROWING), [(10, "blocks of 4"), (30, "blocks of 8")]),
        (
            (*BLOCKS, GROWING, "objective.next_token_steps=15"),
            [(15, "blocks of 4"), (30, "blocks of 8")],
        ),
        ((*BLOCKS, GROWING, "objective.next_token_steps=40"), [(40, "blocks of 8")]),
        ((*BLOCKS, GROWING, "train.max_steps=20"), [(10, "blocks of 4")]),
    ],
)
def test_a_run_says_where_its_loss_changes(keys, expected):
    assert stages(load_run(LEAST, keys)) == expected


@pytest.mark.parametrize("terminal", [False, True])
def test_the_view_says_it_at_the_step(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    show(map(stepped, (1, 2, 3)), console, 10, [(2, "masked")])
    said = console.file.getvalue()
    assert said.count("step 2: masked from now on; the loss is another one") == 1


def test_the_curve_has_a_line_there():
    figure = Figure()
    draw([{"step": 1, "loss": 2.0}, {"step": 9, "loss": 1.0}], figure, [(5, "masked")])
    (axes,) = figure.axes
    assert [list(line.get_xdata()) for line in axes.lines][1:] == [[5, 5]]
    assert [text.get_text() for text in axes.texts] == ["masked"]
