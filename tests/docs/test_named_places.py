"""What pages and docstrings name in backticks is there: files, folders, `sfumato.x.y`."""

import ast
import importlib
import re
from functools import reduce
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "sfumato"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(SOURCE.rglob("*.md")),
]
FENCED = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
NAME = re.compile(r"sfumato(\.\w+)+")
PLACE = re.compile(r"(\.ci|benchmarks|docs|recipes|src|tests)(/[\w.-]+)*/?|[\w./-]+\.(py|md)")
OTHERS = {"LLaDA/decoding.py", "src/model/llada_klass.py"}  # of other people's repositories


def named(text: str) -> list[str]:
    """The names of modules and places in a text, such as `src/sfumato/rng.py`."""
    spans = SPAN.findall(FENCED.sub("", text))
    return [each for each in spans if NAME.fullmatch(each) or PLACE.fullmatch(each)]


def docstrings(path: Path) -> str:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [n for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, kinds)]
    return "\n\n".join(ast.get_docstring(node) or "" for node in nodes)


def is_there(name: str, beside: Path) -> bool:
    if NAME.fullmatch(name):
        return is_defined(name.split("."))
    return any((folder / name).exists() for folder in (ROOT, SOURCE, beside))


def is_defined(parts: list[str]) -> bool:
    """Whether it is a module, or something that a module or class has."""
    for count in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        try:
            reduce(getattr, parts[count:], module)
        except AttributeError:
            return False
        return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_places_that_a_page_names_are_there(page):
    names = set(named(page.read_text(encoding="utf-8"))) - OTHERS
    assert not [name for name in sorted(names) if not is_there(name, page.parent)]


@pytest.mark.parametrize(
    "path",
    sorted(SOURCE.rglob("*.py")),
    ids=lambda path: str(path.relative_to(SOURCE)),
)
def test_places_that_docstrings_name_are_there(path):
    names = set(named(docstrings(path)))
    assert not [name for name in sorted(names) if not is_there(name, path.parent)]


def test_what_is_not_there_is_found():
    text = "`src/sfumato/steps.py`, `steps.py`, `sfumato.steps`, `sfumato.rng.Nobody`, `train.x`"
    names = named(text)
    assert names == text.replace("`", "").split(", ")[:-1]
    assert not any(is_there(name, ROOT) for name in names)
    assert all(
        is_there(name, ROOT)
        for name in ("tests/worlds.py", "noise/schedules.py", "sfumato.rng.Rng")
    )
