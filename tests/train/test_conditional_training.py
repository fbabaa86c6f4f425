import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_pairs import ENCODER, prepare_word_pairs, stage
from small_runs import of_kind, prepare_words, run_all, small_run
from torch.testing import assert_close

from sfumato import DiffusionLM
from sfumato.data.rows import PairRows
from sfumato.denoisers.full import Full
from sfumato.errors import ConfigError, DataError
from sfumato.evals.evaluate import EvaluateOptions, evaluate
from sfumato.models import EncoderDecoder
from sfumato.objectives.curriculum import DroppedSource
from sfumato.objectives.masked import MaskedDiffusion
from sfumato.objectives.selection import ExactK
from sfumato.objectives.times import Systematic
from sfumato.rng import Rng
from sfumato.train import Run, training
from sfumato.train.events import Sampled, Saved, Stepped
from sfumato.train.feed import as_batch
from sfumato.train.trainer import Trainer
from sfumato.train.world import World
from sfumato.types import ABSENT, Batch, Loss, PairBatch

HERE = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return prepare_word_pairs(tmp_path_factory.mktemp("data") / "pairs")


@pytest.fixture(scope="module")
def stages(pairs, tmp_path_factory) -> Path:
    """The three runs of ten steps each."""
    out = tmp_path_factory.mktemp("stages")
    for number in (1, 2, 3):
        run_all(stage(number, pairs, out, "train.save_steps=5"))
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints/step-00000010/model.safetensors")


def test_weights_carry_over_and_only_what_is_free_moves(stages):
    one, two, three = (weights(stages / name) for name in "123")
    begin = load_file(stages / "1/model.safetensors")  # the best, from which the next one starts
    for name, value in begin.items():
        assert torch.equal(two[name], value), name
    assert set(one) < set(two) == set(three)
    best = load_file(stages / "2/model.safetensors")
    still = [name for name in three if torch.equal(three[name], best[name])]
    assert still == []
    fresh = EncoderDecoder.from_pretrained(stages / "2").config
    assert fresh.encoder["hidden_size"] == ENCODER["hidden_size"]


def test_frozen_weights_have_no_optimizer_state(stages):
    memory = load_file(stages / "2/checkpoints/step-00000010/training.safetensors")
    names = {key.partition(".")[2] for key in memory}
    plain = set(weights(stages / "1"))
    assert names == set(weights(stages / "2")) - plain


def network(run: Run):
    trainer = Trainer(run, World(torch.device("cpu")))
    trainer.close()
    return trainer.model.eval()


def held_out(pairs: Path, rows: int = 12) -> PairBatch:
    taken = PairRows(pairs, "validation", length=32).batch(range(rows))
    batch = as_batch(taken, np.arange(rows))
    assert isinstance(batch, PairBatch)
    return batch


def test_before_its_first_step_stage_2_is_what_stage_1_has_learnt(pairs, stages, tmp_path):
    lm = DiffusionLM.from_pretrained(stages / "1")
    run = stage(2, pairs, stages).model_copy(update={"output": tmp_path / "2"})
    both = held_out(pairs)
    columns = {name: column for name, column in vars(both).items() if name != "source"}
    objective = MaskedDiffusion(lm.special.mask, Systematic(12))
    with torch.no_grad():
        alone = objective(lm.denoiser, Batch(**columns), Rng.from_seed(0))
        shown = objective(Full(network(run), lm.special.mask), both, Rng.from_seed(0))
    assert torch.equal(alone.nll, shown.nll)


def test_a_conditional_run_goes_on_bit_for_bit(pairs, stages, tmp_path):
    options = ["train.save_steps=5", "objective.source_dropout=0.3", "train.ema_decay=0.5"]
    for number in (2, 3):
        whole = stage(number, pairs, stages, *options).model_copy(
            update={"output": tmp_path / f"whole{number}"}
        )
        broken = whole.model_copy(update={"output": tmp_path / f"broken{number}"})
        run_all(whole)
        begun = training(broken)
        while not isinstance(next(begun), Saved):
            pass
        begun.close()
        assert of_kind(run_all(broken), Stepped)[0].step == 6
        for name in ("model", "training"):
            one, other = (
                load_file(run.output / f"checkpoints/step-00000010/{name}.safetensors")
                for run in (whole, broken)
            )
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_accumulation_changes_nothing_but_rounding(pairs, stages, tmp_path):
    losses = []
    for parts in (1, 4):
        run = stage(
            3,
            pairs,
            stages,
            f"train.gradient_accumulation_steps={parts}",
            "objective.source_dropout=0.3",
        ).model_copy(update={"output": tmp_path / str(parts)})
        losses.append([event.loss for event in of_kind(run_all(run), Stepped)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "steps"), [("encoder", 80), pytest.param("prefix", 500, marks=pytest.mark.slow)]
)
def test_the_right_source_tells_and_a_wrong_one_does_not(pairs, tmp_path, kind, steps):
    """An encoder, and a prefix in an ordinary network, learn to read it."""
    model = {"encoder": {**ENCODER, "hidden_size": 16}} if kind == "encoder" else {}
    run = small_run(
        pairs,
        tmp_path / kind,
        f"train.max_steps={steps}",
        "train.batch_size=16",
        "train.learning_rate=0.05",
        f"evaluate.eval_steps={steps}",
        f"samples.sample_steps={steps}",
        "samples.sources=cat dog",
        data={"layout": "padded"},
        model=model,
    )
    events = run_all(run)
    assert of_kind(events, Sampled)[0].texts
    lm = DiffusionLM.from_pretrained(run.output)
    assert isinstance(lm.model, EncoderDecoder) == (kind == "encoder")
    options = EvaluateOptions(rows=24, shuffled=True)
    results = evaluate(lm, pairs, options, model_name=str(run.output))["results"]
    right, wrong = (results[key]["nats_per_token"] for key in ("likelihood", "shuffled_likelihood"))
    gain = results["nats_from_source"]
    assert gain["value"] == pytest.approx(wrong["value"] - right["value"])
    assert gain["value"] > 3 * gain["error"] > 0
    # on the same draws, the difference is surer than two bounds apart
    assert gain["error"] < (wrong["error"] ** 2 + right["error"] ** 2) ** 0.5


class Seen:
    """An objective that only looks at the sources."""

    def __call__(self, denoiser, batch, rng) -> Loss:
        zero = torch.zeros(())
        self.batch = batch
        return Loss(zero, zero, zero, zero, zero)


def test_dropped_sources_depend_on_seed_and_slot_alone():
    count = 4000
    source = torch.arange(3 * count).reshape(count, 3)
    tokens = torch.zeros(count, 2, dtype=torch.int64)
    batch = PairBatch(tokens, tokens > -1, tokens, torch.arange(count), source)
    seen, rng = Seen(), Rng.from_seed(3)
    DroppedSource(seen, 0.25)(None, batch, rng)  # type: ignore[arg-type]
    whole = seen.batch.source
    gone = (whole == ABSENT).all(1)
    assert torch.equal(whole[~gone], source[~gone])
    assert abs(float(gone.double().mean()) - 0.25) < 0.03  # 4 standard errors
    part = PairBatch(*(column[100:200] for column in vars(batch).values()))
    DroppedSource(seen, 0.25)(None, part, rng)  # type: ignore[arg-type]
    assert torch.equal(seen.batch.source, whole[100:200])
    DroppedSource(seen, 0.25)(None, batch, Rng.from_seed(4))  # type: ignore[arg-type]
    assert not torch.equal(seen.batch.source, whole)


def test_complementary_rows_have_their_source_twice(pairs, stages):
    lm = DiffusionLM.from_pretrained(stages / "3")
    for weight in lm.model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    batch = held_out(pairs, 6)
    objective = MaskedDiffusion(lm.special.mask, Systematic(6), ExactK(), complementary=True)
    with torch.no_grad():
        twice = objective(lm.denoiser, batch, Rng.from_seed(0)).nll
        once = replace(objective, complementary=False)(lm.denoiser, batch, Rng.from_seed(0)).nll
        other = replace(batch, source=batch.source.roll(1, 0))
        changed = objective(lm.denoiser, other, Rng.from_seed(0)).nll
    assert_close(twice[:6], once)
    assert ((twice[6:] - changed[6:]).abs().amax(1) > 1e-4).any()


def test_runs_that_cannot_be_are_refused(pairs, stages, tmp_path):
    words = prepare_words(tmp_path / "words")
    padded = {"data": {"layout": "padded"}}
    for run, message in (
        (small_run(words, tmp_path / "a", model={"encoder": ENCODER}), "is for pairs"),
        (small_run(words, tmp_path / "a", "objective.source_dropout=0.1"), "is for pairs"),
        (small_run(words, tmp_path / "a", "samples.sources=cat"), "is for pairs"),
        (small_run(pairs, tmp_path / "a"), "pairs need a row of their own"),
        (
            small_run(pairs, tmp_path / "a", model={"freeze_decoder": True}, **padded),
            "add one",
        ),
        (stage(3, pairs, stages, model={"encoder": ENCODER}), "has an encoder; leave out"),
        (stage(3, pairs, stages, model={"hidden_size": 8}), "brings its own shape"),
        (
            small_run(
                pairs,
                tmp_path / "a",
                model={"encoder": {**ENCODER, "max_position_embeddings": 2}},
                **padded,
            ),
            "the longest source has",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            run_all(run)
    with pytest.raises(ConfigError, match=r"unknown key 'model\.encoder\.layers'"):
        small_run(pairs, tmp_path / "a", "model.encoder.layers=2")
    lm = DiffusionLM.from_pretrained(stages / "3")
    with pytest.raises(ConfigError, match="shuffled is for pairs"):
        evaluate(
            lm, pairs / "targets", EvaluateOptions(shuffled=True), model_name=str(stages / "3")
        )
    (pairs / "pairs.json").rename(tmp_path / "pairs.json")
    with pytest.raises(DataError, match="interrupted; run the same prepare"):
        run_all(stage(3, pairs, stages, "seed=5"))
    (tmp_path / "pairs.json").rename(pairs / "pairs.json")


def test_an_encoder_starts_from_a_trained_denoiser(pairs, stages, tmp_path):
    own = {"init_from": str(stages / "1"), "encoder": {"init_from": str(stages / "1")}}
    run = small_run(pairs, tmp_path / "2", data={"layout": "padded"}).model_dump()
    model = network(Run.model_validate({**run, "model": own}))
    start = load_file(stages / "1/model.safetensors")
    for name, param in model.encoder.named_parameters():
        assert torch.equal(param, start[name])


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(pairs, stages, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from small_pairs import stage\n"
        "from sfumato.train import train\n"
        "torch.set_num_threads(1)\n"
        "torch.distributed.init_process_group('gloo')\n"
        "pairs, stages, out = map(Path, sys.argv[1:])\n"
        "for number in (2, 3):\n"
        "    for parallel in ('replicate', 'shard'):\n"
        "        run = stage(number, pairs, stages, f'train.parallel={parallel}',\n"
        "                    'objective.source_dropout=0.9')\n"
        "        train(run.model_copy(update={'output': out / f'{parallel}{number}'}))\n"
        "torch.distributed.destroy_process_group()\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    subprocess.run(
        [*launcher, script, pairs, stages, tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{HERE.parent / 'src'}"},
        check=True,
        timeout=240,
    )
    for number in (2, 3):
        run = stage(number, pairs, stages, "objective.source_dropout=0.9")
        run_all(run.model_copy(update={"output": tmp_path / f"alone{number}"}))
        alone = weights(tmp_path / f"alone{number}")
        for parallel in ("replicate", "shard"):
            together = weights(tmp_path / f"{parallel}{number}")
            for key, value in alone.items():
                assert_close(together[key], value, rtol=2e-3, atol=5e-4, msg=f"{parallel} {key}")
