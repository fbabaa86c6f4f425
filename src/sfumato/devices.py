"""Where tensors live and what their numbers are, by name."""

from typing import Literal

import torch

from sfumato.arguments import Kind, shown
from sfumato.errors import ConfigError, told

Precision = Literal["auto", "fp32", "bf16"]
PRECISION = Kind(Precision)
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def find_device(name: str | torch.device, index: int = 0) -> torch.device:
    """What `name` says, or for "auto" this machine's accelerator, number `index` of its kind.

    Random numbers need float64, which Apple's GPUs do not have.
    """
    if not isinstance(name, str | torch.device):
        raise ConfigError(f"device must be a name such as auto, cpu or cuda, got {shown(name)}")
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        name = "cpu" if found is None or _lack(found) else found.type
    lack = _lack(name)
    if lack is not None:
        raise ConfigError(f"cannot use device '{name}': {lack}; try 'cpu'")
    device = torch.device(name)
    alone = device.type == "cpu" or device.index is not None
    return device if alone else torch.device(device.type, index)


def find_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What "fp32" and "bf16" mean, and "auto" on a device: what it multiplies fastest."""
    PRECISION.check("precision", precision)
    known = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return fast_dtype(device) if precision == "auto" else known[precision]


def weights_dtype(dtype: torch.dtype | str) -> torch.dtype | str:
    """What weights are loaded as: a type of torch, its name, or "auto", as they are stored."""
    if isinstance(dtype, str) and dtype == "auto":
        return dtype
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in DTYPES.values():
        raise ConfigError(
            f"dtype must be auto, {', '.join(DTYPES)}, or torch's of one of these names; got "
            f"{shown(dtype)}"
        )
    return found


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it faster than float32, else float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        able = torch.cpu.get_capabilities()
        fast = bool(able.get("amx_bf16") or able.get("avx512_bf16"))
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32


def _lack(name: str | torch.device) -> str | None:
    """Why a device cannot be used."""
    try:
        torch.empty(0, device=torch.device(name), dtype=torch.float64)
    except (RuntimeError, AssertionError, TypeError) as error:
        return told(error)
    return None
