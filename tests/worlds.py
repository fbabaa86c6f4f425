"""Tiny languages whose every answer is known: a random law over all strings of a few tokens.

`World.denoiser(corruption)` is the perfect denoiser, Bayes' rule over the listed strings: for any
corruption, and for any part of a string, given any text beside it. With `error` it is another
model: wrong, consistent with no law, and still a function of what it sees.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.corruption import Corruption
from sfumato.types import Batch, Integrand

VOCAB = 3  # tokens 0, 1, 2
MASK = 3  # the mask token: a vocabulary of 4 with it


@dataclass(frozen=True)
class World:
    texts: Tensor  # [S, L], every string
    law: Tensor  # [S] float64, its probability

    @classmethod
    def random(cls, length: int = 3, seed: int = 0) -> "World":
        """All 3 ** length strings, with probabilities of very different size."""
        texts = torch.cartesian_prod(*[torch.arange(VOCAB)] * length)
        draw = torch.Generator().manual_seed(seed)
        scores = 1.5 * torch.randn(len(texts), generator=draw, dtype=torch.float64)
        return cls(texts, scores.softmax(0))

    @property
    def entropy(self) -> float:
        """Nats per string."""
        return float(-(self.law * self.law.log()).sum())

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """[count, L] strings drawn from the law."""
        draw = torch.Generator().manual_seed(seed)
        return self.texts[torch.multinomial(self.law, count, replacement=True, generator=draw)]

    def denoiser(self, corruption: Corruption, error: float = 0.0, seed: int = 0) -> "Tabular":
        length = self.texts.shape[1]
        draw = torch.Generator().manual_seed(seed)
        shape = ((VOCAB + 1) ** length, length, VOCAB + 1)
        table = error * torch.randn(shape, generator=draw, dtype=torch.float64)
        return Tabular(self, corruption, table)


@dataclass(frozen=True)
class Tabular:
    """A trainable denoiser without a network; logits are log-probabilities in float64."""

    world: World
    corruption: Corruption
    table: Tensor  # [4 ** L, L, 4], added to the logits of each pattern
    left: Tensor | None = None
    right: Tensor | None = None

    def given(self, left: Tensor | None = None, right: Tensor | None = None) -> "Tabular":
        if left is not None and self.left is not None:
            left = torch.cat((self.left, left), 1)
        if right is not None and self.right is not None:
            right = torch.cat((right, self.right), 1)
        return replace(
            self,
            left=self.left if left is None else left,
            right=self.right if right is None else right,
        )

    def __call__(
        self,
        tokens: Tensor,
        t: Tensor,
        where: Tensor | None = None,
        *,
        segments: Tensor | None = None,
    ) -> Tensor:
        """log p(clean token | tokens and the text beside them), mask token included."""
        parts = [part for part in (self.left, tokens, self.right) if part is not None]
        seen = torch.cat(parts, 1)  # [B, M]; what comes after M is open
        start = 0 if self.left is None else self.left.shape[1]
        weight = self.world.law * self._likelihood(seen, t, start).prod(-1)
        clean = torch.nn.functional.one_hot(self.world.texts[:, : seen.shape[1]], VOCAB + 1)
        probs = torch.einsum("bs,smv->bmv", weight, clean.double())
        places = (VOCAB + 1) ** torch.arange(seen.shape[1])
        wrong = self.table[(seen * places).sum(1), : seen.shape[1]]
        logits = (probs / probs.sum(-1, keepdim=True)).log() + wrong
        logits = logits[:, start : start + tokens.shape[1]]
        return logits if where is None else logits[where]

    def _likelihood(self, seen: Tensor, t: Tensor, start: int) -> Tensor:
        """q(seen | clean) of every string, token by token, up to a factor: [B, S, M].

        Before `start` stands given text, which is clean; so are visible tokens of masked noise.
        """
        batch, length = seen.shape
        same = (seen[:, None] == self.world.texts[None, :, :length]).double()
        masked = (seen == MASK)[:, None].expand(same.shape)
        if self.corruption.absorbing:
            return torch.where(masked, 1.0, same)
        k = self.corruption.kernel(t.double()[:, None, None].expand(batch, 1, length))
        noisy = k.alpha * same + torch.where(masked, k.mask, k.spread / VOCAB)
        return torch.where(torch.arange(length) < start, same, noisy)

    def score(
        self,
        tokens: Tensor,
        t: Tensor,
        where: Tensor,
        targets: Tensor,
        weights: Tensor,
        *,
        segments: Tensor | None = None,
        integrand: Integrand | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits = self(tokens, t, where)
        if integrand is None:
            nll = -logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
            correct = logits.argmax(-1) == targets
        else:
            nll, correct = integrand(logits, slice(0, len(targets)))
        return (weights * nll).sum(), nll, correct


def batch_of(tokens: Tensor, trainable: Tensor | None = None) -> Batch:
    """Rows of one document each, in slots 0, 1, 2, ..."""
    return Batch(
        tokens=tokens,
        trainable=torch.ones_like(tokens, dtype=torch.bool) if trainable is None else trainable,
        segments=torch.zeros_like(tokens),
        slots=torch.arange(len(tokens)),
    )
