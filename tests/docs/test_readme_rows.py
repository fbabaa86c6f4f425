"""The rows of the README's table of commands are run, on small data where they name none."""

import io
import json
import re
import shlex
from pathlib import Path

import pytest
from small_runs import prepare_words
from tiny_lm import SENTENCES, tiny_lm

README = Path(__file__).parents[2] / "README.md"
ROWS = re.findall(r"^\| `(.+?)` \|", README.read_text(encoding="utf-8"), re.MULTILINE)
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder in which there is what the rows name."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "SOURCE").mkdir()
    (folder / "SOURCE" / "text.txt").write_text("\n".join(SENTENCES * 40))
    (folder / "data").mkdir()
    prepare_words(folder / "data" / "stories")
    tiny_lm().save(folder / "MODEL")
    (folder / "DATA").mkdir()
    lines = [json.dumps({"text": sentence}) for sentence in SENTENCES * 12]
    (folder / "DATA" / "text.jsonl").write_text("\n".join(lines))
    run = {"output": "runs", "data": {"folder": "data/stories", "length": 16}, "model": SMALL}
    run |= {"evaluate": {"eval_steps": 500, "rows": 2}, "train": {"batch_size": 2, "device": "cpu"}}
    (folder / "RUN.yaml").write_text(json.dumps(run))
    return folder


def test_the_table_has_every_command():
    words = {row.split("sfumato ")[1].split()[0] for row in ROWS}
    assert words == {
        *("generate", "tokenizer", "data", "init", "train", "evaluate", "calibrate", "doctor"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_a_row_runs(run, here, tmp_path, monkeypatch, row):
    monkeypatch.chdir(here)
    row = row.replace("\\|", "|").replace(" --judge PATH", "")  # a model of someone else's
    row = (
        row.replace("[MODEL]", "MODEL")
        .replace(" OUT", f" {tmp_path / 'out'}")
        .replace("run.yaml", str(tmp_path / "run"))
    )
    if "|" in row:
        before, row = row.split(" | ")
        typed = shlex.split(before)[1] + "\n"
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
    program, *words = shlex.split(row)
    assert program == "sfumato"
    code, out, err = run(*words)
    assert (code, out != "") == (0, True), out + err
