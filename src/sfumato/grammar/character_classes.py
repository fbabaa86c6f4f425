"""Classes of characters by the names that regular expressions have for them, in two dialects.

RUST is that of Rust's `regex`, as far as Python's `re` reads it alike: \\d, \\w and \\s are ASCII,
and a dot is anything but a line feed. ECMA is that of JSON schemas (ECMA-262 with its `u` flag): a
dot stops at four line ends, and \\s has the spaces of Unicode.
"""

import sys
import unicodedata
from functools import lru_cache

from sfumato.grammar.charset import CharSet, charset, letters_of

RUST, ECMA = "rust", "ecma"
DIGIT = charset((0x30, 0x39))
WORD = charset((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
SPACE = {
    RUST: letters_of(" \t\n\r\f\v"),
    ECMA: charset(
        *((ord(c), ord(c)) for c in " \t\n\r\f\v\u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"),
        (0x2000, 0x200A),
    ),
}
LINE = {RUST: letters_of("\n"), ECMA: letters_of("\n\r\u2028\u2029")}
CONTROL = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}
POSIX = {
    "alnum": charset((0x30, 0x39), (0x41, 0x5A), (0x61, 0x7A)),
    "alpha": charset((0x41, 0x5A), (0x61, 0x7A)),
    "ascii": charset((0, 0x7F)),
    "blank": letters_of(" \t"),
    "cntrl": charset((0, 0x1F), (0x7F, 0x7F)),
    "digit": DIGIT,
    "graph": charset((0x21, 0x7E)),
    "lower": charset((0x61, 0x7A)),
    "print": charset((0x20, 0x7E)),
    "punct": charset((0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E)),
    "space": SPACE[RUST],
    "upper": charset((0x41, 0x5A)),
    "word": WORD,
    "xdigit": charset((0x30, 0x39), (0x41, 0x46), (0x61, 0x66)),
}
LONG_NAMES = {"Letter": "L", "Number": "N", "Punctuation": "P", "Symbol": "S", "Separator": "Z"} | {
    "Uppercase_Letter": "Lu",
    "Lowercase_Letter": "Ll",
    "Decimal_Number": "Nd",
    "Alphabetic": "L",
}


@lru_cache
def category(name: str) -> CharSet:
    """The characters of a general category of Unicode, such as L or Lu."""
    kinds = [unicodedata.category(chr(code)) for code in range(sys.maxunicode + 1)]
    return charset(*((code, code) for code, kind in enumerate(kinds) if kind.startswith(name)))


def folded(chars: CharSet) -> CharSet:
    """With the other case of each letter."""
    more = []
    for low, high in chars:
        for code in range(low, min(high, 0x1FFFF) + 1):
            for other in (chr(code).lower(), chr(code).upper()):
                if len(other) == 1:
                    more.append((ord(other), ord(other)))
    return charset(*chars, *more)
