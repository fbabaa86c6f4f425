"""The likeliest ways to fill the gaps of a text, and how probable each is.

The law: the tokens of the gaps from left to right, each by what the model says of its position
given all the text around the gaps and the tokens before it, while those behind it stay masked
(`gaps.law_at`). Tokens that infilling never writes have no share in it. Where the lengths of gaps
are not known, they come first, by their posterior (`gaps.judge`). Temperature and the like, and the
step rule, have no say: this is the model's own law, not a way to draw from it.

A beam finds good fills; then every beginning that is as probable as the last of them wanted is gone
on with, because no fill is more probable than its beginning. If there are few enough of these, what
is found is exact; otherwise draws from the law are added, and the best of all are given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.decoding.filters import Allowed
from sfumato.decoding.logits import draw_tokens
from sfumato.lm.gaps import ROWS, law_at
from sfumato.noise.corruption import Corruption
from sfumato.rng import Rng
from sfumato.types import Denoiser, Filter

BEAM = 16  # beginnings that the first search goes on with
MOST = 1024  # beginnings that the exact search looks at, all together
DRAWS = 64  # fills that are drawn where it gives up
SLACK = 1e-2  # nats that one fill may differ by between batches, by rounding in the network


@dataclass(frozen=True)
class Layout:
    """A text with so many tokens in its gaps."""

    tokens: Tensor  # [L]
    places: tuple[int, ...]  # the positions of the gaps, from left to right
    spaced: Tensor  # [L] bool, where a token must begin with a space
    nats: float  # log p of these lengths


@dataclass(frozen=True)
class Fill:
    """The first tokens of a layout's gaps, or all of them."""

    layout: int
    tokens: tuple[int, ...]
    nats: float  # log p


@dataclass(frozen=True)
class Filling:
    """A text whose gaps are to be filled, and the model that says with what."""

    layouts: tuple[Layout, ...]
    reading: Callable[[int], Denoiser]  # a denoiser of so many rows
    corruption: Corruption
    filters: tuple[Filter, ...]
    with_space: Tensor  # [V] bool, tokens that begin with a space

    def over(self, fill: Fill) -> bool:
        return len(fill.tokens) == len(self.layouts[fill.layout].places)

    def roots(self) -> list[Fill]:
        """Nothing filled yet."""
        return [Fill(number, (), layout.nats) for number, layout in enumerate(self.layouts)]

    @torch.no_grad()
    def next_law(self, fills: Sequence[Fill]) -> Tensor:
        """log p of the token after each of some beginnings, [N, V] float64."""
        return torch.cat([self._next_law(fills[n : n + ROWS]) for n in range(0, len(fills), ROWS)])

    def _next_law(self, fills: Sequence[Fill]) -> Tensor:
        own = [self.layouts[fill.layout] for fill in fills]
        tokens = torch.stack([layout.tokens for layout in own])
        shown, here = torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens) > 0
        for row, (layout, fill) in enumerate(zip(own, fills, strict=True)):
            count = len(fill.tokens)
            shown[row, list(layout.places[count:])] = False
            tokens[row, list(layout.places[:count])] = torch.tensor(fill.tokens).to(tokens)
            here[row, layout.places[count]] = True
        spaced = Allowed(torch.stack([layout.spaced for layout in own]), self.with_space)
        filters = (spaced, *self.filters)
        return law_at(self.reading(len(fills)), self.corruption, tokens, shown, here, filters).cpu()


def best_fills(
    filling: Filling,
    count: int,
    spell: Callable[[Sequence[Fill]], Sequence[object]],  # how fills read
    rng: Rng,  # of one row
) -> tuple[list[Fill], bool]:
    """The `count` likeliest fills that read differently, best first; of several ways to spell one,
    the likeliest. And whether they are exactly these."""
    found = _beam(filling, max(BEAM, 2 * count))
    best = _distinct(found, count, spell)
    more = _all_above(filling, best[-1].nats - SLACK if len(best) == count else -torch.inf)
    if more is not None:
        return _distinct(more, count, spell), True
    return _distinct([*found, *_drawn(filling, rng)], count, spell), False


def _beam(filling: Filling, width: int) -> list[Fill]:
    going, found = filling.roots(), []
    while going:
        laws = filling.next_law(going) + _column([fill.nats for fill in going])
        values, at = laws.flatten().topk(min(width, laws.numel()))
        longer = [
            _longer(going, laws.shape[1], place, value)
            for place, value in zip(at.tolist(), values.tolist(), strict=True)
            if value > -torch.inf
        ]
        found += [fill for fill in longer if filling.over(fill)]
        going = [fill for fill in longer if not filling.over(fill)]
    return found


def _all_above(filling: Filling, least: float) -> list[Fill] | None:
    """All fills whose log p is at least this; None where too many beginnings are."""
    going, found, seen = [fill for fill in filling.roots() if fill.nats >= least], [], 0
    while going:
        seen += len(going)
        if seen > MOST:
            return None
        laws = filling.next_law(going) + _column([fill.nats for fill in going])
        at = ((laws >= least) & (laws > -torch.inf)).flatten().nonzero()[:, 0]
        values = laws.flatten()[at]
        longer = [
            _longer(going, laws.shape[1], place, value)
            for place, value in zip(at.tolist(), values.tolist(), strict=True)
        ]
        found += [fill for fill in longer if filling.over(fill)]
        going = [fill for fill in longer if not filling.over(fill)]
    return found


def _drawn(filling: Filling, rng: Rng) -> list[Fill]:
    """Fills as the law has them."""
    nats = _column([layout.nats for layout in filling.layouts]).T
    u = rng.fold(0).uniform(DRAWS)[0].cpu()
    chosen = draw_tokens(nats.expand(DRAWS, -1), u).tolist()
    going, found = [Fill(n, (), filling.layouts[n].nats) for n in chosen], []
    while going:
        laws = filling.next_law(going)
        tokens = draw_tokens(
            laws, rng.fold(1 + len(going[0].tokens)).uniform(DRAWS)[0, : len(laws)]
        )
        own = laws.gather(1, tokens[:, None])[:, 0].tolist()
        longer = [
            Fill(fill.layout, (*fill.tokens, token), fill.nats + value)
            for fill, token, value in zip(going, tokens.tolist(), own, strict=True)
        ]
        found += [fill for fill in longer if filling.over(fill)]
        going = [fill for fill in longer if not filling.over(fill)]
    return found


def _column(nats: Sequence[float]) -> Tensor:
    return torch.tensor(nats, dtype=torch.float64)[:, None]


def _longer(going: Sequence[Fill], size: int, place: int, nats: float) -> Fill:
    fill = going[place // size]
    return Fill(fill.layout, (*fill.tokens, place % size), nats)


def _distinct(
    fills: Sequence[Fill], count: int, spell: Callable[[Sequence[Fill]], Sequence[object]]
) -> list[Fill]:
    """The best of these, one of each reading."""
    ranked = sorted(fills, key=lambda fill: (-fill.nats, fill.layout, fill.tokens))
    best: dict[object, Fill] = {}
    for fill, reading in zip(ranked, spell(ranked), strict=True):
        best.setdefault(reading, fill)
    return list(best.values())[:count]
