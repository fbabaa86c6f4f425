"""What the pages say is so: the README's Python prints what it shows, every command is one."""

import re
import shlex
from pathlib import Path

import pytest
import typer.main
from scripts import load_script

from sfumato.cli import app
from sfumato.train import load_run

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "recipes").rglob("*.yaml")),
    *sorted((ROOT / "src" / "sfumato" / "shipped").rglob("README.md")),
]
COMMANDS = (
    re.compile(r"`(?:\S*bin/)?sfumato ([^`]+)`"),
    re.compile(r"^(?:#? +)?(?:.*bin/)?sfumato (.*)$", re.MULTILINE),
)


def commands(page: Path) -> list[str]:
    """Every command line of a page, in code spans and on lines of their own."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return [words for pattern in COMMANDS for words in pattern.findall(text)]


SHOWN = [(page.relative_to(ROOT), words) for page in PAGES for words in commands(page)]


def readme_output():
    """The script that writes the output into the README."""
    return load_script(ROOT / "docs/readme_output.py")


def test_the_python_of_the_readme_prints_what_it_shows(tmp_path):
    script, text = readme_output(), (ROOT / "README.md").read_text(encoding="utf-8")
    (code,), (shown,) = script.CODE.findall(text), script.SHOWN.findall(text)
    printed = script.output(code, tmp_path)
    assert printed == shown, "if this is meant: python docs/readme_output.py"
    saved = {path.name for path in (tmp_path / "my-model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= saved


def test_the_first_commands_of_the_readme_are_the_two():
    first, second = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[
        :2
    ]
    assert first.endswith('sfumato generate "Once upon a time"\n')
    assert second.endswith("pytest\n")
    for lines in (first, second):
        assert lines.startswith("python3 -m venv .venv && .venv/bin/pip install ")
        assert lines.count("\n") == 1


@pytest.mark.parametrize(("page", "words"), SHOWN, ids=[f"{p}: {w}"[:60] for p, w in SHOWN])
def test_every_command_of_the_pages_is_one(page, words):
    command, typed = typer.main.get_command(app), words.partition(" > ")[0]
    given = shlex.split(typed, comments=True)
    if given[0].isupper():  # any command
        return
    while given and given[0] in getattr(command, "commands", {}):
        command = command.commands[given.pop(0)]
    assert not hasattr(command, "commands"), f"no command in '{words}'"
    if not given:  # it is only named
        return
    context = command.make_context("sfumato", given)
    if context.params.get("run") is not None:  # `train --keys` needs none
        run = context.params["run"]
        made = ("RUN.yaml", "mine.yaml")  # by `sfumato init`
        run = Path("recipes/stories.yaml") if run.name in made else run
        load_run(ROOT / run, context.args)


def test_the_pages_have_commands():
    found = {words.split()[0] for _, words in SHOWN}
    assert found >= {"generate", "data", "train", "evaluate", "doctor", "tokenizer"}
