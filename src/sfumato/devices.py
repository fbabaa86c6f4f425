"""Where tensors live, by name."""

import torch

from sfumato.errors import ConfigError


def find_device(name: str | torch.device, index: int = 0) -> torch.device:
    """What `name` says, or for "auto" this machine's accelerator, number `index` of its kind.

    Random numbers need float64, which Apple's GPUs do not have.
    """
    if name == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        name = "cpu" if found is None or _lack(found) else found.type
    lack = _lack(name)
    if lack is not None:
        raise ConfigError(f"cannot use device '{name}': {lack}; try 'cpu'")
    device = torch.device(name)
    alone = device.type == "cpu" or device.index is not None
    return device if alone else torch.device(device.type, index)


def _lack(name: str | torch.device) -> str | None:
    """Why a device cannot be used."""
    try:
        torch.empty(0, device=torch.device(name), dtype=torch.float64)
    except (RuntimeError, AssertionError, TypeError) as error:
        return str(error).splitlines()[0]
    return None
