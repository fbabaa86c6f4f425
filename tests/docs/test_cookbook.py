"""The cookbook, command by command, as a reader would type them."""

import json
import re
import shlex
from pathlib import Path

import pytest
from tiny_lm import SENTENCES

PAGE = (Path(__file__).parents[2] / "docs" / "cookbook.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
]
SMALLER = {  # what a test has no time for
    "sfumato train": " train.max_steps=8 train.warmup_steps=2 train.batch_size=4 data.length=64"
    " model.hidden_size=32 model.num_hidden_layers=1 model.num_attention_heads=2"
    " evaluate.eval_steps=4",
    "sfumato calibrate": " --rows 48 --num-texts 2 --step random --step threshold",
}


def test_it_has_ten_tasks():
    assert len(re.findall("^## ", PAGE, re.MULTILINE)) == 10
    assert all(line.startswith("sfumato ") for line in COMMANDS)


@pytest.mark.slow
def test_every_command_does_its_work(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = [" ".join(SENTENCES[n % 3 :]) + f" {n}." for n in range(1200)]
    Path("stories.txt").write_text("\n\n".join(texts))
    said = {}
    for command in COMMANDS:
        words, _, file = command.partition(" > ")
        more = "".join(own for begin, own in SMALLER.items() if words.startswith(begin))
        code, said[command], err = run(*shlex.split(words + more)[1:])
        assert code == 0, command + said[command] + err
        if file:
            Path(file).write_text(said[command])
    assert len(json.loads(Path("stories.json").read_text())["texts"]) == 3
    assert Path("story.html").stat().st_size < 300_000
    assert "bits a byte" in said["sfumato evaluate runs/mine data/mine --rows 64"]
    assert len(next(out for c, out in said.items() if "--candidates" in c).splitlines()) == 5
