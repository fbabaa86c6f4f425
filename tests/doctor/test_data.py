"""Prepared data that are whole are said to be, and every damage of them is found."""

import os
import shutil
import socket

import pytest
from small_pairs import prepare_word_pairs
from small_runs import prepare_words
from typer.testing import CliRunner

from sfumato.cli import app
from sfumato.data.prepared import Prepared
from sfumato.data.prepared_pairs import open_data
from sfumato.doctor.data import examine_data
from sfumato.errors import DataError


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return prepare_words(folder / "words"), prepare_word_pairs(folder / "pairs")


@pytest.fixture(params=["words", "pairs"])
def data(request, originals, tmp_path):
    original = originals[request.param == "pairs"]
    return shutil.copytree(original, tmp_path / "data")


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def told(*words):
    done = CliRunner().invoke(app, ["doctor", *map(str, words)])
    return done.exit_code, done.output


def test_whole_data_are_whole(data):
    assert [(f.name, f.state) for f in examine_data(data)] == [
        (name, "ok") for name in ("files", "tokenizer", "content")
    ]
    code, out = told(data)
    assert code == 0
    assert "every byte is as it was prepared" in out


def test_one_flipped_bit_of_any_file_is_found(data):
    for file in sorted(data.rglob("*.bin")):
        before = file.read_bytes()
        flip(file)
        open_data(data)  # the size says nothing
        code, out = told(data)
        assert code == 1
        assert "content" in out
        assert "are damaged: fingerprint" in out, file
        file.write_bytes(before)
    assert told(data)[0] == 0


def test_a_missing_file_and_another_tokenizer_are_told(data):
    next(data.rglob("tokenizer/tokenizer.json")).write_text("{}")
    assert [f.name for f in examine_data(data) if f.state == "fault"] == ["tokenizer"]
    next(data.rglob("train/documents.bin")).unlink()
    code, out = told(data)
    assert code == 1
    assert "it is missing" in out


def no_folders(tmp_path):
    """Places that are no folder of data, by the message about each."""
    (tmp_path / "file").write_text("{}")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "nothing").symlink_to(tmp_path / "nowhere")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.path.relpath(tmp_path / "socket"))  # a whole path may be too long
    none, long = "expected a folder of prepared data, got", "cannot be read: File name too long"
    return {
        **dict.fromkeys(("/dev/null", "/dev/zero", "/proc/self/mem"), none),
        **{tmp_path / name: none for name in ("file", "pipe", "socket")},
        **{tmp_path / name: "no prepared data in" for name in ("nothing", "file/within", ".")},
        tmp_path / "circle": "cannot be read: Too many levels",
        tmp_path / ("x" * 300): long,
        "a/" * 3000: long,
        "a\0b": "cannot be read: embedded null",
    }


def test_what_is_no_folder_of_data_is_refused_and_waits_for_nothing(tmp_path):
    for place, message in no_folders(tmp_path).items():
        for opened in (Prepared.open, open_data):
            with pytest.raises(DataError, match=message):
                opened(place)


@pytest.mark.parametrize("name", ["prepared.json", "tokenizer", "train", "train/tokens.bin"])
@pytest.mark.parametrize("other", ["folder", "pipe", "device"])
def test_a_part_that_is_no_file_is_refused(originals, tmp_path, name, other):
    folder = shutil.copytree(originals[0], tmp_path / "data")
    part = folder / name
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    if other == "folder":
        part.mkdir()
    elif other == "pipe":
        os.mkfifo(part)
    else:
        part.symlink_to("/dev/zero")
    faults = [f for f in examine_data(folder) if f.state == "fault"]
    assert len(faults) == 1, faults
    assert str(part) in faults[0].detail
