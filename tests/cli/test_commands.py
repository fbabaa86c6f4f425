"""The command line as a user has it: `main` with arguments, exit codes, what is printed where."""

import errno
import io
import json
import os
import re
import signal
import threading
import time
from dataclasses import fields, replace

import pytest
import torch
from small_runs import prepare_words
from tiny_lm import SENTENCES

from sfumato.cli import main
from sfumato.cli.calibrate import Calibrating
from sfumato.cli.evaluate import Measuring
from sfumato.cli.writing import Writing
from sfumato.data.prepared import Prepared
from sfumato.data.tokenizer_files import load_tokenizer
from sfumato.decoding.options import GenerationOptions
from sfumato.evals.calibrate_options import CalibrateOptions
from sfumato.evals.evaluate import EvaluateOptions
from sfumato.evals.speed import lap
from sfumato.lm.pages import NOISE


@pytest.fixture(scope="module")
def folder(taught_folder):
    return str(taught_folder)


def refused(result, message):
    """A user's mistake: exit code 1, one line on standard error, nothing on standard output."""
    code, out, err = result
    assert code == 1
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert message in line


# --- generate ---


def test_text_goes_to_standard_output_and_all_about_it_to_standard_error(run, folder):
    code, out, err = run("generate", "A caf\u00e9", "-m", folder, "--step", "margin", "-t", 0)
    assert code == 0
    assert out == SENTENCES[3] + "\n"
    assert err.startswith("21 steps, 7 tokens, ")
    assert "seed " in err


def test_all_options_reach_the_model(run, folder):
    words = ["generate", "The", "-m", folder, "-n", 2, "--length", 6, "--num-steps", 4, "--json"]
    words += ["--step", "threshold", "--step-option", "level=0.25", "--temperature", 0.5]
    words += ["--top-k", 7, "--top-p", 0.75, "--min-p", 0.01, "--repetition-penalty", 1.25]
    words += ["--suppress", 40, "--suppress", 41, "--block", 3, "--no-lookahead", "--seed", 9]
    words += ["--approx-cache", "dual", "--approx-refresh", 2, "--precision", "bf16"]
    words += ["--no-torch-compile"]
    code, out, err = run(*words, "--device", "cpu")
    assert code == 0, err
    result = json.loads(out)
    assert err == ""
    assert result["model"] == folder
    assert result["options"] == {
        "length": 6,
        "grow": None,
        "grow_options": {},
        "canvas": 24,
        "layout": "padded",
        "num_steps": 4,
        "step": "threshold",
        "step_options": {"level": 0.25},
        "block": 3,
        "lookahead": False,
        "guidance": 0.0,
        "approx_cache": "dual",
        "approx_refresh": 2,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.75,
        "min_p": 0.01,
        "repetition_penalty": 1.25,
        "suppress": [40, 41],
        "regex": None,
        "json_schema": None,
        "choices": None,
        "grammar_states": 25000,
        "particles": 1,
        "stop": [],
        "precision": "bf16",
        "torch_compile": False,
        "seed": 9,
    }
    assert len(result["texts"]) == 2
    assert all(text.startswith("The") for text in result["full_texts"])


def test_a_grammar_reaches_the_model(run, folder, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["a", 7]}')
    words = ["generate", "The", "-m", folder, "--json", "--num-steps", 3]
    for more, texts in (
        (["--regex", "fo[xl]"], {"fox", "fol"}),
        (["--json-schema", schema], {'"a"', "7"}),
        (["--json-schema", '{"type": "null"}'], {"null"}),
        (["--choices", "yes", "--choices", "no, or"], {"yes", "no, or"}),
    ):
        code, out, err = run(*words, *more)
        assert code == 0, err
        assert set(json.loads(out)["texts"]) <= texts
    code, out, err = run("generate", "-m", folder, "--json-schema", tmp_path / "none.json")
    assert (code, out) == (1, "")
    assert "none.json: there is no such file; give the file of a JSON schema" in err
    assert "or a schema in {...}" in err


def test_a_text_is_cut_before_a_stop(run, folder):
    words = ("generate", "The", "-m", folder, "--seed", 3, "--step", "probability", "--json")
    whole = json.loads(run(*words)[1])["texts"][0]
    cut = json.loads(run(*words, "--stop", "never", "--stop", whole[4:7])[1])
    assert cut["texts"][0] == whole[: whole.index(whole[4:7])]
    assert cut["finish_reasons"] == ["stop"]
    assert json.loads(run(*words, "--stop", "\\n")[1])["options"]["stop"] == ["\n"]


def test_the_same_seed_prints_the_same_text(run, folder):
    words = ("generate", "-m", folder, "-n", 3, "--seed", 3, "--steps", 6)
    assert run(*words)[1] == run(*words)[1]
    assert run(*words)[1] != run(*words[:-3], 4, "--steps", 6)[1]


def test_gaps_are_filled(run, folder):
    words = ("generate", "--infill", "A caf\u00e9 had____ on its roof.", "-m", folder)
    _, out, _ = run(*words, "--gap-length", 2, "--step", "margin", "--temperature", 0)
    assert out == SENTENCES[3] + "\n"
    for length in ("auto", "1-4"):
        assert run(*words, "--gap-length", length, "--step", "margin", "--temperature", 0)[1] == out
    result = json.loads(run(*words, "--gap-length", 5, "--json", "--seed", 0)[1])
    assert result["full_texts"][0].endswith(" on its roof.")
    assert len(result["tokens"][0]) == 5
    refused(run(*words), "the text has 25 tokens with its gaps")


def test_a_trajectory_has_every_page(run, folder, tmp_path):
    path = tmp_path / "pages.jsonl"
    words = ("generate", "The fox", "-m", folder, "--length", 8, "--steps", 4, "--seed", 0)
    code, out, _ = run(*words, "--trajectory", path)
    assert code == 0
    pages = [json.loads(line) for line in path.read_text().splitlines()]
    assert [page["step"] for page in pages] == [0, 1, 2, 3, 4]
    assert pages[0]["texts"] == ["The fox" + NOISE * 8]
    assert pages[0]["decided"] == [[-1] * 8]
    assert pages[-1]["texts"] == [out[:-1]]
    assert sorted(set(pages[-1]["decided"][0])) == [1, 2, 3, 4]
    assert len(pages[-1]["tokens"][0]) == 8


def test_a_terminal_shows_the_page_while_it_is_written(folder, monkeypatch):
    words = ["generate", "The fox", "-m", folder, "--length", "8", "--seed", "0"]
    shown = on_a_terminal(words, monkeypatch)
    assert NOISE in shown
    assert "step 0, 8 tokens to decide" in shown
    assert re.search(r"\d steps, \d tokens, ", shown)
    plain = on_a_terminal([*words, "--no-live"], monkeypatch)
    assert NOISE not in plain
    assert plain.split("\x1b[2K")[-1].startswith("The fox"), "after the spinner"
    record = on_a_terminal([*words, "--json"], monkeypatch).split("\x1b[2K")[-1]
    assert json.loads(record)["options"]["seed"] == 0


def on_a_terminal(words, monkeypatch) -> str:
    """What a terminal gets, standard error included."""
    keeper, side = os.openpty()
    said = []
    reader = threading.Thread(target=drain, args=(keeper, said))
    reader.start()
    with open(side, "w", encoding="utf-8") as terminal, monkeypatch.context() as patch:
        patch.setattr("sys.argv", ["sfumato", *words])
        patch.setattr("sys.stdout", terminal)
        patch.setattr("sys.stderr", terminal)
        patch.setenv("TERM", "xterm-256color")
        with pytest.raises(SystemExit) as caught:
            main()
    assert not caught.value.code
    reader.join()
    os.close(keeper)
    return b"".join(said).decode()


def drain(keeper, said):
    try:
        while more := os.read(keeper, 1 << 16):
            said.append(more)
    except OSError as error:
        if error.errno != errno.EIO:  # Linux says so when the other side is closed
            raise


def test_a_reader_that_goes_away_is_no_error(folder, monkeypatch, capfd):
    gone, side = os.pipe()
    os.close(gone)
    monkeypatch.setattr(
        "sys.argv", ["sfumato", "generate", "-m", folder, "--steps", "2", "--seed", "0"]
    )
    with open(side, "w", encoding="utf-8") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        with pytest.raises(SystemExit) as caught:
            main()
        monkeypatch.undo()
    assert caught.value.code == 1
    assert re.fullmatch(r"2 steps, .*\n", capfd.readouterr().err), "what is always said of a text"


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
def test_an_interrupted_text_is_printed_and_leaves_its_trajectory(run, folder, tmp_path, more):
    path = tmp_path / "pages.jsonl"
    interrupt_when_there(path)
    words = ("generate", "The", "-m", folder, "--step", "remask_cap", "--steps", 10**5, *more)
    code, out, err = run(*words, "--trajectory", path)
    assert code == 130
    pages = [json.loads(line) for line in path.read_text().splitlines()]
    assert [page["step"] for page in pages] == list(range(len(pages)))
    if more:
        result = json.loads(out)
        assert result["interrupted"]
        assert result["num_steps"] == pages[-1]["step"]
        assert result["full_texts"] == [pages[-1]["texts"][0].replace(NOISE, "")]
    else:
        assert out == pages[-1]["texts"][0] + "\n"
        left = pages[-1]["decided"][0].count(-1)
        assert err.startswith(f"interrupted, {left} tokens left to decide: {len(pages) - 1} s")


def test_text_may_come_from_standard_input(run, folder, monkeypatch):
    def typed(data, *words):
        with monkeypatch.context() as patch:
            stream = None if data is None else io.TextIOWrapper(io.BytesIO(data))
            patch.setattr("sys.stdin", stream)
            return run("generate", *words, "-m", folder, "--step", "margin", "-t", 0)

    assert typed("A caf\u00e9\r\n".encode(), "-")[1] == SENTENCES[3] + "\n"
    gap = "A caf\u00e9 had____ on its roof.\n".encode()
    assert typed(gap, "--infill", "-", "--gap-length", 2)[1] == SENTENCES[3] + "\n"
    refused(typed(b"A caf\xe9", "-"), "standard input is not UTF-8 at byte 6; give text in UTF-8")
    refused(typed(None, "-"), "standard input is closed")
    refused(typed(b"", "-", "--source", "-"), "standard input is one text")
    assert typed(b"a\n", "The", "--source", "-")[1] == typed(b"", "The", "--source", "a")[1]


def test_a_text_without_an_end_is_said_to_have_none(run, folder):
    words = ["generate", "The", "-m", folder, "--step", "left_to_right", "--suppress"]
    ends = [1, "--suppress", 2, "--suppress", 0, "--suppress", 3]
    told = "no end: the canvas was full; the model has room for no more\n"
    assert run(*words, *ends)[2].endswith("the text has " + told)
    assert run(*words, *ends, "-n", 2)[2].endswith("2 of 2 texts have " + told)
    assert "no end" not in run(*words, *ends, "--length", 3)[2], "so long it was to be"
    assert run(*words, *ends, "--json")[2] == ""


def test_options_have_the_names_of_others(run, folder):
    same = ("generate", "The", "-m", folder, "--seed", 1)
    assert run(*same, "--max-new-tokens", 5)[1] == run(*same, "--length", 5)[1]
    for words in ([], ["generate"], ["tokenizer", "train"], ["data", "prepare"], ["train"]):
        code, out, _ = run(*words, "-h")
        assert code == 0
        assert "Usage: " in out


def test_a_trajectory_that_cannot_be_written_does_not_end_the_text(run, folder):
    code, out, err = run("generate", "-m", folder, "--seed", 1, "--trajectory", "/dev/full")
    assert (code, len(out) > 1) == (1, True)
    assert err.endswith(
        "error: cannot write the trajectory to /dev/full: No space left on device\n"
    )


def interrupt_when_there(path, number=signal.SIGINT):
    """Press Ctrl-C as soon as a file has something in it."""

    def wait():
        while not (path.exists() and path.stat().st_size):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["The fox " * 50], "tokens of prompt and 1 new ones do not fit into the model's 24"),
        (["--length", "0"], "length must be at least 1, got 0"),
        (["--steps", "0"], "num_steps must be at least 1, got 0"),
        (["--temperature", "-1"], "temperature must be 0 or more, got -1.0"),
        (["--top-p", "0"], "top_p must be in (0, 1], got 0.0"),
        (["--top-k", "0"], "top_k must be at least 1"),
        (["-n", "0"], "num_samples must be at least 1, got 0"),
        (["--step", "margn"], "unknown step 'margn'; did you mean margin"),
        (["--step-option", "level"], "expected name=number, such as level=0.8, got 'level'"),
        (["--step-option", "level=high"], "expected name=number, such as level=0.8"),
        (["--step-option", "level=0.5"], "step_options without a step"),
        (["--step", "margin", "--step-option", "a=1"], "step 'margin' has no option 'a'"),
        (["--infill", ""], "no gap in the text: mark it with ____"),
        (["--infill", "no gap"], "no gap in the text"),
        (["--infill", "a ____", "--gap-length", "0"], "gap_length must be at least 1, got 0"),
        (["--infill", "a ____", "--gap-length", "few"], "a range such as 2-12, or auto; got 'few'"),
        (["--infill", "a ____", "--length", "5"], "infilling has no length"),
        (["a", "--infill", "a ____"], "give a prompt or --infill, not both"),
        (["a", "--gap-length", "3"], "--gap-length is for --infill"),
        (["a\udcffb"], "character 2 of the text is half of one"),
        (["--device", "gpu"], "cannot use device 'gpu'"),
        (["--trajectory", "none/here/pages.jsonl"], "cannot write the trajectory to none/here"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_mistake_is_one_line_and_exit_code_1(run, folder, words, message):
    refused(run("generate", *words, "-m", folder), message)


def test_a_model_that_is_not_there_is_refused(run, tmp_path):
    refused(run("generate", "-m", tmp_path / "none"), "expected a folder with config.json")
    refused(run("generate", "-m", "no-such-model"), "'no-such-model' is no folder here")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), "length 2e12"],
    ids=["python", "cuda", "cpu"],
)
def test_too_little_memory_is_no_traceback(run, folder, monkeypatch, error):
    def load(*_, **__):
        if isinstance(error, str):
            torch.empty(2 * 10**15)
        raise error

    monkeypatch.setattr("sfumato.lm.model.DiffusionLM.from_pretrained", load)
    refused(run("generate", "-m", folder), "out of memory; try fewer or shorter rows at a time")


def test_a_fault_of_the_program_has_its_traceback(folder, monkeypatch):
    def load(*_, **__):
        raise RuntimeError("a fault")

    monkeypatch.setattr("sfumato.lm.model.DiffusionLM.from_pretrained", load)
    monkeypatch.setattr("sys.argv", ["sfumato", "generate", "-m", folder])
    with pytest.raises(RuntimeError, match="a fault"):
        main()


def test_every_option_of_writing_is_one_of_the_library():
    known = {field.name for field in fields(GenerationOptions)}
    assert {field.name for field in fields(Writing)} == known - {"canvas", "layout"}
    assert {f.name: f.default for f in fields(Measuring)} == {
        f.name: f.default for f in fields(EvaluateOptions)
    }
    assert CalibrateOptions(**Calibrating().options()) == CalibrateOptions()


@pytest.mark.parametrize(
    "words", [["--no-such-option"], ["--seed", "many"], ["a", "b"]], ids=lambda words: words[0]
)
def test_a_wrong_usage_is_exit_code_2(run, words):
    code, out, err = run("generate", *words)
    assert (code, out) == (2, "")
    assert "sfumato generate [OPTIONS]" in err


# --- the other commands ---


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    records = [{"text": f"{s} {n}", "other": "x"} for n in range(9) for s in SENTENCES]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def test_a_tokenizer_is_made(run, text, tmp_path):
    code, out, err = run("tokenizer", "train", text, tmp_path / "tok", "--vocab-size", 300)
    assert (code, out, err) == (0, f"300 tokens: {tmp_path / 'tok'}\n", "")
    assert len(load_tokenizer(tmp_path / "tok")) == 300
    refused(run("tokenizer", "train", text, tmp_path / "tok"), "is there already")
    _, out, _ = run("tokenizer", "train", text, tmp_path / "other", "--field", "other")
    assert out.endswith(f" tokens, not 8,192: there is little text: {tmp_path / 'other'}\n")
    refused(run("tokenizer", "train", text, tmp_path / "no", "--vocab-size", 5), "at least 260")
    refused(run("tokenizer", "train", tmp_path / "none.txt", tmp_path / "no"), "no file or folder")


def test_text_is_prepared(run, text, tmp_path):
    out = tmp_path / "data"
    words = ("data", "prepare", text, out, "--vocab-size", 300, "--validation", 0.5)
    code, said, err = run(*words)
    assert (code, err) == (0, "")
    *_, train, validation, last = said.splitlines()
    assert train.startswith("train: ")
    assert "bytes a token" in validation
    assert last == f"300 tokens in the vocabulary: {out}"
    assert run(*words)[1] == said, "again, at once"
    assert json.loads(run(*words, "--json")[1]) == Prepared.open(out).facts
    for word in (["--add-mask-token"], ["--eos-token", "<end>"]):
        message = f"{word[0]} is for a tokenizer given by --tokenizer"
        refused(run("data", "prepare", text, tmp_path / "o", *word), message)
    refused(run("data", "prepare", text, tmp_path / "o", "--limit", 0), "limit of a source must be")
    refused(run("data", "prepare", text, tmp_path / "o", "--field", "txt"), "no field 'txt'")


def test_text_is_prepared_with_the_tokenizer_of_a_shipped_model(run, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("data", "prepare", text, "data", "--tokenizer", "stories")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "4,096 tokens in the vocabulary: data"
    (tmp_path / "stories").mkdir()  # a folder of one's own comes first
    refused(run(*words), "stories")


def test_text_is_prepared_with_the_bare_tokenizer_of_others(run, text, tmp_path):
    run("tokenizer", "train", text, tmp_path / "whole", "--vocab-size", 300)
    (tmp_path / "bare").mkdir()
    (tmp_path / "whole" / "tokenizer.json").rename(tmp_path / "bare" / "tokenizer.json")
    words = ["data", "prepare", text, tmp_path / "data", "--tokenizer", tmp_path / "bare"]
    refused(run(*words), "has no mask token, which a diffusion model needs; add one:")
    refused(run(*words, "--add-mask-token"), "has no eos token, which ends every document")
    code, out, err = run(*words, "--add-mask-token", "--eos-token", "<|eos|>")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == f"300 tokens in the vocabulary: {tmp_path / 'data'}"
    kept = Prepared.open(tmp_path / "data").tokenizer()
    assert (kept.mask_token, kept.eos_token) == ("<|mask|>", "<|eos|>")


def test_a_separator_may_be_a_line_end(run, tmp_path):
    (tmp_path / "lines.txt").write_text("a b c\nd e f\n\ng h i\n" * 20)
    words = ("data", "prepare", tmp_path / "lines.txt", tmp_path / "data", "--separator", "\\n")
    code, _, err = run(*words, "--vocab-size", 260, "--validation", 0, "--limit", 50)
    assert code == 0, err
    assert Prepared.open(tmp_path / "data").facts["splits"]["train"]["documents"] == 50


@pytest.fixture(scope="module")
def words_folder(tmp_path_factory):
    return prepare_words(tmp_path_factory.mktemp("data") / "words")


def run_file(folder, words, **keys):
    path = folder / "run.json"
    run = {
        "output": str(folder / "out"),
        "data": {"folder": str(words), "length": 32},
        "model": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        "train": {"max_steps": 6, "warmup_steps": 1, "batch_size": 4, "precision": "fp32"},
        "evaluate": {"eval_steps": 3, "rows": 4},
        "samples": {"sample_steps": 6, "prompts": ["the"], "length": 4},
        "log": {"logging_steps": 2},
    }
    path.write_text(json.dumps(run | keys))
    return path


def test_a_run_is_told_line_by_line_and_its_model_writes(run, words_folder, tmp_path):
    path = run_file(tmp_path, words_folder)
    code, out, err = run("train", path, "train.max_steps=4", "samples.sample_steps=4")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].endswith("rows, cpu, float32")
    assert next(line for line in lines if "loss" in line).startswith("step 2: loss ")
    assert any("held-out bound" in line for line in lines)
    assert any(line.startswith("  the") for line in lines)
    assert lines[-1].endswith(f": {tmp_path / 'out'}")
    code, out, _ = run("generate", "the", "-m", tmp_path / "out", "--length", 3)
    assert code == 0
    assert out.startswith("the")
    refused(run("train", path, "train.max_step=4"), "unknown key 'train.max_step'; did you mean")
    refused(run("train", tmp_path / "none.yaml"), "none.yaml: there is no such file")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_an_interrupted_run_saves_and_says_how_to_go_on(run, words_folder, tmp_path, number):
    path = run_file(tmp_path, words_folder)
    interrupt_when_there(tmp_path / "out" / "metrics.jsonl", number)
    words = ("train.max_steps=1000000", "train.save_steps=1000000", "evaluate.eval_steps=100")
    code, out, err = run("train", path, *words)
    assert code == 128 + number
    told = "\nstopping after this step; Ctrl-C once more stops at once\n"
    assert err == (told if number == signal.SIGINT else "")
    (saved,) = (tmp_path / "out" / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step-"))
    last = f"stopped and saved after step {step}; give the same command again to go on"
    assert out.splitlines()[-1] == last
    assert (tmp_path / "out" / "model.safetensors").exists(), "the run's model so far"


def test_a_second_ctrl_c_does_not_wait_for_the_step(run, words_folder, tmp_path, monkeypatch):
    def endless(wanted, stop):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        yield from ()

    monkeypatch.setattr("sfumato.train.training", endless)
    usual = signal.getsignal(signal.SIGINT)
    code, _, err = run("train", run_file(tmp_path, words_folder))
    assert code == 130
    assert err.endswith("\ninterrupted; give the same command again to go on\n")
    assert signal.getsignal(signal.SIGINT) is usual


def test_a_model_is_evaluated(run, folder, text, tmp_path):
    out = tmp_path / "new" / "result.json"
    words = ("evaluate", folder, text, "--rows", 5, "--num-samples", 2, "--out", out)
    code, said, err = run(*words)
    assert (code, err) == (0, "")
    lines = said.splitlines()
    assert lines[0] == "likelihood, exact_k(samples=2):"
    assert [line.split()[-1] for line in lines[1:4]] == ["token", "byte", "perplexity"]
    record = json.loads(out.read_text())
    value = record["results"]["likelihood"]["nats_per_token"]["value"]
    assert lines[1].startswith(f"  {value:.4f} +- ")
    again = json.loads(run(*words, "--json")[1])
    assert again["results"] == record["results"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["result.json"]
    refused(run("evaluate", folder, text, "--rows", 0), "rows must be at least 1")
    refused(run("evaluate", folder, text, "--judge", tmp_path / "none"), "none")


def test_a_place_that_cannot_be_written_loses_no_result(run, folder, text, tmp_path):
    (tmp_path / "file").write_text("")
    words = ("evaluate", folder, text, "--rows", 2, "--num-samples", 1)
    code, out, err = run(*words, "--out", tmp_path / "file" / "result.json")
    assert code == 1
    assert out.startswith("likelihood")
    assert err.startswith(
        f"error: cannot write to {tmp_path / 'file' / 'result.json'}: File exists;"
    )


@pytest.fixture
def steady(monkeypatch):
    """Every pass takes as long as any other, whatever else the machine does."""

    def steadily(lm, **changes):
        one = lap(lm, **changes)
        return replace(one, seconds=one.forwards / 100)

    monkeypatch.setattr("sfumato.evals.certify.lap", steadily)


@pytest.mark.usefixtures("steady")
def test_a_model_is_calibrated_and_writes_so_from_then_on(run, taught_lm, tmp_path):
    taught_lm.save(tmp_path / "model")
    data, config = tmp_path / "text.txt", tmp_path / "model" / "generation_config.json"
    data.write_text("\n".join(SENTENCES * 8))
    words = ("calibrate", tmp_path / "model", data, "--separator", "\\n", "--rows", 25)
    words = (*words, "--num-texts", 1, "--block", 8)
    before = config.read_text()
    # one step for all of a block loses far more than this
    strict = ("--step", "probability", "--num-steps", 3, "--tolerance", 1e-9)
    code, out, _ = run(*words, *strict, "--no-plot")
    assert code == 0
    assert "nothing is certified" in out
    assert config.read_text() == before
    code, out, err = run(*words, "--step", "threshold=0.99,0.3", "--tolerance", 1)
    assert (code, err) == (0, "")
    assert "threshold level=0.3 block=8" in out
    assert f"{tmp_path / 'model'} decodes so from now on" in out
    record = json.loads((tmp_path / "model" / "calibration.json").read_text())
    chosen = record["results"]["settings"][record["results"]["chosen"]]["setting"]
    assert chosen["step"] == "threshold"
    picture = (tmp_path / "model" / "calibration.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    made = json.loads(run("generate", "-m", tmp_path / "model", "--json")[1])
    assert made["options"]["step_options"] == chosen["step_options"]
    assert made["options"]["block"] == 8


@pytest.mark.usefixtures("steady")
def test_a_copy_is_calibrated_where_the_model_is_another_s(run, folder, tmp_path):
    data = tmp_path / "text.txt"
    data.write_text("\n".join(SENTENCES * 8))
    before = sorted(os.listdir(folder))
    words = ("calibrate", folder, data, "--separator", "\\n", "--rows", 32, "--num-texts", 1)
    words = (*words, "--block", 8, "--step", "threshold=0.9", "--tolerance", 1, "--json")
    code, out, _ = run(*words, "--out", tmp_path / "copy")
    assert code == 0
    assert json.loads(out)["results"]["chosen"] is not None
    assert sorted(os.listdir(folder)) == before
    made = json.loads(run("generate", "-m", tmp_path / "copy", "--json")[1])
    assert made["options"]["step"] == "threshold"
    refused(run(*words, "--out", tmp_path / "copy"), "is there already; give a new or an empty")
    refused(run("calibrate", "stories", data), "is not yours to change; give --out FOLDER")


@pytest.mark.parametrize(
    ("part", "words", "then"),
    [
        (
            "sfumato.data.preparation.prepare",
            ("data", "prepare"),
            "give the same command again to go on",
        ),
        ("sfumato.evals.evaluate.evaluate", ("evaluate",), "nothing was changed"),
    ],
)
def test_ctrl_c_says_what_it_leaves_behind(
    run, folder, text, tmp_path, monkeypatch, part, words, then
):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(part, interrupted)
    places = (text, tmp_path / "out") if words[0] == "data" else (folder, text)
    code, out, err = run(*words, *places)
    assert (code, out, err) == (130, "", f"interrupted; {then}\n")


def test_ctrl_c_before_a_command_has_begun_is_no_traceback(monkeypatch, capfd):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("sfumato.cli.app", interrupted)
    with pytest.raises(SystemExit) as end:
        main()
    assert (end.value.code, capfd.readouterr()) == (130, ("", "interrupted\n"))


def test_the_error_of_one_text_is_said_to_be_unknown(run, folder, tmp_path):
    (tmp_path / "one.txt").write_text("A fox met a bear. " * 4)
    code, out, _ = run("evaluate", folder, tmp_path / "one.txt", "--num-samples", 1)
    assert code == 0
    assert out.count("(one text: no error)") == 3
    assert "nan" not in out


def test_an_interrupted_calibration_changes_nothing(run, folder, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sfumato.evals.calibrate.calibrate", interrupted)
    code, out, err = run("calibrate", folder, tmp_path, "--out", tmp_path / "copy")
    assert (code, out) == (130, "")
    assert err.startswith("interrupted; nothing was changed")
    assert not (tmp_path / "copy").exists()


def test_doctor_says_what_is_there(run):
    code, out, err = run("doctor")
    assert err == ""
    rows = [line.split(maxsplit=2) for line in out.splitlines()]
    assert ["ok", "device", "cpu"] in rows or "cuda" in out
    assert code == (1 if "missing" in {row[0] for row in rows} else 0)


def test_the_version_is_printed(run):
    from sfumato import __version__

    assert run("--version") == (0, __version__ + "\n", "")


def test_pairs_are_prepared(run, tmp_path):
    source = tmp_path / "stories.jsonl"
    stories = [f"Tom saw {n} cats. Then {n} dogs came." for n in range(30)] + ["Only one."]
    source.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
    words = ["data", "prepare", source, tmp_path / "out", "--vocab-size", 300]
    code, out, err = run(*words, "--pairs", "first-sentence")
    assert code == 1
    assert "document 31: empty target" in err
    code, out, err = run(*words, "--pairs", "first-sentence", "--skip-empty", "--validation", 0.2)
    assert code == 0, err
    assert "skipped: 1 with empty target" in out
    assert "sources, train: " in out
    assert "targets, validation: " in out
    for wrong, message in (
        (["--pairs", "last"], "unknown --pairs 'last'"),
        (["--pairs", "first-sentence", "--source-field", "a"], "leave out --source-field"),
        (["--skip-empty"], "--skip-empty is for pairs"),
        (["--source-field", "text"], "give both"),
    ):
        code, out, err = run(*words[:3], tmp_path / "no", *wrong)
        assert (code, out) == (1, "")
        assert message in err
