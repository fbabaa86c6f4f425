import json
import os
import socket
from contextlib import suppress

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sfumato.errors import DataError
from sfumato.storage.files import (
    LARGEST,
    Remedy,
    brief,
    check_file,
    foreign,
    read_tensors,
    read_text,
)
from sfumato.storage.structured import (
    check_shape,
    parse_json,
    parse_yaml,
    read_json,
    read_json_lines,
    read_object,
)

REMEDY = Remedy(DataError, "copy it again")

# what no reader may let through as something else than its own error: damage -> what is said
JSON_DAMAGE = {
    b"": "line 1, column 1: not JSON: expecting value",
    b"{": "line 1, column 2: not JSON",
    b'{"a": 1,\n "b": }': "line 2, column 7: not JSON: expecting value",
    b'{"a": 1} x': "line 1, column 10: not JSON: extra data",
    b"\0\0\0\0": "line 1, column 1: not JSON",
    b'{"a": "\xff"}': r"line 1: not UTF-8 \(invalid start byte\)",
    b'{\n"a": "\xc3': r"line 2: not UTF-8 \(unexpected end of data\)",
    b"[" * 100_000: "nested deeper than 64 levels",
    b"[" * 65 + b"]" * 65: "nested deeper than 64 levels",
    b'{"a":' * 70 + b"1" + b"}" * 70: "nested deeper than 64 levels",
    b"1" * 5000: "a number of too many digits",
    b"NaN": "NaN is no number of JSON",
    b"[-Infinity]": "-Infinity is no number of JSON",
    b"1e999": "the number 1e999 is too large",
    b'{"a": 1, "a": 2}': "the key 'a' stands there twice",
    b'{"b": {"a": 1, "c": 0, "a": 2}}': "the key 'a' stands there twice",
    b"[" + b"0," * 2**20 + b"0]": "holds more than 1,048,576 values",
}
YAML_DAMAGE = {
    "a: [1,\nb: 2": "line 2, column 5: not YAML: expected ',' or ']'",
    "a: 1\na: 2": "line 2: the key 'a' stands there twice",
    "x:\n  - {b: 1, 'b': 2}": "line 2: the key 'b' stands there twice",
    "a: \0": "not YAML: unacceptable character",
    "\t- x": "line 1, column 1: not YAML",
    "when: 2024-13-45": "not YAML: month must be in 1..12",
    "[" * 5000: "nested deeper than 64 levels",
    "&a [*a]": "nested deeper than 64 levels",
    "a: &a [1]\n"
    + "".join(f"b{n}: &{chr(98 + n)} [{f'*{chr(97 + n)}, ' * 9}]\n" for n in range(9)): (
        "holds more than 1,048,576 values"
    ),
    "!!python/object:os.system x": "line 1, column 1: not YAML: could not determine a constructor",
    "? [1]\n: 2": "line 1, column 3: not YAML: found unhashable key",
    "!!int x": "not YAML: invalid literal for int",
    "a: 1\n---\nb: 2": "line 2, column 1: not YAML: but found another document",
    "1" * 5000: "not YAML: Exceeds the limit",
}


@pytest.mark.parametrize("damage", JSON_DAMAGE, ids=lambda damage: repr(damage[:20]))
def test_damaged_json_is_refused_with_its_place(tmp_path, damage):
    path = tmp_path / "a.json"
    path.write_bytes(damage)
    with pytest.raises(DataError, match=JSON_DAMAGE[damage]) as caught:
        read_json(path, REMEDY)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith("; copy it again")


@pytest.mark.parametrize("damage", YAML_DAMAGE, ids=lambda damage: repr(damage[:20]))
def test_damaged_yaml_is_refused_with_its_place(damage):
    with pytest.raises(DataError, match=YAML_DAMAGE[damage]) as caught:
        parse_yaml(damage, "run.yaml", REMEDY)
    assert str(caught.value).startswith("run.yaml")
    assert str(caught.value).endswith("; copy it again")


@given(st.binary(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_value_or_a_typed_error(data):
    text = data.decode("utf-8", "replace")
    for parse in (parse_json, parse_yaml):
        with suppress(DataError):
            parse(text, "there", REMEDY)


@given(st.recursive(st.none() | st.booleans() | st.integers(-99, 99) | st.text(), st.lists))
@settings(max_examples=50, deadline=None)
def test_what_json_and_yaml_say_is_read_as_it_is(value):
    assert parse_json(json.dumps(value), "there", REMEDY) == value
    assert parse_yaml(yaml.safe_dump(value), "there", REMEDY) == value


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbf{}")
    assert read_object(tmp_path / "a", REMEDY) == {}
    assert read_text(tmp_path / "a", REMEDY) == "{}"


def test_numbers_that_python_writes_are_read_where_they_are_allowed():
    assert parse_json("[Infinity, 1e999]", "there", REMEDY, finite=False) == [float("inf")] * 2


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"'])
def test_an_object_is_expected(tmp_path, text):
    (tmp_path / "a").write_text(text)
    with pytest.raises(DataError, match="a: expected a JSON object, got "):
        read_object(tmp_path / "a", REMEDY)


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    server = socket.socket(socket.AF_UNIX)
    os.chdir(path.parent)  # a socket's path is short
    server.bind(path.name)
    server.close()


def make_large(path):
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)  # a hole: nothing is written


ODD = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": make_pipe,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "expected at most": make_large,
    "there is no such file": lambda path: None,
    "cannot be read: Too many levels": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    ODD[kind](tmp_path / "a")
    for read in (read_text, read_json, lambda path, remedy: list(read_json_lines(path, remedy))):
        if kind == "expected at most" and read not in (read_text, read_json):
            continue
        with pytest.raises(DataError, match=kind):
            read(tmp_path / "a", REMEDY)


def test_a_name_that_cannot_be_one_is_refused():
    with pytest.raises(DataError, match="cannot be read: embedded null byte"):
        check_file("a\0b", REMEDY)
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        check_file("a" * 5000, REMEDY)


@pytest.mark.parametrize(
    "end", [b"", b"\n", b"\n\n", b"\0\0\0\0", b"\0\0\n", b'{"step": 3', b'{"step": 3, "a": "\xc3']
)
def test_lines_that_can_be_read_are(tmp_path, end):
    (tmp_path / "a").write_bytes(b'{"step": 1}\n{"step": 2, "x": NaN}\n' + end)
    assert [value["step"] for value in read_json_lines(tmp_path / "a", REMEDY)] == [1, 2]


def test_lines_after_an_unreadable_one_count(tmp_path):
    (tmp_path / "a").write_bytes(b'{"step": 1}\n\0\0\0\n{"step": 2}\n')
    assert [value["step"] for value in read_json_lines(tmp_path / "a", REMEDY)] == [1, 2]


def test_tensors_are_read_or_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.arange(3)}, path)
    assert read_tensors(path, REMEDY)["x"].tolist() == [0, 1, 2]
    whole = path.read_bytes()
    huge = (10**10).to_bytes(8, "little")
    for damage in (b"", whole[:20], whole[:-1], whole + b"x", huge + whole[8:], b"\xff" * 8):
        path.write_bytes(damage)
        with pytest.raises(DataError, match=r"a.safetensors: .*; copy it again"):
            read_tensors(path, REMEDY)


class PanicException(BaseException):
    pass


@pytest.mark.parametrize(
    "error", [KeyError("x"), RecursionError(), OSError(5, "I/O"), PanicException("no")]
)
def test_what_other_libraries_raise_is_typed(error):
    with pytest.raises(DataError, match=r"^there: .*; copy it again$"), foreign("there", REMEDY):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), DataError("own")])
def test_what_is_no_fault_of_a_file_passes(error):
    with pytest.raises(type(error)) as caught, foreign("there", REMEDY):
        raise error
    assert caught.value is error


SHAPE = {"format": int, "splits": {"train": {"tokens": int}}, "name": (str, type(None))}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"expected an object, got \[\]"),
        ({}, "the key 'format' is missing"),
        ({"format": True}, "expected a whole number at 'format', got True"),
        ({"format": 1, "splits": 3}, "expected an object at 'splits', got 3"),
        ({"format": 1, "splits": {"train": {}}}, "the key 'splits.train.tokens' is missing"),
        (
            {"format": 1, "splits": {"train": {"tokens": 1}}, "name": 2},
            "expected a string or null at 'name', got 2",
        ),
    ],
)
def test_shapes_are_checked(value, message):
    with pytest.raises(DataError, match=f"^there: {message}; copy it again"):
        check_shape(value, SHAPE, "there", REMEDY)
    check_shape(
        {"format": 1, "splits": {"train": {"tokens": 2}}, "name": None}, SHAPE, "there", REMEDY
    )


def test_values_are_shown_in_short():
    assert brief("x") == "'x'"
    assert brief([1] * 9) == "a list of 9 values"
    assert brief(10**500) == "a number of very many digits"
    assert len(brief("x" * 1000)) < 100
