"""The page of HTML holds every step as it was, and nothing in a text gets out of its place."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from tiny_lm import tiny_lm

from sfumato.cli import html
from sfumato.cli.colours import BETWEEN, LEVELS, ON_DARK, ON_LIGHT, contrast, level, shade
from sfumato.cli.html import Recorder, write_page
from sfumato.cli.live import printable
from sfumato.errors import DataError
from sfumato.lm.folders import STORIES, STORIES_INFILL
from sfumato.lm.model import DiffusionLM
from sfumato.lm.pages import NOISE


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


class Scripts(HTMLParser):
    """What is in the scripts of a page, and its text elsewhere."""

    def __init__(self):
        super().__init__()
        self.scripts, self.within, self.tags = [], "", []

    def handle_starttag(self, tag, attrs):
        self.within = tag
        self.tags.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, data):
        if self.within == "script":
            self.scripts[-1] += data


def read(path):
    """The steps of a page, and the cells of every row at each of them."""
    found = Scripts()
    found.feed(path.read_text(encoding="utf-8"))
    assert len(found.scripts) == 2
    data = json.loads(found.scripts[0])
    rows = []
    for changes in data["rows"]:
        cells, frames = [], []
        for splices in changes:
            cells = list(cells)
            for at, gone, *come in splices:
                cells[at : at + gone] = come
            frames.append(cells)
        rows.append(frames)
    return data["steps"], rows, found.tags


def made(lm, path, request):
    recorder = Recorder()
    pages = list(recorder.recorded(lm.run(request(recorder))))
    write_page(recorder, lm.reader, path, "a & b")
    return pages


def joined(cells):
    return "".join(NOISE * cell if isinstance(cell, int) else cell[0] for cell in cells)


def seen(lm, page, row):
    return printable(lm.show(page, row)).replace("\r", "\u240d")


WRITINGS = {
    "rows": lambda lm, **own: lm.start(["The fox", "A caf\u00e9"], length=6, seed=1, **own),
    "left": lambda lm, **own: lm.start("The", num_samples=2, seed=2, step="left_to_right", **own),
    "reopens": lambda lm, **own: lm.start("The", seed=3, step="remask_cap", num_steps=40, **own),
    "klass": lambda lm, **own: lm.start("The", seed=3, step="klass", num_steps=6, **own),
    "blocks": lambda lm, **own: lm.start("The", seed=1, block=4, temperature=0, **own),
    "gaps": lambda lm, **own: lm.start_infill("A____b____", gap_length=3, seed=1, **own),
    "grammar": lambda lm, **own: lm.start("The ", seed=1, choices=("yes", "no, or"), **own),
}


@pytest.mark.parametrize("name", WRITINGS)
def test_every_step_is_on_the_page_as_it_was(lm, tmp_path, name):
    path = tmp_path / "page.html"
    pages = made(lm, path, lambda recorder: WRITINGS[name](lm, filters=(recorder,)))
    steps, rows, _ = read(path)
    assert steps == [page.step for page in pages]
    for row, frames in enumerate(rows):
        assert [joined(cells) for cells in frames] == [seen(lm, page, row) for page in pages]
    plain = [page.canvas.tokens for page in lm.run(WRITINGS[name](lm))]
    assert all(map(torch.equal, plain, (page.canvas.tokens for page in pages)))


@pytest.mark.parametrize(("model", "more"), [(STORIES, {}), (STORIES_INFILL, {"grow": 8})])
def test_blocks_and_a_growing_canvas_are_on_the_page(tmp_path, model, more):
    """Rows at their own pace, and positions that move."""
    lm, path = DiffusionLM.from_pretrained(model), tmp_path / "page.html"
    options = {"length": 20, "seed": 5, "num_samples": 2, **more}
    pages = made(lm, path, lambda it: lm.start("One day", filters=(it,), **options))
    steps, rows, _ = read(path)
    assert len({len(page.decided[0]) for page in pages}) > 1 or not more
    for row, frames in enumerate(rows):
        assert [joined(cells) for cells in frames] == [seen(lm, page, row) for page in pages]
        written = [cell for cell in frames[-1] if not isinstance(cell, int) and cell[1] > 0]
        assert written
        assert all(0 <= share <= 1000 for _, _, share in written)
    assert steps[-1] == pages[-1].step


def test_probabilities_are_those_of_the_moment_of_decision(lm, tmp_path):
    recorder = Recorder()
    request = lm.start("The", length=6, seed=4, step="margin", filters=(recorder,), temperature=0.7)
    before, remembered = None, torch.zeros(())
    for page in recorder.recorded(lm.run(request)):
        if before is not None:
            denoiser = lm.denoiser.given(left=request.left)
            logits = denoiser(before.canvas.tokens, torch.ones(1))
            never = sorted(lm.never - lm.reader.ends)
            logits[..., never] = -torch.inf
            probs = logits.softmax(-1).gather(-1, page.canvas.tokens[..., None])[..., 0]
            new = page.decided == page.step
            kept = recorder.last.probs
            torch.testing.assert_close(kept[new], probs[new], rtol=1e-4, atol=1e-6)
            old = (page.decided > 0) & ~new
            assert torch.equal(kept[old], remembered[old])
        before, remembered = page, recorder.last.probs
    assert not remembered.isnan().any()


HOSTILE = '</script><script>alert(1)</script><!--<b title="{{DATA}}">&amp;\x00\x1b[2J\r\u2028\u202e'


def test_a_hostile_text_stays_text(tmp_path):
    lm, path = tiny_lm(max_position_embeddings=128), tmp_path / "page.html"
    lm = DiffusionLM(lm.model, lm.tokenizer, replace(lm.options, canvas=128))
    given = {"gap_length": 2, "seed": 1}
    made(lm, path, lambda it: lm.start_infill(HOSTILE + "____", filters=(it,), **given))
    _, ((*_, cells),), tags = read(path)
    assert tags.count("script") == 2
    assert "b" not in tags
    shown = HOSTILE.replace("\x00", "\u2400").replace("\x1b", "\u241b").replace("\r", "\u240d")
    assert joined(cells).startswith(shown)
    text = path.read_text(encoding="utf-8")
    assert "a &amp; b" in text
    assert not re.search(r"(src|href)=.?(http|//)", text)


def test_a_large_page_leaves_steps_out_and_says_so(lm, tmp_path, monkeypatch):
    recorder = Recorder()
    list(recorder.recorded(lm.run(lm.start("The", length=16, seed=1, filters=(recorder,)))))
    path = tmp_path / "page.html"
    said = write_page(recorder, lm.reader, path, "")
    whole = path.stat().st_size
    assert said == f"{path}: {whole // 1000} kB"
    monkeypatch.setattr(html, "LARGEST", whole - 50)
    said = write_page(recorder, lm.reader, path, "")
    every = int(re.fullmatch(r".*, one step in (\d+) shown", said)[1])
    steps, ((*_, cells),), _ = read(path)
    assert steps == [*range(0, 16, every), 16]
    assert 1 < every < 16
    assert joined(cells) == seen(lm, recorder.last.page, 0)
    monkeypatch.setattr(html, "LARGEST", 1000)
    with pytest.raises(DataError, match="more than 1; write fewer or shorter texts"):
        write_page(recorder, lm.reader, path, "")


def test_memory_has_a_bound(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(html, "FRAMES", 4)
    recorder = Recorder()
    request = lm.start("", length=20, seed=1, step="remask_cap", num_steps=50, filters=(recorder,))
    for _ in recorder.recorded(lm.run(request)):
        assert len(recorder.frames) <= 8
    assert write_page(recorder, lm.reader, tmp_path / "p", "").endswith("one step in 8 shown")
    assert read(tmp_path / "p")[0] == [0, 8, 16, 24, 32, 40, 48, 50]


def test_colours_can_be_read_on_their_ground():
    template = html.files("sfumato.cli").joinpath("page.html").read_text(encoding="utf-8")
    light, dark = re.findall(r"--ground: (#\w{6})", template)
    quiet = re.findall(r"--quiet: (#\w{6})", template)
    for luminance, grounds in (
        (BETWEEN, ("#000000", "#ffffff")),
        (ON_LIGHT, (light,)),
        (ON_DARK, (dark,)),
    ):
        colours = [shade(number, luminance) for number in range(LEVELS + 1)]
        assert len(set(colours)) == LEVELS + 1
        for ground in grounds:
            assert min(contrast(colour, ground) for colour in colours) >= 4.5
    assert contrast(quiet[0], light) >= 4.5
    assert contrast(quiet[1], dark) >= 4.5
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert [level(share) for share in (-1, 0, 0.5, 1, 2)] == [0, 0, 32, 64, 64]


def test_a_page_that_cannot_be_written_is_named(lm):
    recorder = Recorder()
    for _ in recorder.recorded(lm.stream(length=4, seed=0, filters=(recorder,))):
        pass
    with pytest.raises(DataError, match=r"cannot write /dev/full: No space left on device"):
        write_page(recorder, lm.reader, Path("/dev/full"), "")
