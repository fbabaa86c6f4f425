"""Laws of independent positions over five tokens, and grammars over these."""

import itertools
import re
from dataclasses import dataclass, replace

import numpy as np
import torch

from sfumato.decoding.constrained import Span
from sfumato.decoding.page import blank
from sfumato.grammar.grammar import Grammar
from sfumato.noise.corruption import Masked
from sfumato.rng import Rng
from sfumato.types import Canvas

# five tokens, an end and a mask; the letter e-acute comes in halves
WORDS = [b"a", b"b", b"ab", b"\xc3", b"\xa9", None, None]
END, MASK = 5, 6


def over(pattern: str, ends: bool):
    marks = {"end": END, "after": {END}} if ends else {}
    return Grammar.regex(pattern).over(WORDS, never={MASK}, **marks)


@dataclass(frozen=True)
class Fixed:
    """A denoiser of independent positions: the same laws whatever it sees."""

    logits: torch.Tensor  # [L, V]
    start: int = 0

    def __call__(self, tokens, t, where, *, segments=None):
        table = self.logits[self.start : self.start + tokens.shape[1]]
        return table.expand(len(tokens), -1, -1)[where]

    def given(self, left=None, right=None):
        return self if left is None else replace(self, start=self.start + left.shape[1])

    leave_one_out = __call__


def laws(length: int, seed: int = 0, scale: float = 1.5) -> torch.Tensor:
    logits = scale * torch.randn(length, 7, generator=torch.Generator().manual_seed(seed))
    logits[:, MASK] = -torch.inf
    return logits


def empty(rows: int, length: int) -> Canvas:
    nothing = torch.zeros(rows, length, dtype=torch.bool)
    return blank(Masked(7, MASK), nothing.long(), nothing, Rng.from_seed(0, rows))


def whole(rows: int, length: int) -> list[Span]:
    return [Span(row, 0, length) for row in range(rows)]


PATTERNS = ("(ab)*a?", "(a|b)+é?b", "[^é]é|a{3,}", "a|ab|ba|é", "a*")


def accepts(pattern: str, tokens, ends: bool) -> bool:
    """By definition: spell the tokens before the first end, and let `re` say."""
    tokens = list(tokens)
    if END in tokens and not ends:
        return False
    cut = tokens.index(END) if END in tokens else len(tokens)
    text = b"".join(WORDS[i] for i in tokens[:cut])
    try:
        matches = re.fullmatch(pattern, text.decode()) is not None
    except UnicodeDecodeError:
        return False
    return matches and set(tokens[cut:]) <= {END}


def valid(pattern: str, length: int, ends: bool) -> np.ndarray:
    """All sequences that are texts, [number, length]."""
    every = itertools.product(range(6), repeat=length)
    return np.array([one for one in every if accepts(pattern, one, ends)]).reshape(-1, length)
