"""Whatever is damaged in a model's folder: it loads, or an error of this package refuses it."""

import json
import os
import random
import shutil

import pytest
from tiny_lm import saved, tiny_lm

from sfumato.errors import SfumatoError
from sfumato.lm.model import DiffusionLM

FILES = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    "model.safetensors",
)
VALUES = (None, True, -1, 0, 1e30, 10**30, "x", "", [], {}, [[]], {"a": None}, "\ud800")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return saved(tiny_lm(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "tiny")


def outcome(folder):
    """'loads' or 'refused'; anything else is an error of the test."""
    try:
        DiffusionLM.from_pretrained(folder)
    except SfumatoError as error:
        return "refused" if str(error) and "\n" not in str(error) else "refused in several lines"
    return "loads"


BYTES = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "a mark before": lambda data: b"\xef\xbb\xbf" + data,
    "no UTF-8": lambda data: data[:20] + b"\xff" + data[20:],
    "list": lambda data: b"[]",
    "null": lambda data: b"null",
    "deep": lambda data: b"[" * 10**5,
    "digits": lambda data: b'{"a": ' + b"1" * 5000 + b"}",
    "more": lambda data: data + b"{}",
}


@pytest.mark.parametrize("name", FILES)
def test_damaged_bytes_are_refused(folder, name):
    path = folder / name
    whole = path.read_bytes()
    for damage, change in BYTES.items():
        path.write_bytes(change(whole))
        # what transformers reads, too, has no byte order mark
        marked = damage == "a mark before" and name == "generation_config.json"
        assert outcome(folder) == ("loads" if marked else "refused"), damage


@pytest.mark.parametrize("name", [*FILES, "chat_template.jinja", "special_tokens_map.json"])
def test_what_is_no_file_is_refused_and_never_waited_for(folder, name):
    path = folder / name
    path.unlink(missing_ok=True)
    for make in (
        lambda: path.symlink_to("/dev/zero"),
        lambda: os.mkfifo(path),
        lambda: path.symlink_to(path),
    ):
        make()
        assert outcome(folder) == "refused"
        path.unlink()
    path.mkdir()
    assert outcome(folder) == "refused"


def places(value, path=()):
    """Where every value of a JSON tree stands."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inner:
        yield (*path, key)
        if isinstance(one, dict | list):
            yield from places(one, (*path, key))


def with_value(tree, path, value):
    tree = json.loads(json.dumps(tree))
    place = tree
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return tree


def mutate(folder, name, number):
    """Some values of a JSON file in the place of others."""
    path = folder / name
    tree, draw = json.loads(path.read_text()), random.Random(0)
    long = (("model", "vocab"), ("model", "merges"))
    everywhere = [place for place in places(tree) if place[:2] not in long or len(place) == 2]
    cases = [(place, value) for place in everywhere for value in VALUES]
    for place, value in draw.sample(cases, min(number, len(cases))):
        path.write_text(json.dumps(with_value(tree, place, value)))
        assert outcome(folder) in ("loads", "refused"), (place, value)


@pytest.mark.parametrize("name", FILES[:-1])
def test_another_value_anywhere_loads_or_is_refused(folder, name):
    mutate(folder, name, 20)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES[:-1])
def test_any_other_value_anywhere_loads_or_is_refused(folder, name):
    mutate(folder, name, 500)
