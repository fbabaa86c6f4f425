import importlib.metadata
import platform
import re

import pytest

from sfumato.doctor import installation as doctor
from sfumato.doctor.installation import CORE, EXTRAS, examine


def found() -> dict[str, tuple[str, str]]:
    return {finding.name: (finding.state, finding.detail) for finding in examine()}


def test_it_names_everything_with_its_version():
    findings = found()
    assert findings["Python"][0] == "ok"
    assert platform.python_version() in findings["Python"][1]
    for package in CORE:
        assert findings[package] == ("ok", importlib.metadata.version(package))
    rest = {"device", "processor", "C++ compiler", "stories", "stories-infill", *EXTRAS}
    assert rest <= set(findings)
    assert {state for state, _ in findings.values()} <= {"ok", "note", "missing"}


def test_core_and_extras_are_those_of_the_package():
    required = importlib.metadata.requires("sfumato") or []
    core = {re.split(r"[^\w-]", line)[0] for line in required if "extra ==" not in line}
    assert {name.replace("-", "_") for name in core} == set(CORE)
    for package, (extra, _) in EXTRAS.items():
        name = package.replace("_", "-")  # as metadata spell it
        assert any(line.startswith(name) and f"'{extra}'" in line for line in required), package


def test_a_missing_package_is_named_with_the_line_that_mends_it(monkeypatch):
    monkeypatch.setattr(doctor, "CORE", ("not-there",))
    monkeypatch.setitem(EXTRAS, "nor-this", ("odd", "odd things"))
    findings = found()
    assert findings["not-there"] == ("missing", "pip install not-there")
    assert findings["nor-this"] == ("note", 'for odd things: pip install "sfumato[odd]"')


def test_an_old_python_is_missing(monkeypatch):
    monkeypatch.setattr(doctor, "PYTHON", (99, 1))
    state, detail = found()["Python"]
    assert state == "missing"
    assert detail.endswith("; install 99.1")


@pytest.mark.parametrize("there", [True, False])
def test_a_compiler_is_looked_for(monkeypatch, tmp_path, there):
    if there:
        (tmp_path / "c++").write_text("")
        (tmp_path / "c++").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found()["C++ compiler"][0] == ("ok" if there else "note")


@pytest.mark.parametrize("there", [True, False])
def test_the_shipped_model_is_looked_for(monkeypatch, tmp_path, there):
    if there:
        (tmp_path / "stories").mkdir()
        (tmp_path / "stories" / "model.safetensors").write_bytes(b"0" * 1_500_000)
    monkeypatch.setattr(doctor, "SHIPPED", tmp_path)
    state, detail = found()["stories"]
    assert (state, "1.5 MB" in detail) == (("ok", True) if there else ("missing", False))
