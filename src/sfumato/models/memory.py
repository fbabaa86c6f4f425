"""Whether this machine can hold a network, asked before one is built."""

import os

from sfumato.errors import ConfigError


def check_memory(weights: int, shape: str = "") -> None:
    """Raise for more weights than this machine's memory holds in float32; `shape`: whose."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if 4 * weights > memory:
        raise ConfigError(
            f"a network{shape} has {weights:.3g} weights: in float32 "
            f"{weights / 2**28:,.0f} GiB, and this machine has {memory / 2**30:,.0f}; make it less"
        )
