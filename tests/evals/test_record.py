import hashlib
import json
import math
import re
from pathlib import Path

import pytest
import torch

from sfumato.errors import DataError
from sfumato.evals.record import record, write


def made(**results):
    return record(["/home/someone/bin/sfumato", "evaluate", "a b"], {"steps": 8}, results, seed=3)


def test_a_record_says_how_the_result_came_about():
    told = made(nats=1.5)
    assert told["command"] == "sfumato evaluate 'a b'"
    assert told["settings"] == {"steps": 8}
    assert told["seed"] == 3
    assert told["results"] == {"nats": 1.5}
    assert told["versions"]["torch"] == torch.__version__
    assert set(told["versions"]) >= {"python", "sfumato", "transformers"}
    assert told["device"]["threads"] == torch.get_num_threads()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", told["time"])


def test_the_fingerprint_is_the_hash_of_the_weights(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"numbers")
    monkeypatch.chdir(tmp_path)
    told = record(["x"], {}, {}, seed=0, models={"model": "model", "judge": Path("model")})
    entry = {"path": "model", "sha256": hashlib.sha256(b"numbers").hexdigest()}
    assert told["models"] == {"model": entry, "judge": entry}


def test_paths_stay_as_the_user_gave_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = record(["sfumato"], {"out": Path("runs/a.json")}, {}, seed=0)
    assert told["settings"] == {"out": "runs/a.json"}
    assert str(tmp_path) not in json.dumps(told)
    assert str(Path.home()) not in json.dumps(told)


def test_what_is_written_is_read_back(tmp_path):
    told = made(value=torch.tensor([1.0, 2.0]), none=None, odd=math.nan, far=-math.inf, rows=(1, 2))
    write(told, tmp_path / "deep" / "result.json")
    read = json.loads((tmp_path / "deep" / "result.json").read_text(encoding="utf-8"))
    assert read == told
    assert read["results"] == {
        **{"value": [1.0, 2.0], "none": None, "odd": "nan", "far": "-inf", "rows": [1, 2]},
    }


def test_a_value_without_a_json_type_is_given_by_its_repr():
    told = record(["x"], {"dtype": torch.bfloat16, "range": range(3)}, {}, seed=[1, 2])
    assert told["settings"] == {"dtype": "torch.bfloat16", "range": "range(0, 3)"}
    assert told["seed"] == [1, 2]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    place = tmp_path / "result.json"
    write(made(nats=1.0), place)
    before = place.read_text(encoding="utf-8")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DataError, match=r"cannot write to .*result.json: No space left.*make room"):
        write(made(nats=2.0), place)
    assert place.read_text(encoding="utf-8") == before
    assert list(tmp_path.iterdir()) == [place]
