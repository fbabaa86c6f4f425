"""Every key of a model's config against values that it may not have, in Python and in a folder."""

import json
import math
import shutil

import pytest
from tiny_lm import saved, tiny_lm

from sfumato.errors import CheckpointError, ConfigError
from sfumato.lm.folders import read_config
from sfumato.lm.model import DiffusionLM
from sfumato.models import EncoderDecoderConfig, TransformerConfig
from sfumato.models.config import KEYS, SHAPE, STANDARD, config_problem, encoder_problem

TINY = {"vocab_size": 330, "hidden_size": 32, "num_attention_heads": 2}
DAMAGES = {
    "word": "x",
    "empty": "",
    "list": [],
    "object": {},
    "null": None,
    "true": True,
    "minus": -1,
    "zero": 0,
    "one": 1,
    "huge": 10**30,
    "float": 1e30,
    "nan": math.nan,
    "fraction": 1.5,
}
# what each key may be of these; everything else is refused
ALLOWED = {
    "vocab_size": "",
    "hidden_size": "",
    "num_hidden_layers": "one",
    "num_attention_heads": "one",
    "intermediate_size": "null one",
    "max_position_embeddings": "one",
    "rope_theta": "one fraction",
    "rms_norm_eps": "",
    "dropout": "zero",
    "time_conditioned": "true",
    "attention": "",
    "block_size": "null one",
    "block_length": "null one",
    "shift": "true",
    "objective": "",
    "corruption": "object null",
    "mask_token_id": "null zero one",
    "tie_word_embeddings": "true",
    "vocabulary_digest": "null",
    "model_type": "word empty",
    "transformers_version": "word empty null",
    "architectures": "list null",
    "dtype": "null",
    "torch_dtype": "null",
    "bos_token_id": "list null zero one",
    "eos_token_id": "list null zero one",
    "pad_token_id": "list null zero one",
    "sep_token_id": "list null zero one",
    "cls_token_id": "list null zero one",
    "output_hidden_states": "null true",
    "output_attentions": "null true",
    "return_dict": "null true",
    "use_cache": "null true",
    "torchscript": "null true",
    "is_encoder_decoder": "null true",
    "is_decoder": "null true",
    "add_cross_attention": "null true",
    "chunk_size_feed_forward": "zero one",
    "id2label": "object null",
    "label2id": "object null",
    "num_labels": "one",
    "problem_type": "word empty null",
    "auto_map": "object null",
    "tokenizer_class": "word empty null",
    "attn_implementation": "word empty null",
    "experts_implementation": "word empty null",
    "name_or_path": " ".join(DAMAGES),  # the class is given paths
}
CORRUPTIONS = [
    "masked",
    3,
    ["masked"],
    {"name": 3},
    {"name": []},
    {"name": "mashed"},
    {"name": "masked", "share": 1},
    {"name": "hybrid", "uniform_share": "x"},
    {"name": "hybrid", "uniform_share": True},
    {"name": "hybrid", "uniform_share": math.nan},
    {"name": "hybrid", "gamma": -1},
    {"name": "masked", "schedule": 3},
    {"name": "masked", "schedule": []},
    {"name": "masked", "schedule": {"name": 3}},
    {"name": "masked", "schedule": {"name": "power", "exponent": []}},
    {"name": "masked", "schedule": {"name": "log_linear", "eps": {}}},
    {"name": "masked", "schedule": {"name": "clipped", "schedule": 3}},
    {"name": "masked", "schedule": {"name": "clipped", "low": "x"}},
    {"name": "masked", "schedule": {"name": "linear", "low": 0}},
]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return saved(tiny_lm(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "tiny")


def change(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return folder


def test_the_table_has_every_key():
    assert set(ALLOWED) == set(KEYS) | set(STANDARD)


@pytest.mark.parametrize("key", ALLOWED)
def test_every_key_is_what_the_table_allows(key):
    found = [name for name, value in DAMAGES.items() if not config_problem({**TINY, key: value})]
    assert found == ALLOWED[key].split()


@pytest.mark.parametrize("key", KEYS)
def test_the_class_refuses_what_the_table_refuses(key):
    for name, value in DAMAGES.items():
        if name not in ALLOWED[key].split():
            with pytest.raises(ConfigError, match=f"^model config: .*{key.split('_')[0]}"):
                TransformerConfig(**{**TINY, key: value})


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=repr)
def test_noise_that_cannot_be_is_refused(corruption):
    with pytest.raises(ConfigError, match=r"^model config: "):
        TransformerConfig(**TINY, corruption=corruption)


def test_what_does_not_go_together_is_refused():
    for keys, message in (
        ({"hidden_size": 30}, "hidden_size 30 must be an even multiple of num_attention_heads 2"),
        ({"mask_token_id": 330}, "'mask_token_id' must be one of the 330 tokens; got 330"),
        ({"attention": "block_causal"}, "needs block_size"),
    ):
        with pytest.raises(ConfigError, match=message):
            TransformerConfig(**TINY | keys)


def test_an_unknown_key_is_refused_with_the_near_one():
    with pytest.raises(ConfigError, match="unknown key 'hiden_size'; did you mean hidden_size"):
        TransformerConfig(hiden_size=64)
    with pytest.raises(ConfigError, match="unknown key 'sliding_window'; "):
        TransformerConfig(sliding_window=64)
    assert TransformerConfig(_note="mine")._note == "mine"


@pytest.mark.parametrize("key", SHAPE)
def test_an_encoder_is_checked_the_same(key):
    for name, value in DAMAGES.items():
        problem = encoder_problem({"hidden_size": 32, "num_attention_heads": 2, key: value})
        assert (problem is None) == (name in ALLOWED[key].split()), (key, name)
        if problem:
            assert f"encoder.{key}" in problem
    with pytest.raises(ConfigError, match=r"unknown key 'encoder.hiden_size'; did you mean hidden"):
        EncoderDecoderConfig(encoder={"hiden_size": 3}, **TINY)
    with pytest.raises(ConfigError, match="'encoder' must be an object; got 3"):
        EncoderDecoderConfig(encoder=3, **TINY)  # type: ignore[arg-type]


def test_a_config_that_is_saved_is_one_that_is_read(tmp_path):
    for config in (TransformerConfig(**TINY), EncoderDecoderConfig(encoder={}, **TINY)):
        config.save_pretrained(tmp_path)
        assert read_config(tmp_path).to_dict() == config.to_dict() | {"_name_or_path": ""}


def test_a_refusal_in_a_folder_names_file_key_expected_and_got(folder):
    with pytest.raises(CheckpointError) as caught:
        DiffusionLM.from_pretrained(change(folder, dropout=-1))
    assert str(caught.value) == (
        f"{folder / 'config.json'}: 'dropout' must be a number from 0 to below 1; got -1; "
        "mend it there, or copy or download the model again"
    )


@pytest.mark.parametrize("key", [*KEYS, *STANDARD, "encoder", "strange"])
def test_a_mutated_config_is_refused_or_read(folder, key):
    for name, value in DAMAGES.items():
        if key == "name_or_path" or (name == "nan" and key != "dropout"):
            continue
        change(folder, **{key: value})
        if name in ALLOWED.get(key, "").split() and key != "model_type":
            assert read_config(folder).model_type == "sfumato"
            continue
        with pytest.raises(CheckpointError, match=r"config.json"):
            read_config(folder)
