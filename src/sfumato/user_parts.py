"""Parts of a user's own, by the name package.module:Name: imported and made here alone."""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sfumato.errors import ConfigError, SfumatoError


def is_own(name: object) -> bool:
    """Whether a name is one of the form package.module:Name."""
    return isinstance(name, str) and ":" in name


def own_part(name: str, key: str) -> Any:
    """What package.module:Name names, given as `key`; modules of the working folder come last."""
    place, _, attribute = name.partition(":")
    here, path = str(Path.cwd()), list(sys.path)
    try:
        sys.path.append(here)
        return getattr(importlib.import_module(place), attribute)
    except Exception as error:  # of a stranger's code
        raise ConfigError(
            f"{key} '{name}' cannot be imported: {type(error).__name__}: {error}; give it as "
            "package.module:Name, of a module that is installed or in the working folder"
        ) from error
    finally:
        sys.path[:] = path


def make_part(
    make: Callable[..., Any], what: str, of: str, given: tuple[Any, ...], options: Mapping[str, Any]
) -> Any:
    """make(*given, **options); `what` is made and `of` what, for the message if it cannot be."""
    try:
        return make(*given, **options)
    except SfumatoError:
        raise
    except Exception as error:  # of a stranger's code
        raise ConfigError(
            f"{what} cannot be made of {of} and the options {dict(options)}: "
            f"{type(error).__name__}: {error}"
        ) from error
