"""What the scripts in the folders beside this file share: they run the official code of a paper,
from a checkout named on the command line, at toy size, and keep what it was given and returned.

    git clone https://github.com/kuleshov-group/mdlm && git -C mdlm checkout <commit>
    python tests/golden/mdlm/make.py mdlm

Nothing of that code is kept here. `tests/models/test_parity.py` compares ours with
the kept tensors.
"""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save_file
from torch import Tensor

LENGTH, VOCAB = 5, 7
MASK = VOCAB - 1


def checkout(repository: str, commit: str) -> Path:
    """The folder named on the command line, which must hold that commit; imports look there."""
    if len(sys.argv) != 2:
        sys.exit(f"name a checkout of github.com/{repository} at {commit}")
    folder = Path(sys.argv[1]).resolve()
    words = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    head = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    if head != commit:
        sys.exit(f"{folder} is at {head}, and these tensors are of {commit}")
    sys.path.insert(0, str(folder))
    return folder


class _Anything(type):
    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class Anything(metaclass=_Anything):
    """Stands for any class, function or module that the mathematics does not use."""

    def __init__(self, *given, **named):
        pass


class _Pretended(ModuleType):
    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything


def pretend(*names: str) -> None:
    """Let imports of these succeed: loggers, trainers and attention kernels stay uninstalled."""
    for name in names:
        sys.modules[name] = _Pretended(name)


def table(seed: int = 0) -> Tensor:
    """A network: the logits at each position are a sum over the tokens seen, [L, V, L, V]."""
    draw = torch.Generator().manual_seed(seed)
    weights = torch.randn(LENGTH, VOCAB, LENGTH, VOCAB, generator=draw)
    weights[..., MASK] = -1e4  # the mask token is never predicted
    return weights


def logits(table: Tensor, tokens: Tensor) -> Tensor:
    """[B, L, V]."""
    return table[torch.arange(tokens.shape[1]), tokens].sum(1)


def some_tokens(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clean tokens [B, L], and the same with some masked."""
    draw = torch.Generator().manual_seed(seed)
    clean = torch.randint(MASK, (rows, LENGTH), generator=draw)
    noisy = torch.rand(rows, LENGTH, generator=draw) < torch.linspace(0.2, 1, rows)[:, None]
    return clean, clean.masked_fill(noisy, MASK)


def keep(script: str, commit: str, tensors: dict[str, Tensor]) -> None:
    """Write tensors.safetensors beside the script, and say how large it is."""
    file = Path(script).parent / "tensors.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, file, metadata={"commit": commit})
    print(f"{file}: {len(tensors)} tensors, {file.stat().st_size} bytes")
