"""Every error a user can cause. A message says what was expected, what came, and what to do."""

import difflib
import re
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


# Sentences of other libraries that tell their own users what to do, not ours.
_ADVICE = re.compile(
    r"(if you|make sure|please|you (need|can|may|should|must)|otherwise|consider|see |check |try |"
    r"set |use |install|pip |for (more|details|debugging)|to (fix|resolve|avoid|enable|disable)|"
    r"note |compile with|or, if)",
    re.IGNORECASE,
)
_LONGEST = 300  # characters of another library's message


def told(error: BaseException) -> str:
    """What another library's error says, in one line of whole sentences, without its advice."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # a line that ends without a mark, before a capital letter, is a sentence
    lines = re.sub(r"(?<=[^\s.!?:;,])[ \t]*\n\s*(?=[A-Z])", ". ", str(error).strip())
    text = " ".join(lines.split())
    sentences = [one for one in re.split(r"(?<=[.!?])\s+(?=[A-Z(`'\"])", text) if one]
    kept = sentences[:1]
    for one in sentences[1:]:
        if _ADVICE.match(one):
            break
        if len(" ".join(kept)) + len(one) < _LONGEST:
            kept.append(one)
    said = " ".join(kept).rstrip(".:; ")
    # of a key or a name alone one would not know what it is about
    return said if " " in said else ": ".join(filter(None, (type(error).__name__, said)))
