"""Slow, dense, obviously right: what fast code is compared with. Written apart from it, in numpy
float64 and loops, from the papers' equations."""

from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Dense:
    """q(x_t | x_0) = alpha [x_t = x_0] + noise[x_t], for numbers alpha(t) and vectors noise(t).

    `alpha` and `noise` are functions of one time; derivatives are taken numerically.
    """

    def __init__(self, alpha, noise):
        self.alpha, self.noise = alpha, noise

    def posterior(self, p0: Array, xt: int, t: float, s: float) -> Array:
        """p(x_s | x_t) from p(x_0 | x_t): sum over x_0 of Bayes' rule (arXiv 2107.03006, eq. 3)."""
        size = len(p0)
        law = np.zeros(size)
        step = self.alpha(t) / self.alpha(s)
        for x0 in range(size):
            if p0[x0] == 0:
                continue
            for xs in range(size):
                into = step * (xs == xt) + self.noise(t)[xt] - step * self.noise(s)[xt]
                out = self.alpha(s) * (xs == x0) + self.noise(s)[xs]
                law[xs] += p0[x0] * into * out / self.forward(x0, xt, t)
        return law

    def forward(self, x0: int, xt: int, t: float) -> float:
        return self.alpha(t) * (xt == x0) + self.noise(t)[xt]

    def bound(self, p0: Array, x0: int, xt: int, t: float) -> float:
        """Rate into x_t times sum over y of  model - true + true log(true / model)."""
        h = 1e-6
        dalpha = (self.alpha(t + h) - self.alpha(t - h)) / (2 * h)
        dnoise = (self.noise(t + h) - self.noise(t - h)) / (2 * h)
        rate = dnoise[xt] - dalpha / self.alpha(t) * self.noise(t)[xt]
        total = 0.0
        for y in range(len(p0)):
            if y == xt:
                continue
            true = self.forward(x0, y, t) / self.forward(x0, xt, t)
            model = sum(
                p0[x] * self.forward(x, y, t) / self.forward(x, xt, t)
                for x in range(len(p0))
                if p0[x] > 0
            )
            total += model - true
            if true > 0:
                total += true * np.log(true / model)
        return rate * total


def attention(q: Array, k: Array, v: Array, seen: NDArray[np.bool_]) -> Array:
    """softmax(q k / sqrt(E)) v over the keys that are seen; q, k, v [L, E], seen [L, L]."""
    out = np.zeros_like(v)
    for i in range(len(q)):
        scores = np.array([q[i] @ k[j] / np.sqrt(len(q[i])) for j in range(len(k))])
        weights = np.where(seen[i], np.exp(scores - scores[seen[i]].max()), 0.0)
        out[i] = weights @ v / weights.sum()
    return out


def exact_k_loss(logits: Array, tokens, noisy, trainable) -> float:
    """Nats per trainable token, row by row, token by token: n / k at each of k masked tokens."""
    total = 0.0
    for row in range(len(tokens)):
        n, k = int(trainable[row].sum()), int(noisy[row].sum())
        for place in range(len(tokens[row])):
            if noisy[row, place]:
                scores = logits[row, place]
                top = scores.max()
                logp = scores[tokens[row, place]] - top - np.log(np.exp(scores - top).sum())
                total -= n / k * logp
    return total / int(trainable.sum())


def even_split(count: int, steps: int) -> list[int]:
    """LLaDA's get_num_transfer_tokens: how many of `count` positions each step decides."""
    return [count // steps + (number < count % steps) for number in range(steps)]


def top_k(logits: Array, k: int) -> list[int]:
    """Ids of the k most likely tokens; of equals, lower ids first."""
    return sorted(sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k])


def top_p(logits: Array, p: float) -> list[int]:
    """Ids of the fewest most likely tokens that hold p; of equals, lower ids first."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))
    weights = np.exp(logits - logits.max())
    held, kept = 0.0, []
    for i in order:
        if held >= p * weights.sum():
            break
        kept.append(i)
        held += weights[i]
    return sorted(kept)


def chances(logits: list[float]) -> list[Decimal]:
    """Probabilities to 200 digits, so that nothing is near enough to 1 to be lost."""
    with localcontext(prec=200):
        weights = [Decimal(x).exp() for x in logits]
        return [weight / sum(weights) for weight in weights]


def log_odds(logits: list[float], token: int | None = None) -> Decimal:
    with localcontext(prec=200):
        probs = chances(logits)
        p = max(probs) if token is None else probs[token]
        return (p / (1 - p)).ln()


def lead_odds(logits: list[float]) -> Decimal:
    with localcontext(prec=200):
        second, first = sorted(chances(logits))[-2:]
        return ((first - second) / (1 - first + second)).ln()


def entropy(logits: list[float]) -> Decimal:
    with localcontext(prec=200):
        return -sum((p * p.ln() for p in chances(logits)), Decimal(0))


def surest(scores: list[Decimal], count: int) -> list[int]:
    """The places of the `count` highest scores; of equals, those on the left."""
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count])


def softmax(logits: Array) -> Array:
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def wino_published(look, length: int, mask: int, draft: float, verify: float) -> list[list[int]]:
    """Texts after each step, greedy, of WINO as published. look(text) gives logits [L, V] with
    each position hidden in turn."""
    text, pages, decided_before = [mask] * length, [], 30
    while mask in text:
        probs = softmax(look(text))
        open_ = [i for i in range(length) if text[i] == mask]
        guess = {i: int(probs[i].argmax()) for i in open_}
        ranked = sorted(open_, key=lambda i: (-probs[i][guess[i]], i))
        wide = [i for i in ranked if probs[i][guess[i]] > draft]
        wide = wide[: min(max(int(len(open_) * 0.7), 5), 20)] or ranked[:1]
        back = []
        if len(wide) > 1:
            standing = {i: probs[i][text[i]] for i in range(length) if text[i] != mask}
            back = sorted((i for i in standing if standing[i] < verify), key=standing.__getitem__)
            if len(back) >= decided_before:
                back = back[: decided_before - 1]
        for i in wide:
            text[i] = guess[i]
        for i in back:
            text[i] = mask
        decided_before = len(wide)
        pages.append(list(text))
    return pages


def klass_published(
    look, length: int, mask: int, steps: int, level: float, eps: float, patience: int
) -> list[list[int]]:
    """Texts after each step, greedy, of KLASS as published."""
    text, pages, history, last = [mask] * length, [], [], np.zeros((length, 1))
    for step, share in enumerate(even_split(length, steps)):
        if mask not in text:
            break
        probs = softmax(look(text))
        history.append((probs * (np.log(probs + 1e-12) - np.log(last + 1e-12))).sum(-1))
        last = probs
        open_ = [i for i in range(length) if text[i] == mask]
        sure = {i: probs[i].max() for i in open_}
        ready = []
        if step >= patience - 1:
            calm = [all(one[i] < eps for one in history[-patience:]) for i in range(length)]
            ready = [i for i in open_ if calm[i] and sure[i] > level]
        for i in ready or sorted(open_, key=lambda i: (-sure[i], i))[:share]:
            text[i] = int(probs[i].argmax())
        pages.append(list(text))
    return pages
