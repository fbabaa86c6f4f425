"""Laws over few texts of the letters a and b, whose perfect denoiser is a table."""

import itertools
from dataclasses import dataclass, replace

import torch

A, B, END, PAD, MASK = range(5)
WORDS = [b"a", b"b", None, None, None]


@dataclass(frozen=True)
class Listed:
    """The perfect denoiser of a law over listed strings [S, L]."""

    texts: torch.Tensor
    law: torch.Tensor
    left: torch.Tensor | None = None
    right: torch.Tensor | None = None

    def given(self, left=None, right=None):
        if left is not None and self.left is not None:
            left = torch.cat((self.left, left), 1)
        return replace(self, left=self.left if left is None else left, right=right)

    def __call__(self, tokens, t, where, *, segments=None):
        parts = [part for part in (self.left, tokens, self.right) if part is not None]
        seen = torch.cat(parts, 1)
        start = 0 if self.left is None else self.left.shape[1]
        kinds, which = seen.unique(dim=0, return_inverse=True)
        texts = self.texts[:, : seen.shape[1]]
        fits = ((kinds[:, None] == texts) | (kinds[:, None] == MASK)).all(2)
        weight = fits * self.law
        clean = torch.nn.functional.one_hot(texts, 5).double()
        probs = torch.einsum("ks,slv->klv", weight, clean)
        probs = probs / probs.sum(-1, keepdim=True)
        return probs.log()[which][:, start : start + tokens.shape[1]][where]


def padded_law(length: int, hazard: float, forbidden: float) -> Listed:
    """a with some b among them, which end after every token with one probability."""
    texts, law = [], []
    for count in range(length + 1):
        ends = hazard * (1 - hazard) ** count if count < length else (1 - hazard) ** length
        for letters in itertools.product((A, B), repeat=count):
            tail = ([END] + [PAD] * length)[: length - count]
            texts.append([*letters, *tail])
            some = letters.count(B)
            law.append(ends * forbidden**some * (1 - forbidden) ** (count - some))
    return Listed(torch.tensor(texts), torch.tensor(law, dtype=torch.float64))
