import pytest
import torch

from sfumato.errors import CheckpointError
from sfumato.storage.files import Remedy, read_tensors
from sfumato.storage.tensors import (
    DIGEST,
    check_finite,
    digest,
    not_finite,
    read_header,
    save_tensors,
)

REMEDY = Remedy(CheckpointError, "copy it again")
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def test_a_file_says_what_it_holds(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(TENSORS, path)
    header = read_header(path, REMEDY)
    assert header.shapes == {"a": (2, 3), "b": (4,)}
    assert header.types == {"a": "F32", "b": "BF16"}
    assert header.metadata["format"] == "pt"
    assert header.metadata[DIGEST] == digest(TENSORS) == digest(read_tensors(path, REMEDY))


@pytest.mark.parametrize(
    "other",
    [
        {"a": TENSORS["a"], "c": TENSORS["b"]},
        {"a": TENSORS["a"]},
        {**TENSORS, "a": TENSORS["a"].view(3, 2)},
        {**TENSORS, "b": torch.ones(4, dtype=torch.float16)},
        {**TENSORS, "a": TENSORS["a"] + torch.eye(3)[:2] * 1e-6},
    ],
)
def test_another_content_has_another_digest(other):
    assert digest(other) != digest(TENSORS)


def test_the_order_and_the_layout_do_not_matter():
    turned = {"b": TENSORS["b"], "a": TENSORS["a"].T.contiguous().T}
    assert digest(turned) == digest(TENSORS)
    assert len(digest({"scalar": torch.tensor(1.0), "none": torch.zeros(0)})) == 32


def test_what_is_not_finite_is_found():
    largest = torch.full((9,), 60000.0, dtype=torch.float16)  # whose sum overflows
    odd = {"nan": torch.tensor([1.0, torch.nan]), "inf": torch.tensor([torch.inf, -torch.inf])}
    fine = {"large": largest, "whole": torch.arange(3), **TENSORS}
    assert not_finite((odd | fine).items()) == ["nan", "inf"]
    check_finite(fine.items(), "there")
    with pytest.raises(CheckpointError, match=r"weights in there are not numbers: .* in nan, inf;"):
        check_finite(odd.items(), "there")


def test_equal_tensors_make_equal_files_in_every_process(tmp_path):
    save_tensors({"a": torch.zeros(2)}, tmp_path / "one")
    header = (tmp_path / "one").read_bytes()
    place = header.index(b'"__metadata__":{"digest":')
    assert header.index(b'"format":"pt"') > place  # in their order
    assert read_tensors(tmp_path / "one", REMEDY)["a"].tolist() == [0, 0]
