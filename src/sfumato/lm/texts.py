"""What a user gives as text: one or several, and which source belongs to which."""

from collections.abc import Iterable, Mapping, Sequence, Set, Sized

from sfumato.arguments import COUNT, MOST, shown
from sfumato.errors import ConfigError, DataError

Texts = str | Sequence[str]


def listed(name: str, given: Texts) -> list[str]:
    """Texts that a user gives, one or several; raises for what is neither."""
    if isinstance(given, str):
        return [given]
    several = isinstance(given, Sized) and isinstance(given, Iterable)
    if not several or isinstance(given, Mapping | Set | bytes | bytearray | memoryview):
        raise DataError(f"a {name} must be text, or a list of texts; got {shown(given)}")
    try:
        texts = list(given)
    except TypeError:  # an array without dimensions
        raise DataError(f"a {name} must be text, or a list of texts; got {shown(given)}") from None
    for number, one in enumerate(texts, 1):
        if not isinstance(one, str):
            raise DataError(f"{name} {number} must be text, got {shown(one)}")
    return texts


def repeated(texts: Texts, source: Texts | None, num_samples: int) -> tuple[list[str], list[str]]:
    """Every text as often as it is wanted, and the source of each; none: no sources at all.

    One text goes with many sources, and one source with many texts.
    """
    wanted, num_samples = listed("text", texts), COUNT.check("num_samples", num_samples)
    if not wanted:
        raise ConfigError("no text: give one, or '' to write from nothing")
    sources = [] if source is None else listed("source", source)
    if source is not None and not sources:
        raise ConfigError("no source: give one, or leave it out to write without")
    if any(not one.strip() for one in sources):
        raise DataError("a source is empty; give each at least one character, or leave it out")
    if sources and len(sources) != len(wanted):
        if 1 not in (len(sources), len(wanted)):
            raise ConfigError(
                f"{len(wanted)} texts and {len(sources)} sources; give as many of both, or one"
            )
        count = max(len(wanted), len(sources))
        wanted, sources = (each * (count // len(each)) for each in (wanted, sources))
    if len(wanted) * num_samples > MOST:
        raise ConfigError(
            f"{len(wanted)} texts, {num_samples} times each, are more than {MOST}; ask for fewer"
        )

    def spread(each: list[str]) -> list[str]:
        return [one for one in each for _ in range(num_samples)]

    return spread(wanted), spread(sources)
