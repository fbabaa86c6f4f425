"""Families of transformers are trained by an ordinary run file."""

import copy

import pytest
import torch
from hub_models import hub_model
from safetensors.torch import load_file
from small_runs import of_kind, prepare_words, run_all, small_run
from transformers import AutoModelForMaskedLM

from sfumato.errors import ConfigError
from sfumato.lm.model import DiffusionLM
from sfumato.models.hub import HubNetwork
from sfumato.train.build_network import check_spread
from sfumato.train.events import Evaluated, Stepped
from sfumato.train.trainer import Trainer
from sfumato.train.world import World

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
KEYS = {
    "modernbert": {"intermediate_size": 48, "local_attention": 16},
    "bert": {"intermediate_size": 48, "hidden_dropout_prob": 0.1},
    "llama": {"intermediate_size": 48, "num_key_value_heads": 1},
}
FINE = {"train": {"optimizer": "adamw", "learning_rate": 3e-3}}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return prepare_words(tmp_path_factory.mktemp("data") / "words")


def hub_run(words, output, family, *overrides, **sections):
    model = {"family": family, "config": KEYS[family], **SHAPE}
    return small_run(words, output, *overrides, **{"model": model, **sections})


@pytest.mark.parametrize("family", KEYS)
def test_a_family_of_transformers_is_trained_and_writes(words, tmp_path, family):
    run = hub_run(words, tmp_path / "run", family, "train.max_steps=20", **FINE)
    seen = run_all(run)
    losses = [event.loss for event in of_kind(seen, Stepped)]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert of_kind(seen, Evaluated)
    lm = DiffusionLM.from_pretrained(run.output, device="cpu")
    assert (lm.model.config.model_type, lm.autoregressive, lm.block_size) == (family, False, None)
    assert lm.generate(length=6, seed=0).num_steps <= 6
    if family != "llama":
        theirs = dict(AutoModelForMaskedLM.from_pretrained(run.output).named_parameters())
        weights = load_file(run.output / "model.safetensors")
        assert weights.keys() == theirs.keys()
        assert all(torch.equal(theirs[name], weights[name]) for name in weights)


@pytest.mark.parametrize("objective", ["next_token", "block"])
def test_it_learns_next_tokens_and_blocks_too(words, tmp_path, objective):
    own = ["objective.name=block", "model.block_size=4"] if objective == "block" else []
    own = own or ["objective.name=next_token"]
    run = hub_run(words, tmp_path / "run", "llama", *own, **FINE)
    assert of_kind(run_all(run), Stepped)
    lm = DiffusionLM.from_pretrained(run.output, device="cpu")
    assert lm.autoregressive == (objective == "next_token")
    assert lm.block_size == (4 if objective == "block" else None)
    assert lm.generate(length=9, seed=0).texts


def test_a_run_goes_on_bit_for_bit(words, tmp_path):
    own = {"train": {**FINE["train"], "save_steps": 4, "ema_decay": 0.8}}
    run_all(hub_run(words, tmp_path / "straight", "bert", **own))
    run, steps = hub_run(words, tmp_path / "broken", "bert", **own), []
    trainer = Trainer(run, World(torch.device("cpu")), stop=lambda: len(steps) == 5)
    for event in trainer.events():
        steps += of_kind([event], Stepped)
    trainer.close()
    run_all(run)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "broken"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.family=no_such"], "unknown model.family 'no_such'"),
        (["model.family=bertt"], "unknown model.family 'bertt'.*bert"),
        (["model.config={hiden_size: 8}"], "bert has no key model.config.hiden_size"),
        (["model.config={vocab_size: 8}"], "model.config.vocab_size is 8, and the tokenizer"),
        (["model.config={num_attention_heads: 7}"], "transformers makes no bert of model.config"),
        (["model.size=tiny"], "model.size is for model.family=sfumato"),
        (["model.family=sfumato"], "model.config is for families of transformers"),
        (["model.family=t5"], "no language model of type t5|cannot be taken apart"),
        (["train.torch_compile=true"], "train.torch_compile is for model.family=sfumato"),
        (
            ["train.gradient_checkpointing=true", "objective.name=block", "model.block_size=4"],
            "with objective.name=block is for model.family=sfumato",
        ),
    ],
    ids=lambda each: str(each)[:40],
)
def test_what_does_not_go_together_is_refused(words, tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        Trainer(hub_run(words, tmp_path / "run", "bert", *overrides), World(torch.device("cpu")))


def test_gradient_checkpointing_changes_no_loss(words, tmp_path):
    losses = []
    for flag in ("true", "false"):
        run = hub_run(
            words,
            tmp_path / flag,
            "llama",
            f"train.gradient_checkpointing={flag}",
            "train.max_steps=4",
            **FINE,
        )
        losses.append([event.loss for event in of_kind(run_all(run), Stepped)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_it_is_not_sharded(words, tmp_path):
    run = hub_run(words, tmp_path / "run", "bert", "train.parallel=shard")
    network = HubNetwork.of(copy.deepcopy(hub_model("bert")))
    with pytest.raises(
        ConfigError, match=r"shard is for model\.family=sfumato, and this is a bert"
    ):
        check_spread(run, network, World(torch.device("cpu"), 0, 2))
