"""The public names, and that they cost nothing before they are used."""

import subprocess
import sys

import pytest

import sfumato

PUBLIC = [
    "ConditionalDiffusionLM",
    "DiffusionLM",
    "Generation",
    "GenerationOptions",
    "Page",
    "SfumatoError",
    "__version__",
]


def test_the_public_names_are_these():
    assert sfumato.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(sfumato))
    for name in PUBLIC:
        assert getattr(sfumato, name) is not None
    from sfumato.lm.model import DiffusionLM

    assert sfumato.DiffusionLM is DiffusionLM


def test_there_are_no_other_names():
    with pytest.raises(AttributeError, match="module 'sfumato' has no attribute 'Sampler'"):
        _ = sfumato.Sampler


def test_the_version_is_that_of_the_installed_package():
    from importlib.metadata import version

    assert sfumato.__version__ == version("sfumato")


def test_help_answers_without_anything_heavy():
    """`--help` of every command, in one process, in a second of its own time."""
    program = """
import sys, time
from sfumato.cli import app
names = [[], ["generate"], ["train"], ["evaluate"], ["doctor"], ["tokenizer", "train"], ["data"]]
for words in names:
    try:
        app([*words, "--help"])
    except SystemExit as error:
        assert error.code == 0
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
print("seconds", time.process_time())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Write text, live in the terminal" in done.stdout
    assert float(done.stdout.split()[-1]) < 2
