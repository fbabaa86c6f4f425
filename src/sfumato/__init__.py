"""Diffusion language models: train, prove, evaluate and generate.

The names here are loaded when they are first used, so that `import sfumato` costs nothing.
"""

from typing import TYPE_CHECKING, Any

from sfumato.errors import SfumatoError

if TYPE_CHECKING:
    from sfumato.decoding.options import GenerationOptions
    from sfumato.lm.conditional import ConditionalDiffusionLM
    from sfumato.lm.model import DiffusionLM
    from sfumato.lm.pages import Generation, Page

    __version__: str

__all__ = [
    "ConditionalDiffusionLM",
    "DiffusionLM",
    "Generation",
    "GenerationOptions",
    "Page",
    "SfumatoError",
    "__version__",
]

_PLACES = {
    "ConditionalDiffusionLM": "sfumato.lm.conditional",
    "DiffusionLM": "sfumato.lm.model",
    "Generation": "sfumato.lm.pages",
    "GenerationOptions": "sfumato.decoding.options",
    "Page": "sfumato.lm.pages",
}


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("sfumato")
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'sfumato' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
