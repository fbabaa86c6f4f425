"""Imports only go down, and do nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sfumato

SOURCE = Path(sfumato.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# Each imports what is above it, or before it in its line.
LAYERS = """
errors arguments user_parts estimates rng types devices
storage
noise grammar
models data
denoisers
decoding objectives
likelihood testing
lm
evals
train export serve
doctor cli __main__
"""
ORDER = LAYERS.split()


def owner(module: str) -> str:
    """The part of the package that a module belongs to: sfumato.models.output_loss -> models."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "sfumato"


def imports(path: Path) -> set[str]:
    """The parts of the package that a file imports, wherever in it, but not for types alone."""
    found = set()
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "sfumato":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sfumato."):
            found.add(owner(node.module or ""))
        elif isinstance(node, ast.Import):
            found |= {owner(a.name) for a in node.names if a.name.startswith("sfumato.")}
        pending += ast.iter_child_nodes(node)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_only_go_down(path):
    name = path.relative_to(SOURCE).with_suffix("").parts[0]
    if name == "__init__":
        assert imports(path) <= {"errors"}  # the rest is loaded when it is first used
        return
    assert name in ORDER, f"give {name} its place in LAYERS"
    wrong = {other for other in imports(path) - {name} if ORDER.index(other) > ORDER.index(name)}
    assert not wrong, f"{name} is below {wrong}"


def test_relative_imports_are_not_used():
    for path in FILES:
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes), path


def run(code: str) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_heavy():
    loaded = run("import sys, sfumato; print(*sys.modules)").split()
    assert not {"torch", "transformers", "numpy", "datasets", "typer"} & set(loaded)


def test_every_module_imports_and_changes_nothing_in_the_process():
    printed = run(
        """
import locale, logging, os, pkgutil, random, signal, sys
import numpy, rich.live, torch, typer  # what these do on import is theirs
from transformers import PreTrainedModel

def state():
    return {
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": str(numpy.random.get_state()),
        "random": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "handlers": list(logging.getLogger().handlers),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "locale": locale.setlocale(locale.LC_ALL),
    }

before = state()
import sfumato
for module in pkgutil.walk_packages(sfumato.__path__, "sfumato."):
    __import__(module.name)
changed = [name for name, value in state().items() if value != before[name]]
assert not changed, changed
"""
    )
    assert printed == ""


def test_no_file_is_longer_than_450_lines():
    for path in FILES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 450, path
