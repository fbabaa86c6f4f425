"""Every error a user can cause. A message says what was expected, what came, and what to do."""

import difflib
from collections.abc import Iterable


class SfumatoError(Exception):
    """Base of all errors that a user can mend; the command line prints it in one line."""


class ConfigError(SfumatoError, ValueError):
    """An option, or a combination of options, that cannot work."""


class DataError(SfumatoError, ValueError):
    """Text, files or prepared data that cannot be used."""


class TokenizerError(SfumatoError, ValueError):
    """A tokenizer that lacks what a diffusion model needs, or does not fit the data."""


class CheckpointError(SfumatoError, RuntimeError):
    """A model folder or checkpoint that is missing, damaged, or of another run."""


class TrainingError(SfumatoError, RuntimeError):
    """Training that cannot go on: a loss that is not finite, a folder in use."""


class MissingExtra(SfumatoError, ImportError):
    """An optional package that is not installed."""

    def __init__(self, package: str, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed; "
            f'run: pip install "sfumato[{extra}]"'
        )


def near(name: str, known: Iterable[str]) -> str:
    """'; did you mean a, b?' for a misspelt name, or the whole list if nothing is close."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.55)
    if close:
        return "; did you mean " + ", ".join(close) + "?"
    return "; known: " + ", ".join(known)
