"""Tiny languages whose every answer is known: a random law over all strings of a few tokens.

`World.denoiser(corruption)` is the perfect denoiser, Bayes' rule over the listed strings: for any
corruption, and for any part of a string, given any text beside it. With `error` it is another
model: wrong, consistent with no law, and still a function of what it sees.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sfumato.noise.corruption import Corruption
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
        texts = torch.cartesian_prod(*[torch.arange(VOCAB)] * length).view(-1, length)
        draw = torch.Generator().manual_seed(seed)
        scores = 1.5 * torch.randn(len(texts), generator=draw, dtype=torch.float64)
        return cls(texts, scores.softmax(0))

    def uniform(self) -> "World":
        """The same strings, equally likely."""
        return World(self.texts, torch.full_like(self.law, 1 / len(self.law)))

    def certain(self, text: Tensor) -> "World":
        """The same strings, one of them [L] all but certain."""
        law = torch.where((self.texts == text).all(1), 1.0, 1e-15)
        return World(self.texts, law.double() / law.double().sum())

    @property
    def length(self) -> int:
        return self.texts.shape[1]

    @property
    def entropy(self) -> float:
        """Nats per string."""
        return float(-(self.law * self.law.log()).sum())

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """[count, L] strings drawn from the law."""
        draw = torch.Generator().manual_seed(seed)
        return self.texts[torch.multinomial(self.law, count, replacement=True, generator=draw)]

    def frequencies(self, tokens: Tensor) -> Tensor:
        """How often each string of the world is among the rows of `tokens`: shares, [S]."""
        assert bool((tokens < VOCAB).all()), "a mask token in a finished text"
        powers = VOCAB ** torch.arange(self.length - 1, -1, -1)
        counts = torch.bincount((tokens * powers).sum(1), minlength=len(self.law))
        return counts / len(tokens)

    def distance(self, tokens: Tensor) -> float:
        """Total variation between the law and the frequencies of the rows of `tokens`."""
        return float((self.frequencies(tokens) - self.law).abs().sum() / 2)

    def noise_floor(self, count: int) -> float:
        """The distance that `count` draws from the law itself show on average."""
        deviation = (self.law * (1 - self.law) / count).sqrt()
        return float(deviation.sum() * math.sqrt(2 / math.pi) / 2)

    def denoiser(self, corruption: Corruption, error: float = 0.0, seed: int = 0) -> "Tabular":
        length = self.texts.shape[1]
        draw = torch.Generator().manual_seed(seed)
        shape = ((VOCAB + 1) ** length, length, VOCAB + 1)
        table = error * torch.randn(shape, generator=draw, dtype=torch.float64)
        return Tabular(self, corruption, table)


@dataclass(frozen=True)
class Tabular:
    """A trainable denoiser without a network; logits are log-probabilities in float64.

    Given text is clean; a mask token in it stands for what is not known, whatever the corruption.
    """

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
        stop = start + tokens.shape[1]
        # rows that see the same at the same time get the same answer, worked out once
        _, when = t.unique(return_inverse=True)
        code = (seen * (VOCAB + 1) ** torch.arange(seen.shape[1])).sum(1)
        _, alike = (when * (VOCAB + 1) ** self.world.length + code).unique(return_inverse=True)
        some = torch.zeros(int(alike.max()) + 1, dtype=torch.int64)
        some[alike] = torch.arange(len(seen))
        weight = self.world.law * self._likelihood(seen[some], t[some], start, stop).prod(-1)
        clean = one_hot(self.world.texts[:, : seen.shape[1]], VOCAB + 1).double()
        probs = torch.einsum("bs,smv->bmv", weight, clean)
        wrong = self.table[code[some], : seen.shape[1]]
        logits = (probs / probs.sum(-1, keepdim=True)).log() + wrong
        logits = logits[alike, start:stop]
        return logits if where is None else logits[where]

    def leave_one_out(self, tokens: Tensor, t: Tensor, where: Tensor) -> Tensor:
        """Logits [N, V] at `where`, each with its own position masked: one call a position."""
        columns = []
        for place in range(tokens.shape[1]):
            hidden = tokens.clone()
            hidden[:, place] = MASK
            columns.append(self(hidden, t)[:, place])
        return torch.stack(columns, 1)[where]

    def _likelihood(self, seen: Tensor, t: Tensor, start: int, stop: int) -> Tensor:
        """q(seen | clean) of every string, token by token, up to a factor: [B, S, M].

        Text outside start:stop is given, so clean; so are visible tokens of masked noise.
        """
        batch, length = seen.shape
        same = (seen[:, None] == self.world.texts[None, :, :length]).double()
        masked = (seen == MASK)[:, None].expand(same.shape)
        clean = torch.where(masked, 1.0, same)
        if self.corruption.absorbing:
            return clean
        k = self.corruption.kernel(t.double()[:, None, None].expand(batch, 1, length))
        noisy = k.alpha * same + torch.where(masked, k.mask, k.spread / VOCAB)
        place = torch.arange(length)
        return torch.where((place < start) | (place >= stop), clean, noisy)

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
        nll = nll.float()  # as networks do
        return (weights * nll).sum(), nll, correct


def batch_of(tokens: Tensor, trainable: Tensor | None = None) -> Batch:
    """Rows of one document each, in slots 0, 1, 2, ..."""
    return Batch(
        tokens=tokens,
        trainable=torch.ones_like(tokens, dtype=torch.bool) if trainable is None else trainable,
        segments=torch.zeros_like(tokens),
        slots=torch.arange(len(tokens)),
    )


def forward_law(corruption: Corruption, t: float) -> Tensor:
    """q(x_t | x_0) as a matrix [x_0, x_t], from the corruption's kernel."""
    k = corruption.kernel(torch.tensor(t, dtype=torch.float64))
    noise = (k.spread / (corruption.vocab_size - 1)).repeat(corruption.vocab_size)
    noise[corruption.mask_id] = k.mask
    return k.alpha * torch.eye(corruption.vocab_size, dtype=torch.float64) + noise


def exact_bound(world: World, corruption: Corruption, denoiser: Callable | None = None) -> float:
    """The bound on the mean -log p of the strings, nats: every string, every noising, all times."""
    denoiser = denoiser or world.denoiser(corruption)
    length = world.length
    canvases = torch.cartesian_prod(*[torch.arange(VOCAB + 1)] * length).view(-1, length)

    def integrand(t: float) -> float:
        law = forward_law(corruption, t)
        xt = canvases[(law[:VOCAB].sum(0) > 0)[canvases].all(1)]  # those that can occur
        shape = (len(world.texts), *xt.shape)
        x0, xt = world.texts[:, None].expand(shape), xt[None].expand(shape)
        time = torch.full(shape[:2], t, dtype=torch.float64)
        logp = denoiser(xt[0], time[0]).expand(*shape, -1)
        each = corruption.bound(logp, x0, xt, time[..., None].expand(shape)).sum(-1)
        chance = world.law[:, None] * law[x0, xt].prod(-1)
        return float((chance * each)[chance > 0].sum())

    return quadrature(integrand)


def quadrature(f: Callable[[float], float], nodes: int = 40) -> float:
    """Integral of f over (0, 1) by the tanh-sinh rule, for which singular ends are harmless."""
    total, h = 0.0, 3.2 / nodes
    for k in range(-nodes, nodes + 1):
        away = math.exp(-math.pi * math.sinh(k * h))
        t = 1 / (1 + away)
        if 0 < t < 1:
            total += h * math.pi * math.cosh(k * h) * away * t * t * f(t)
    return total
