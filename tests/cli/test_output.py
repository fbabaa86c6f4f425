"""Whatever becomes of standard output and standard error, a command does its work to the end."""

import io
import json
import os
import sys

import pytest
from small_runs import prepare_words
from tiny_lm import SENTENCES, tiny_lm

from sfumato.cli import main
from sfumato.cli.output import Outlet, outlets, tell


def full():
    return io.TextIOWrapper(open("/dev/full", "wb"), encoding="utf-8")


def nobody():
    gone, side = os.pipe()
    os.close(gone)
    return io.TextIOWrapper(os.fdopen(side, "wb"), encoding="utf-8")


def shut():
    stream = io.TextIOWrapper(io.BytesIO())
    stream.close()
    return stream


def narrow(encoding):
    return lambda: io.TextIOWrapper(io.BytesIO(), encoding=encoding)


TROUBLES = {
    "ascii": narrow("ascii"),
    "latin-1": narrow("latin-1"),
    "full": full,
    "nobody": nobody,
    "shut": shut,
    "none": lambda: None,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    (folder / "text.txt").write_text("\n".join([*SENTENCES, "Caf\u00e9 \u2603 \U0001f600"] * 6))
    prepare_words(folder / "prepared")
    run = {
        "data": {"folder": str(folder / "prepared"), "length": 16},
        "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        "train": {"max_steps": 2, "warmup_steps": 1, "batch_size": 2, "device": "cpu"},
        "evaluate": {"eval_steps": 2, "rows": 2},
        "samples": {"sample_steps": 2, "length": 4},
        "log": {"logging_steps": 1},
    }
    (folder / "run.json").write_text(json.dumps(run))
    tiny_lm().save(folder / "model")
    return folder, str(folder / "model")


COMMANDS = {
    "text": "generate Caf\u00e9\u2603 -m MODEL --length 3",
    "json": "generate Caf\u00e9\u2603 -m MODEL --length 3 --json",
    "tokenizer": "tokenizer train WORK/text.txt OUT --vocab-size 270",
    "prepare": "data prepare WORK/text.txt OUT --vocab-size 270",
    "train": "train WORK/run.json output=OUT",
    "evaluate": "evaluate MODEL WORK/text.txt --rows 2 --num-samples 1 --out OUT",
    "doctor": "doctor",
    "help": "generate --help",
    "version": "--version",
    "mistake": "generate -m MODEL --length 0 --step caf\u00e9",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_command_does_its_work(places, tmp_path, monkeypatch, capfd, trouble, command):
    work, model = places
    names = {"MODEL": model, "WORK": str(work), "OUT": str(tmp_path / "out")}
    words = COMMANDS[command]
    for name, place in names.items():
        words = words.replace(name, place)
    stream = TROUBLES[trouble]()
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", ["sfumato", *words.split()])
        patch.setattr("sys.stdout", stream)
        with pytest.raises(SystemExit) as caught:
            main()
        assert sys.stdout is stream
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert (tmp_path / "out").exists() == ("OUT" in COMMANDS[command]), err
    lost = trouble not in ("ascii", "latin-1")
    if command == "mistake":
        assert caught.value.code == 1
    elif command != "doctor":  # which may have found something
        assert (caught.value.code or 0) == (lost and command != "train")
    if lost and command not in ("train", "mistake") and trouble != "nobody":
        assert "error: cannot write to standard output: " in err
    if command == "json" and not lost:
        stream.seek(0)
        assert json.loads(stream.read())["full_texts"][0].startswith("Caf\u00e9\u2603")
    if stream is not None:
        stream.close()  # what could not be written is not tried again


def test_what_an_encoding_lacks_is_escaped_as_json_has_it(monkeypatch):
    stream = narrow("latin-1")()
    monkeypatch.setattr("sys.stdout", stream)
    with outlets():
        print("caf\u00e9 \u2603 \U0001f600 \udcff")
    assert stream.buffer.getvalue() == b"caf\xe9 \\u2603 \\ud83d\\ude00 \\udcff\n"


@pytest.mark.parametrize("trouble", TROUBLES)
def test_standard_error_may_fail_too(monkeypatch, capfd, trouble):
    stream = TROUBLES[trouble]()
    monkeypatch.setattr("sys.stderr", stream)
    with outlets() as out:
        tell("caf\u00e9 \u2603", "error")
        print("text")
    assert out.error is None
    assert capfd.readouterr().out == "text\n"
    if stream is not None:
        stream.close()


@pytest.mark.parametrize(
    ("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("TERM", "xterm")]
)
def test_colours_are_for_terminals_that_want_them(monkeypatch, name, value):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(name, value)
    for stream, coloured in ((Terminal(), value == "xterm"), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        tell("error: no", "error")
        assert stream.getvalue() == ("\x1b[31merror: no\x1b[0m\n" if coloured else "error: no\n")


def test_an_outlet_takes_text_alone():
    with pytest.raises(TypeError, match="expected text, got bytes"):
        Outlet(io.StringIO()).write(b"")  # pyright: ignore[reportArgumentType]
