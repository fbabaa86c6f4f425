"""What is installed, which device will be used, what is missing and the line that mends it."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from typing import NamedTuple

from sfumato.lm.folders import SHIPPED, STORIES, STORIES_INFILL

PYTHON = (3, 11)
CORE = (
    *("torch", "transformers", "tokenizers", "datasets", "accelerate", "safetensors"),
    *("huggingface_hub", "numpy", "typer", "pydantic", "pyyaml", "rich", "xxhash"),
)
EXTRAS = {
    "sacrebleu": ("eval", "BLEU and Self-BLEU in sfumato evaluate"),
    "matplotlib": ("plots", "the loss curve and calibrations as pictures"),
    "tensorboard": ("track", "logging to TensorBoard"),
    "wandb": ("wandb", "logging to Weights & Biases"),
    "gguf": ("gguf", "reading a judge model from a .gguf file"),
}


class Finding(NamedTuple):
    name: str
    state: str  # "ok", "missing", "note"
    detail: str


def examine() -> Iterator[Finding]:
    """Look at this installation, part by part; changes nothing."""
    yield _python()
    yield from map(_core, CORE)
    if importlib.util.find_spec("torch") is not None:
        yield _device()
    yield _processor()
    yield _compiler()
    yield from map(_extra, EXTRAS)
    yield from map(_model, (STORIES, STORIES_INFILL))


def _python() -> Finding:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if sys.version_info < PYTHON:
        return Finding("Python", "missing", f"{detail}; install {'.'.join(map(str, PYTHON))}")
    return Finding("Python", "ok", detail)


def _core(package: str) -> Finding:
    try:
        return Finding(package, "ok", importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return Finding(package, "missing", f"pip install {package}")


def _extra(package: str) -> Finding:
    extra, purpose = EXTRAS[package]
    try:
        return Finding(package, "ok", f"{importlib.metadata.version(package)} ({purpose})")
    except importlib.metadata.PackageNotFoundError:
        return Finding(package, "note", f'for {purpose}: pip install "sfumato[{extra}]"')


def _device() -> Finding:
    import torch

    from sfumato.devices import find_device

    device = find_device("auto")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        return Finding("device", "ok", ", ".join(map(torch.cuda.get_device_name, range(count))))
    if device.type == "cpu" and torch.version.cuda is not None:
        built = f"PyTorch was built for CUDA {torch.version.cuda}, but sees no GPU or driver"
        return Finding("device", "note", f"cpu; {built}")
    return Finding("device", "ok", device.type)


def _processor() -> Finding:
    able = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Finding("processor", "ok", f"{able} cores")


def _compiler() -> Finding:
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        return Finding("C++ compiler", "ok", "torch_compile=true is available")
    mend = "apt install g++" if sys.platform == "linux" else "xcode-select --install"
    return Finding("C++ compiler", "note", f"for torch_compile=true on a CPU: {mend}")


def _model(name: str) -> Finding:
    weights = SHIPPED / name / "model.safetensors"
    if not weights.is_file():
        return Finding(name, "missing", "a model that comes with sfumato; reinstall sfumato")
    size = weights.stat().st_size / 1e6
    return Finding(name, "ok", f"the model in {weights.parent}, {size:.1f} MB")
