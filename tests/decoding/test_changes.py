"""A type checker sees a misspelt option, and knows every one."""

import json
import subprocess
import sys
from dataclasses import fields

import pytest

from sfumato.decoding.changes import ALIASES, Changes
from sfumato.decoding.options import GenerationOptions

GOOD = """
from sfumato import ConditionalDiffusionLM, DiffusionLM, GenerationOptions
from sfumato.lm.hf import TextDiffusionPipeline
def write(lm: DiffusionLM, own: ConditionalDiffusionLM, pipe: TextDiffusionPipeline):
    lm.generate("x", length=5, stop="a", step="margin", suppress=[1])
    lm.infill("x", gap_length=(2, 5), temperature=0)
    own.generate("x", "y", guidance=1.0, num_samples=2)
    pipe("x", max_new_tokens=5, num_samples=2)
    lm.options.with_changes(max_new_tokens=5)
"""
BAD = """
    lm.generate("x", lenght=5)
    lm.stream("x", lenght=5)
    lm.infill("x", lenght=5)
    lm.start("x", lenght=5)
    lm.start_infill("x", lenght=5)
    lm.score("x", sed=5)
    own.generate("x", lenght=5)
    own.stream("x", lenght=5)
    own.score("x", "y", sed=5)
    pipe("x", lenght=5)
    GenerationOptions(lenght=5)
    lm.options.with_changes(lenght=5)
    lm.generate("x", length="five")
    lm.generate("x", layout="ragged")
"""


def test_every_option_and_every_other_word_for_one_is_typed():
    names = [each.name for each in fields(GenerationOptions)]
    assert list(Changes.__annotations__) == [*names, *ALIASES]
    for alias, name in ALIASES.items():
        assert Changes.__annotations__[alias] == Changes.__annotations__[name]


@pytest.mark.slow
def test_a_type_checker_sees_a_misspelt_option(tmp_path):
    pytest.importorskip("pyright")
    (tmp_path / "used.py").write_text(GOOD + BAD.lstrip("\n"))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(
        [*command, "used.py"], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright does not run here: {done.stderr[-200:]}")
    found = json.loads(done.stdout)["generalDiagnostics"]
    lines = {each["range"]["start"]["line"] for each in found if each["severity"] == "error"}
    first = GOOD.count("\n")
    assert lines == set(range(first, first + BAD.strip("\n").count("\n") + 1)), found
