"""The requests that the pages under docs/ show are accepted, or refused as they say."""

import functools
import re
import shlex
from pathlib import Path

import pytest

from sfumato import DiffusionLM
from sfumato.lm.pages import Page

DOCS = Path(__file__).parents[2] / "docs"
START = re.compile(r"^ *(?:\$ )?(sfumato generate .*)$", re.MULTILINE)


def requests():
    """(page, words, what is said below) of every `sfumato generate` for a shipped model."""
    for page in sorted(DOCS.glob("*.md")):
        if page.name in ("log.md", "results.md", "cookbook.md"):  # weights that were; its own test
            continue
        text = page.read_text(encoding="utf-8")
        for found in START.finditer(text):
            command, rest = found[1], text[found.end() + 1 :].split("\n")
            while command.count("'") % 2:  # it goes on in the next line
                command, rest = f"{command}\n{rest[0]}", rest[1:]
            words = shlex.split(command, comments=True)[1:]
            if not any(word.startswith("runs/") for word in words):
                yield pytest.param(words, rest[0].strip(), id=f"{page.stem}: {words[1][:30]}")


@pytest.fixture(scope="module")
def loaded():
    return functools.cache(lambda name, device: DiffusionLM.from_pretrained(name, device="cpu"))


@pytest.mark.parametrize(("words", "said"), [*requests()])
def test_a_request_is_accepted_or_refused_as_the_page_says(
    run, loaded, tmp_path, monkeypatch, words, said
):
    monkeypatch.chdir(tmp_path)  # a page that is asked for is written there
    monkeypatch.setattr("sfumato.cli.generate.load_model", loaded)
    monkeypatch.setattr(DiffusionLM, "run", lambda lm, request: iter([Page.blank(request)]))
    if "--candidates" in words:
        place = words.index("--candidates")
        words = words[:place] + words[place + 2 :]
    code, _, err = run(*words)
    if said.startswith("error: "):
        assert (code, err.strip()) == (1, said)
    else:
        assert code == 0, err


def test_pages_show_requests():
    assert len([*requests()]) > 8
