"""A GPU gives what a CPU gives: the same losses, the same run when it goes on, the same text."""

import pytest
import torch
from small_runs import of_kind, prepare_words, run_all, small_run
from tiny_lm import SENTENCES

from sfumato.lm.model import DiffusionLM
from sfumato.train import training
from sfumato.train.events import Evaluated, Saved, Started, Stepped

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return prepare_words(tmp_path_factory.mktemp("data") / "words")


def seen(events, kind):
    values = {Stepped: lambda e: [e.loss, e.grad_norm], Evaluated: lambda e: [e.bound]}[kind]
    return [value for event in of_kind(events, kind) for value in values(event)]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["corruption.name=uniform", "objective.name=bound"],
        ["objective.name=next_token", "train.optimizer=adamw"],
        ["objective.weight={name: clipped, limit: 2}", "train.gradient_accumulation_steps=2"],
    ],
    ids=lambda overrides: " ".join(overrides) or "masked",
)
def test_a_gpu_trains_what_a_cpu_trains(words, tmp_path, overrides):
    words = (words, tmp_path / "cpu"), (words, tmp_path / "gpu")
    one, other = (
        run_all(small_run(*where, f"train.device={device}", "train.max_steps=3", *overrides))
        for where, device in zip(words, ("cpu", DEVICE), strict=True)
    )
    assert of_kind(other, Started)[0].device.startswith(DEVICE)
    for kind in (Stepped, Evaluated):
        assert seen(other, kind) == pytest.approx(seen(one, kind), rel=1e-3)


def test_a_run_goes_on_from_one_device_on_another_and_back(words, tmp_path):
    straight = run_all(small_run(words, tmp_path / "straight", train={"device": "cpu"}))
    events = []
    for device, last in (("cpu", 3), (DEVICE, 6), ("cpu", 10)):
        options = {"device": device, "save_steps": 3, "ema_decay": 0.5}
        for event in training(small_run(words, tmp_path / "out", train=options)):
            events.append(event)
            if isinstance(event, Saved) and event.step == last:
                break
    assert [event.step for event in of_kind(events, Stepped)] == list(range(1, 11))
    assert seen(events, Stepped) == pytest.approx(seen(straight, Stepped), rel=1e-3)


def test_a_gpu_goes_on_to_the_same_bits(words, tmp_path):
    options = {"device": DEVICE, "save_steps": 3, "precision": "auto"}
    straight = run_all(small_run(words, tmp_path / "straight", train=options))
    run = small_run(words, tmp_path / "out", train=options)
    for event in training(run):
        if isinstance(event, Saved):
            break
    assert seen(run_all(run), Stepped) == seen(straight, Stepped)[6:]


def test_a_gpu_writes_what_a_cpu_writes(words, taught_folder):
    one, other = (
        DiffusionLM.from_pretrained(taught_folder, device=device) for device in ("cpu", DEVICE)
    )
    for options in ({"step": "margin"}, {"step": "ancestral", "num_steps": 5}, {"step": "wino"}):
        texts = [
            lm.generate(["A caf\u00e9", "The"], temperature=0.0, seed=0, **options).full_texts
            for lm in (one, other)
        ]
        assert texts[0] == texts[1], options
    assert other.generate("A caf\u00e9", step="margin", temperature=0.0).full_texts == (
        SENTENCES[3],
    )
    assert other.score([SENTENCES[3]])[0].value == pytest.approx(
        one.score([SENTENCES[3]])[0].value, rel=1e-3
    )
