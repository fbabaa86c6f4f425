import copy
import json
import math
import sys

import pytest
import torch
from tiny_lm import CANVAS, HYBRID, SENTENCES, UNIFORM, saved, taught, tiny_lm, tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from sfumato.data.preparation import prepare
from sfumato.data.prepared import Prepared
from sfumato.data.sources import Source
from sfumato.data.tokenizer_files import save_tokenizer
from sfumato.data.tokenizer_training import train_tokenizer
from sfumato.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    MissingExtra,
    SfumatoError,
)
from sfumato.evals.evaluate import EvaluateOptions, evaluate
from sfumato.evals.held_out import count_bytes
from sfumato.evals.record import write
from sfumato.lm.model import DiffusionLM

TEXTS = [f"{sentence} \u00f1\u4e16{n}" for n in range(10) for sentence in SENTENCES]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return path


@pytest.fixture(scope="module")
def data(text, tmp_path_factory):
    """Prepared with the tiny models' tokenizer; characters of several tokens among them."""
    out = tmp_path_factory.mktemp("data") / "prepared"
    prepare(text, out, tokenizer(), validation=0.5, workers=1)
    return out


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer()), num_attention_heads=2, **shape)
    )
    model.save_pretrained(folder)
    save_tokenizer(tokenizer(), folder)
    return str(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random model of each layout, and where it is saved."""
    models = {layout: tiny_lm(layout=layout) for layout in ("packed", "padded")}
    return {
        layout: (lm, str(saved(lm, tmp_path_factory.mktemp("models") / layout)))
        for layout, lm in models.items()
    }


def measured(model, data, **options):
    lm, folder = model
    made = evaluate(lm, data, EvaluateOptions(**options), model_name=folder)
    return made["results"]


# --- likelihood ---


def test_a_taught_model_is_measured_well_on_what_it_knows(taught_lm, taught_folder, text, tmp_path):
    known = tmp_path / "known.txt"
    known.write_text("\n".join(SENTENCES))
    model = (taught_lm, str(taught_folder))
    lines = Source(str(known), separator="\n")
    good = measured(model, lines)["likelihood"]
    bad = measured(model, text)["likelihood"]
    assert good["nats_per_token"]["value"] < 1.5 < 3 < bad["nats_per_token"]["value"]
    assert good["perplexity"]["value"] == pytest.approx(math.exp(good["nats_per_token"]["value"]))
    assert good["accuracy"] > 0.8 > bad["accuracy"]
    assert good["accuracy_of"].startswith("masked tokens")
    assert good["estimator"] == "exact_k(samples=8)"
    assert good["bytes"] == sum(len(sentence.encode()) for sentence in SENTENCES)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_prepared_rows_have_as_many_bytes_and_tokens_as_were_prepared(tiny, data, layout):
    facts = Prepared.open(data).facts["splits"]["validation"]
    found = measured(tiny[layout], data, num_samples=1)["likelihood"]
    assert found["bytes"] == facts["bytes"]
    assert found["tokens"] == facts["tokens"]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_texts_have_as_many_bytes_and_tokens_as_they_are_long(tiny, text, layout):
    lm, _ = tiny[layout]
    found = measured(tiny[layout], text, num_samples=1)["likelihood"]
    assert found["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert found["tokens"] == sum(len(ids) + 2 for ids in lm.encode(TEXTS))


def test_bytes_of_a_character_in_two_rows_are_counted_once(tiny):
    lm, _ = tiny["packed"]
    words = ["a \u4e16\u754c \u00f1\u00f1", "\ufffd\u2603x", "plain", "\U0001f600" * 9]
    stream = [i for ids in lm.encode(words) for i in (lm.special.bos, *ids, lm.special.eos)]
    whole = sum(len(word.encode()) for word in words)
    for length in range(1, 30):
        rows = [stream[start : start + length] for start in range(0, len(stream), length)]
        sizes = count_bytes(lm, rows)
        assert sum(sizes) == whole
        assert min(sizes) >= 0


def test_a_padded_row_counts_its_text_up_to_its_end(tiny, data):
    lm, folder = tiny["padded"]
    found = measured((lm, folder), data, rows=3, num_samples=1)["likelihood"]
    split = Prepared.open(data, lm.tokenizer).split("validation")
    assert split.ends[0] <= CANVAS
    assert found["tokens"] < 3 * CANVAS


def test_even_predictions_cost_the_logarithm_of_the_vocabulary(tmp_path, data):
    lm = tiny_lm(layout="packed")
    torch.nn.init.zeros_(lm.model.norm.weight)  # all logits are 0
    even = math.log(len(lm.tokenizer) - 1)  # the mask token has probability 0
    found = measured((lm, saved(lm, tmp_path)), data, exact=True, rows=5)
    for key in ("likelihood", "exact_likelihood"):
        assert found[key]["nats_per_token"]["value"] == pytest.approx(even, rel=1e-4)
    bits = found["likelihood"]["bits_per_byte"]["value"]
    tokens, num_bytes = found["likelihood"]["tokens"], found["likelihood"]["bytes"]
    assert bits == pytest.approx(even * tokens / num_bytes / math.log(2), rel=1e-4)


def test_the_exact_likelihood_names_its_decoder(tiny, data):
    found = measured(tiny["packed"], data, rows=4, num_samples=1, exact=True)["exact_likelihood"]
    assert found["estimator"].startswith("by_decoder(Margin(schedule=Linear()), num_steps=None")
    assert found["accuracy_of"] == "tokens when they are decided"
    found = measured(
        tiny["packed"], data, rows=4, num_samples=1, exact=True, step="left_to_right", num_steps=9
    )["exact_likelihood"]
    assert found["estimator"].startswith("by_decoder(LeftToRight(schedule=Linear()), num_steps=9")


def test_a_rule_without_an_exact_likelihood_is_refused(tiny, data):
    with pytest.raises(ConfigError, match="have no exact likelihood; use a rule"):
        measured(tiny["packed"], data, rows=2, num_samples=1, exact=True, step="ancestral")


@pytest.mark.parametrize("corruption", [UNIFORM, HYBRID], ids=lambda c: c["name"])
def test_other_noise_is_measured_by_its_continuous_bound(corruption, data, tmp_path):
    lm = tiny_lm(corruption, layout="packed")
    found = measured((lm, saved(lm, tmp_path)), data, rows=4, num_samples=2)["likelihood"]
    assert found["estimator"] == "continuous(samples=2)"
    assert found["accuracy_of"].startswith("replaced tokens")
    assert found["nats_per_token"]["value"] > 0


def test_an_autoregressive_model_is_measured_exactly(data, tmp_path, judge):
    lm = taught("next_token", steps=20)
    folder = saved(lm, tmp_path)
    found = measured((lm, folder), data, exact=True, judge=judge, num_texts=3)
    assert found["likelihood"]["estimator"] == "left_to_right()"
    assert found["likelihood"]["accuracy_of"] == "next tokens"
    assert found["exact_likelihood"] == found["likelihood"]
    assert found["texts"]["generated"]["texts"] == 3


def test_the_error_falls_with_more_rows(tiny, text):
    few = measured(tiny["packed"], text, rows=8)["likelihood"]["nats_per_token"]
    many = measured(tiny["packed"], text, rows=40)["likelihood"]["nats_per_token"]
    assert 0 < many["error"] < few["error"]


# --- judged texts ---


def test_perplexity_never_stands_alone(tiny, data, judge):
    found = measured(tiny["padded"], data, rows=3, num_samples=1, judge=judge, num_texts=4)
    for key in ("generated", "held_out"):
        report = found["texts"][key]
        assert report["texts"] == 4
        assert report["judge"]["model"] == judge
        for name in ("perplexity", "entropy", "distinct", "bleu", "self_bleu", "repetition"):
            assert name in report
    assert found["texts"]["generation"]["seed"] == 0
    assert found["texts"]["seeds"] == [0]


def test_held_out_texts_are_never_their_own_references(tiny, text, judge):
    """Distinct texts, so that a text among its references would have a BLEU of 100."""
    found = measured(tiny["padded"], text, rows=3, num_samples=1, judge=judge, num_texts=500)
    assert found["texts"]["generated"]["texts"] == 500
    assert found["texts"]["held_out"]["texts"] == 20
    assert found["texts"]["held_out"]["references"] == 20


def test_texts_are_written_as_options_say_and_the_same_again(tiny, text, judge):
    options = {"rows": 2, "num_samples": 1, "judge": judge, "num_texts": 18, "seed": 3}
    options |= {"step": "margin", "num_steps": 3, "temperature": 0.5}
    found = measured(tiny["padded"], text, **options)["texts"]
    assert found["seeds"] == [3, 4]
    made = found["generation"]
    assert (made["step"], made["num_steps"], made["temperature"]) == ("margin", 3, 0.5)
    assert measured(tiny["padded"], text, **options)["texts"] == found


def test_held_out_texts_are_as_long_as_the_model_can_write(tiny, judge, tmp_path):
    long = tmp_path / "long.txt"
    long.write_text("\n".join("the \u4e16 bear " * 50 + str(n) for n in range(4)))
    found = measured(
        tiny["padded"], Source(str(long), separator="\n"), judge=judge, num_texts=2, rows=2
    )
    assert found["texts"]["held_out"]["mean_tokens"] <= CANVAS


def test_what_cannot_be_judged_is_refused_before_any_work(tiny, text, judge, tmp_path, monkeypatch):
    one = tmp_path / "one.txt"
    one.write_text("one text")
    with pytest.raises(DataError, match="expected at least 2, got 1"):
        measured(tiny["padded"], one, judge=judge)
    with pytest.raises(SfumatoError, match="none"):
        measured(tiny["padded"], text, judge=str(tmp_path / "none"))
    uniform = tiny_lm(UNIFORM)
    model = (uniform, saved(uniform, tmp_path / "uniform"))
    with pytest.raises(ConfigError, match="step 'margin' needs a masked model"):
        measured(model, text, judge=judge, step="margin")
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(MissingExtra, match=r"needs the package 'sacrebleu'.*sfumato\[eval\]"):
        measured(tiny["padded"], text, judge=judge)


# --- the record ---


def test_the_record_says_how_it_came_about(tiny, data, judge, tmp_path):
    lm, folder = tiny["packed"]
    told = []
    made = evaluate(
        lm,
        data,
        EvaluateOptions(rows=17, num_samples=2, judge=judge, num_texts=2, seed=7),
        model_name=folder,
        progress=told.append,
    )
    assert made["seed"] == 7
    assert made["settings"]["options"]["num_samples"] == 2
    assert made["settings"]["generation"]["layout"] == "packed"
    assert made["settings"]["data"] == {
        "folder": str(data),
        "split": "validation",
        "fingerprint": Prepared.open(data).fingerprint,
    }
    assert made["models"]["model"]["path"] == folder
    assert made["models"]["judge"]["path"] == judge
    assert {"sfumato", "torch", "transformers"} <= set(made["versions"])
    write(made, tmp_path / "record.json")
    assert json.loads((tmp_path / "record.json").read_text())["results"]["rows"] == 17
    assert told[0] == "loading the judge"
    assert "likelihood: 16 of 17 rows" in told
    assert told[-2:] == ["writing text 1 of 2", "judging"]


def test_the_same_seed_gives_the_same_record(tiny, data):
    first = measured(tiny["packed"], data, rows=4, seed=1)
    assert measured(tiny["packed"], data, rows=4, seed=1) == first
    assert measured(tiny["packed"], data, rows=4, seed=2) != first


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("shape", ["one text", "many texts", "one line each"])
def test_as_many_rows_are_taken_as_asked_for_whatever_the_file(tiny, tmp_path, layout, shape):
    path = tmp_path / "text.txt"
    parts = {"one text": " ", "many texts": "\n<|endoftext|>\n", "one line each": "\n"}
    path.write_text(parts[shape].join(SENTENCES * 40))
    lm, folder = tiny[layout]
    options = EvaluateOptions(rows=8, num_samples=1)
    found = evaluate(lm, Source(str(path)), options, model_name=folder)["results"]
    assert found["rows"] == 8
    if shape != "many texts":  # the first rows of one text, none of them with its end
        ids = [lm.special.bos, *lm.encode([path.read_text()])[0]][: 8 * CANVAS]
        assert found["likelihood"]["tokens"] == len(ids) == 8 * CANVAS
        assert found["likelihood"]["bytes"] == len(lm.tokenizer.decode(ids[1:]).encode())


def test_bytes_are_those_of_the_original_where_a_tokenizer_changes_text(tmp_path):
    from tokenizers import normalizers

    lm = tiny_lm(layout="packed")
    lm = DiffusionLM(lm.model, copy.deepcopy(lm.tokenizer), lm.options)
    lm.tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    texts = [f"{n} cafe\u0301s " * (n % 9) + "and tea" for n in range(20)]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    model = (lm, str(saved(lm, tmp_path / "model")))
    original = sum(len(text.encode()) for text in texts)
    assert measured(model, path, num_samples=1)["likelihood"]["bytes"] == original
    options = {"validation": 0.5, "workers": 1, "lossy": True}
    facts = prepare(path, tmp_path / "out", lm.tokenizer, **options).facts["splits"]["validation"]
    found = measured(model, tmp_path / "out", num_samples=1)["likelihood"]
    assert found["bytes"] == facts["bytes"]


def test_the_source_is_named(tiny, text):
    lm, folder = tiny["packed"]
    source = Source(str(text), limit=3)
    options = EvaluateOptions(rows=9, num_samples=1)
    made = evaluate(lm, source, options, model_name=folder)
    assert made["results"]["rows"] == 3
    assert made["settings"]["data"]["name"] == str(text)


# --- what cannot be measured ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"num_texts": -1}, "num_texts must be at least 1"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"step": "margn"}, "unknown step 'margn'"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        EvaluateOptions(**options)


def test_data_that_cannot_be_used_are_refused(tiny, data, text, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n ")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    for name, message in {
        "none.txt": "no file or folder",
        "empty.txt": "is empty; expected text",
        "blank.txt": "holds no text to evaluate on",
        "binary.txt": "is a binary file",
    }.items():
        with pytest.raises(DataError, match=message):
            measured(tiny["packed"], tmp_path / name)
    other = train_tokenizer(["other words of another sort"] * 5, 280)
    prepare(text, tmp_path / "other", other, validation=0.5, workers=1)
    with pytest.raises(
        DataError, match=r"were prepared with tokenizer .*, but the tokenizer given"
    ):
        measured(tiny["packed"], tmp_path / "other")
    prepare(text, tmp_path / "all", tokenizer(), validation=0, workers=1)
    with pytest.raises(DataError, match=r"split 'validation' of .*all is empty"):
        measured(tiny["packed"], tmp_path / "all")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "journal.json").write_text("{}")
    with pytest.raises(DataError, match="was interrupted; run the same prepare command again"):
        measured(tiny["packed"], tmp_path / "begun")


def test_a_model_that_is_gone_cannot_be_recorded(tiny, text, tmp_path):
    lm, _ = tiny["packed"]
    with pytest.raises(CheckpointError, match=r"no model in .*gone"):
        measured((lm, str(tmp_path / "gone")), text, rows=1, num_samples=1)
