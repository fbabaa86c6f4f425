"""Sets of characters, as sorted ranges."""

LAST = 0x10FFFF


SURROGATES = (0xD800, 0xDFFF)  # no characters


CharSet = tuple[
    tuple[int, int], ...
]  # disjoint ranges of code points in their order, ends included


def charset(*ranges: tuple[int, int]) -> CharSet:
    """The union of some ranges, without surrogates."""
    cut: list[tuple[int, int]] = []
    for low, high in ranges:
        cut += [(low, min(high, SURROGATES[0] - 1)), (max(low, SURROGATES[1] + 1), high)]
    joined: list[tuple[int, int]] = []
    for low, high in sorted(one for one in cut if one[0] <= one[1]):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return tuple(joined)


def letters_of(text: str) -> CharSet:
    """Each of these characters."""
    return charset(*((ord(one), ord(one)) for one in text))


def inverse(chars: CharSet) -> CharSet:
    """All other characters."""
    ends = [-1, *(end for low, high in chars for end in (low - 1, high)), LAST]
    pairs = zip(ends[::2], ends[1::2], strict=True)
    return charset(*((low + 1, high) for low, high in pairs if low + 1 <= high))


ANY: CharSet = charset((0, LAST))
