"""Tensors on disk: safetensors that say what they hold, so that damage can be noticed.

A file's own metadata hold a digest of all names, types, shapes and values. Who writes the weights
anew writes it anew; files of other programs have none.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfumato.errors import CheckpointError
from sfumato.storage.files import Remedy, check_file, foreign

DIGEST = "digest"  # its place in the metadata


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, str]  # as safetensors names them: F32, BF16, ...
    metadata: Mapping[str, str]


def save_tensors(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Write tensors and their digest."""
    from safetensors.torch import save_file

    save_file(dict(tensors), path, {"format": "pt", DIGEST: digest(tensors)})
    _put_in_order(Path(path))


def _put_in_order(path: Path) -> None:
    """The library writes metadata in the order of a hash table, another one in every process; equal
    tensors make equal files."""
    with path.open("r+b") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
        found = re.search(rb'"__metadata__":({[^{}]*})', header)
        assert found is not None, "just written"
        written = json.dumps(json.loads(found[1]), sort_keys=True, separators=(",", ":")).encode()
        assert len(written) == len(found[1]), "no other letters"
        file.seek(8 + found.start(1))
        file.write(written)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and values."""
    made = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        made.update(f"{name} {tensor.dtype} {[*tensor.shape]}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        made.update(flat.view(torch.uint8).numpy().data)
    return made.hexdigest()


def fingerprint(weights: Sequence[Path]) -> str:
    """SHA-256 of weight files, one after the other; of a single file, what `sha256sum` prints."""
    made = hashlib.sha256()
    for path in weights:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                made.update(chunk)
    return made.hexdigest()


def read_header(path: str | Path, remedy: Remedy) -> Header:
    """What a file holds; the tensors themselves are not read."""
    from safetensors import safe_open

    check_file(path, remedy, most=None)
    with foreign(path, remedy), safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        return Header(
            {name: tuple(part.get_shape()) for name, part in slices.items()},
            {name: str(part.get_dtype()) for name, part in slices.items()},
            dict(file.metadata() or {}),
        )


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that hold NaN or infinity, found in one reading."""
    found = []
    for name, tensor in tensors:
        # a sum that is finite has finite terms; one that is not may have overflowed
        if not tensor.is_floating_point() or bool(tensor.detach().sum().isfinite()):
            continue
        if not bool(tensor.isfinite().all()):
            found.append(name)
    return found


def check_finite(tensors: Iterable[tuple[str, Tensor]], where: str | Path) -> None:
    """Raise if weights hold NaN or infinity."""
    if odd := not_finite(tensors):
        more = f" and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise CheckpointError(
            f"the weights in {where} are not numbers: NaN or infinity in {', '.join(odd[:3])}"
            f"{more}; take an older checkpoint, or copy or download the model again"
        )
