"""What is installed, which device will be used, what is missing and the line that mends it."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from typing import NamedTuple

CORE = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "safetensors")
EXTRAS = {
    "sacrebleu": ("eval", "BLEU and Self-BLEU in sfumato evaluate"),
    "matplotlib": ("plots", "the loss curve as a picture"),
    "tensorboard": ("track", "logging to TensorBoard"),
    "wandb": ("wandb", "logging to Weights & Biases"),
    "gguf": ("gguf", "reading a judge model from a .gguf file"),
}


class Finding(NamedTuple):
    name: str
    state: str  # "ok", "missing", "note"
    detail: str


def examine() -> list[Finding]:
    """Look at this installation; changes nothing."""
    return [_python(), *map(_core, CORE), *_device(), *_machine(), *map(_extra, EXTRAS), _model()]


def _python() -> Finding:
    good = sys.version_info >= (3, 11)
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return Finding(
        "Python", "ok" if good else "missing", detail if good else f"{detail}; need 3.11"
    )


def _core(package: str) -> Finding:
    try:
        return Finding(package, "ok", importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return Finding(package, "missing", f"pip install {package}")


def _extra(package: str) -> Finding:
    extra, purpose = EXTRAS[package]
    if importlib.util.find_spec(package) is not None:
        return Finding(package, "ok", f"{importlib.metadata.version(package)} ({purpose})")
    return Finding(package, "note", f'for {purpose}: pip install "sfumato[{extra}]"')


def _device() -> list[Finding]:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return [Finding("device", "ok", f"cuda: {names}")]
    if torch.backends.mps.is_available():
        return [Finding("device", "ok", "mps: Apple GPU")]
    if torch.version.cuda is not None:
        note = f"cpu; PyTorch was built for CUDA {torch.version.cuda}, but sees no GPU or driver"
        return [Finding("device", "note", note)]
    return [Finding("device", "ok", "cpu")]


def _machine() -> list[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    fast = torch.backends.cpu.get_cpu_capability()
    found = [
        Finding("processor", "ok", f"{cores} cores, {torch.get_num_threads()} threads, {fast}")
    ]
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler:
        found.append(Finding("C++ compiler", "ok", "compiled training is available"))
    else:
        found.append(Finding("C++ compiler", "note", "none: training runs without torch.compile"))
    return found


def _model() -> Finding:
    from sfumato.pipeline import SHIPPED

    if (SHIPPED / "model.safetensors").exists():
        size = (SHIPPED / "model.safetensors").stat().st_size / 1e6
        return Finding("shipped model", "ok", f"stories, {size:.1f} MB")
    return Finding("shipped model", "missing", "reinstall sfumato: its weights are not there")
