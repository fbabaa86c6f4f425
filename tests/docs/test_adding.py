"""What the page about adding adds works in a copy of the package, in the files that it names."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sfumato

SOURCE = Path(sfumato.__file__).parent
TESTS = Path(__file__).parents[1]
PAGE = (TESTS.parent / "docs" / "adding.md").read_text(encoding="utf-8")
PIECE = re.compile(r'```(python|diff) title="([^"]+)"\n(.*?)```', re.DOTALL)

USE = {
    "A way of writing": """
import torch
from tiny_lm import tiny_lm
from sfumato.errors import ConfigError

lm = tiny_lm()
pages = list(lm.stream(length=9, halves=True, seed=0))
even = torch.arange(9) % 2 == 0
odd_begun = [bool((~page.canvas.noisy[0, ~even]).any()) for page in pages]
even_over = [not bool(page.canvas.noisy[0, even].any()) for page in pages]
assert all(over for begun, over in zip(odd_begun, even_over) if begun)
assert odd_begun[-1] and not odd_begun[1]
assert not bool(pages[-1].canvas.noisy.any())
assert lm.generate(length=9, halves=True, regex="a+", seed=0).texts[0].strip("a") == ""
for other in (tiny_lm(objective="next_token"), tiny_lm(attention="block_causal", block_size=4)):
    try:
        other.generate(halves=True)
    except ConfigError as error:
        print(error)
        assert "halves" in str(error) and "leave it out" in str(error)
    else:
        raise SystemExit("not refused")
""",
    "A backbone": """
from pathlib import Path
from small_runs import prepare_words, run_all, small_run
from sfumato import DiffusionLM

words = prepare_words(Path("words"))
run_all(small_run(words, Path("run"), "model.family=sfumato_squared"))
lm = DiffusionLM.from_pretrained("run")
assert type(lm.model).__name__ == "SquaredTransformer", type(lm.model)
assert lm.generate(length=5, num_steps=5, seed=0).num_steps <= 5
assert lm.score("a fox")[0].value > 0
lm.save("again")
assert DiffusionLM.from_pretrained("again").model.config.model_type == "sfumato_squared"
""",
    "A file format": """
from pathlib import Path
from sfumato.data import Source
cue = "{0}\\n00:00:0{0},000 --> 00:00:0{0},500\\nIt was\\ncue {0}.\\n\\n"
Path("film.srt").write_text("".join(cue.format(n) for n in range(1, 4)))
assert list(Source("film.srt").documents()) == [f"It was cue {n}." for n in range(1, 4)]
""",
}


def pieces(section: str) -> list[tuple[str, str, str]]:
    """(python or diff, file, text) of a section of the page."""
    body = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return PIECE.findall(body)


def apply(diff: str, path: Path) -> None:
    """Lines that stand there (" " and "-") give way to those that shall (" " and "+")."""
    lines = diff.splitlines()
    before = "\n".join(line[1:] for line in lines if line[0] in " -")
    after = "\n".join(line[1:] for line in lines if line[0] in " +")
    text = path.read_text(encoding="utf-8")
    assert text.count(before + "\n") == 1, f"{path.name} has not once: {before}"
    path.write_text(text.replace(before + "\n", after + "\n"), encoding="utf-8")


@pytest.fixture
def package(tmp_path):
    """A copy of the package's code; the models it ships are linked."""
    copy = tmp_path / "src" / "sfumato"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("shipped", "__pycache__"))
    (copy / "shipped").symlink_to(SOURCE / "shipped")
    return copy


@pytest.mark.parametrize("section", USE)
def test_a_thing_is_added_as_the_page_says(section, package, tmp_path):
    found = pieces(section)
    (new,) = [name for kind, name, _ in found if kind == "python"]
    assert not (package / new).exists(), "a file of its own"
    for kind, name, text in found:
        if kind == "python":
            (package / name).write_text(text, encoding="utf-8")
        else:
            apply(text, package / name)
    path = os.pathsep.join((str(package.parent), str(TESTS)))
    done = subprocess.run(
        [sys.executable, "-c", USE[section]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
