"""What commands say while they work, where nobody sees a status."""

import pytest

from sfumato.cli import terminal
from sfumato.cli.terminal import open_console, show_status


def test_a_pipe_gets_a_line_now_and_then(monkeypatch, capfd):
    clock = iter(range(0, 100, 4))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    with show_status("starting") as tell:
        for number in range(10):
            tell(f"{number} of 10")
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "2 of 10", "after 10 seconds"
    assert 2 <= len(lines) <= 4


def test_an_evaluation_tells_a_pipe_how_far_it_is(run, taught_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(terminal, "PAUSE", 0.0)
    (tmp_path / "text.txt").write_text("The fox met a bear.\n" * 3)
    code, _, err = run("evaluate", taught_folder, tmp_path / "text.txt", "--num-samples", 1)
    assert code == 0
    assert "likelihood: " in err
    assert " rows" in err


@pytest.mark.parametrize("name", ["FORCE_COLOR", "CLICOLOR_FORCE"])
def test_a_pipe_is_no_terminal_whatever_is_forced(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not open_console().is_terminal
