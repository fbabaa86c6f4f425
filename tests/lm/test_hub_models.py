"""Masked language models of transformers write, fill gaps and score by their name alone."""

import copy
import json
import shutil

import pytest
import torch
from hub_models import MASKED, hub_model
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

from sfumato import DiffusionLM
from sfumato.decoding.rules import STEPS
from sfumato.errors import CheckpointError

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
WORDS = [chr(ord("a") + n // 26) + chr(ord("a") + n % 26) for n in range(40 - len(SPECIAL))]


@pytest.fixture(scope="session")
def words():
    """A tokenizer of 35 words, as a BERT has one."""
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    roles = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "unk": "[UNK]"}
    own = {f"{role}_token": spelling for role, spelling in roles.items()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **own)


@pytest.fixture(scope="session")
def folders(words, tmp_path_factory):
    """A folder of each kind, as transformers writes it."""
    place = tmp_path_factory.mktemp("hub")
    for kind in MASKED:
        hub_model(kind).save_pretrained(place / kind)
        words.save_pretrained(place / kind)
    return place


@pytest.fixture(params=MASKED)
def kind(request):
    return request.param


def test_a_folder_of_transformers_writes_at_once(folders, kind):
    lm = DiffusionLM.from_pretrained(folders / kind, device="cpu")
    made = lm.generate(" ".join(WORDS[:3]), length=6, seed=1, num_samples=2)
    assert made.num_steps <= 6
    assert set(" ".join(made.texts).split()) <= set(WORDS)
    again = lm.generate(" ".join(WORDS[:3]), length=6, seed=1)
    assert again.texts == made.texts[:1]


def test_gaps_are_filled_and_texts_scored(folders, kind):
    lm = DiffusionLM.from_pretrained(folders / kind, device="cpu")
    filled = lm.infill(f"{WORDS[0]} ____ {WORDS[1]}", gap_length=3, seed=0)
    assert filled.full_texts[0].split()[0] == WORDS[0]
    assert filled.full_texts[0].split()[-1] == WORDS[1]
    [score] = lm.score(" ".join(WORDS[:8]), num_samples=4)
    assert score.value > 0


@pytest.mark.parametrize("step", STEPS)
def test_every_rule_writes_with_it(folders, step):
    lm = DiffusionLM.from_pretrained(folders / "bert", device="cpu")
    assert lm.generate("aa", length=5, step=step, seed=0, num_steps=8).texts


def test_one_pass_at_temperature_0_is_what_the_model_says(folders, kind):
    lm = DiffusionLM.from_pretrained(folders / kind, device="cpu")
    filled = lm.infill(f"{WORDS[0]} ____ {WORDS[1]}", gap_length=1, temperature=0.0)
    ids = torch.tensor([[1, 5, 3, 6, 2]])
    model = AutoModelForMaskedLM.from_pretrained(folders / kind).eval()
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, 2]
    logits[: len(SPECIAL)] = -torch.inf
    assert filled.full_texts[0].split()[1] == (SPECIAL + WORDS)[int(logits.argmax())]


def test_it_is_saved_as_transformers_has_it(folders, kind, tmp_path):
    lm = DiffusionLM.from_pretrained(folders / kind, device="cpu")
    lm.save(tmp_path / "mine")
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "mine").state_dict()
    for name, weight in AutoModelForMaskedLM.from_pretrained(folders / kind).state_dict().items():
        assert torch.equal(theirs[name], weight), name
    again = DiffusionLM.from_pretrained(tmp_path / "mine", device="cpu")
    assert again.model.config.vocabulary_digest is not None
    asked = {"length": 6, "seed": 1}
    assert again.generate("aa", **asked).texts == lm.generate("aa", **asked).texts


def test_a_causal_model_is_no_diffusion_model_yet(words, tmp_path):
    hub_model("llama").save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="a causal one, of which nobody has made a diffusion"):
        DiffusionLM.from_pretrained(tmp_path)


def test_what_is_missing_is_named_with_the_nearest(folders, words, tmp_path):
    model = copy.deepcopy(hub_model("bert"))
    weights = model.state_dict()
    odd = weights.pop("bert.encoder.layer.1.attention.self.query.weight")
    weights["bert.encoder.layer.1.attention.self.queri.weight"] = odd
    model.save_pretrained(tmp_path, state_dict=weights)
    words.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"query.weight \(it has .*queri.weight\)"):
        DiffusionLM.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "no_such"}, "is that of a model of type 'no_such'; expected one of"),
        ({"model_type": "no_such", "auto_map": {}}, "it brings its own code, which is never run"),
        ({"architectures": ["BertModel"]}, "is a BertModel of type bert; expected a masked"),
    ],
    ids=lambda each: str(each)[:30],
)
def test_a_config_that_promises_something_else_is_refused(folders, tmp_path, change, message):
    shutil.copytree(folders / "bert", tmp_path / "it")
    path = tmp_path / "it" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        DiffusionLM.from_pretrained(tmp_path / "it")


def test_pickled_weights_are_refused(folders, tmp_path):
    shutil.copytree(folders / "bert", tmp_path / "it")
    (tmp_path / "it" / "model.safetensors").rename(tmp_path / "it" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights"):
        DiffusionLM.from_pretrained(tmp_path / "it")


def test_the_doctor_looks_at_it(folders, kind, run):
    code, out, err = run("doctor", folders / kind)
    assert code == 0, err
    assert "3 layers of 32, full attention, masked" in out
    assert "finite numbers, as transformers reads them" in out
