"""The recipes of the shipped models: their run files, and which stories they learn from."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from scripts import load_script
from tiny_lm import SENTENCES

from sfumato.errors import DataError
from sfumato.train import load_run

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def shipping():
    return load_script(RECIPES / "ship_stories.py")


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_run_file_is_a_run(path):
    assert load_run(path).output.parts[0] == "runs"


def test_every_stage_goes_on_from_the_one_before(shipping):
    runs = [load_run(RECIPES / stage.run, stage.changes) for stage in shipping.STAGES]
    for before, run in pairwise(runs):
        assert str(run.model.init_from) == str(before.output)
    made = {str(run.output) for run in runs}
    assert {run for run, _ in shipping.MODELS.values()} <= made
    twins = [load_run(RECIPES / stage.run, stage.changes).output for stage in shipping.TWINS]
    assert len(set(twins)) == len(twins)


def test_the_stories_are_named_one_by_one(shipping):
    hashes = shipping.HASHES.read_text().split()
    assert len(hashes) == len(set(hashes)) == 14_579
    assert all(len(known) == 12 and int(known, 16) >= 0 for known in hashes)


def test_named_stories_are_found_in_their_order(shipping, tmp_path, capsys):
    hashes = [shipping.digest(text) for text in SENTENCES]
    apart = [text.replace(" ", "  ") + "\n" for text in reversed(SENTENCES)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in apart))
    (tmp_path / "c.txt").write_text("Something else.\n<|endoftext|>\nOnce more.\n")
    taken = shipping.chosen([str(tmp_path)], hashes)
    assert [" ".join(text.split()) for text in taken] == list(SENTENCES)
    assert "others" not in capsys.readouterr().out
    with pytest.raises(DataError, match="give all files of TinyStories"):
        shipping.chosen([str(tmp_path / "c.txt")], hashes)


def test_fragments_are_ends_of_texts_that_are_learnt_from(shipping):
    texts = [f"Once there was a {n}. It ran. Then it slept! The end." for n in range(400)]
    made = list(shipping.with_fragments(texts))
    assert [text for text in made if text in set(texts)] == texts
    fragments, before = {}, ""
    for text in made:
        if text not in set(texts):
            fragments[before] = text
        before = text
    assert all(whole.endswith(end) and len(end) < len(whole) for whole, end in fragments.items())
    held = {text for text in texts if shipping.is_held_out(text)}
    assert 5 < len(held) < 40
    assert not held & set(fragments)
    ends = ("It ran. Then it slept! The end.", "Then it slept! The end.", "The end.")
    assert set(fragments.values()) == {end for end in ends if not shipping.is_held_out(end)}


@pytest.mark.shared
def test_all_of_the_named_stories_are_known(shipping, shared, capsys):
    place = shared / "tinystories" / "tinystories.jsonl.gz"
    taken = shipping.chosen([str(place)], shipping.HASHES.read_text().split())
    assert len(taken) == 14_579
    assert "14,579 of 14,579" in capsys.readouterr().out
