"""Laws of independent positions over five tokens, and grammars over these."""

from dataclasses import dataclass, replace

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
