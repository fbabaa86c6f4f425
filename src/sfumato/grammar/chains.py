"""Exact arithmetic over all ways that a grammar leaves for a row of positions.

The tokens of a row are taken as independent, each by its own law, and conditioned on spelling a
text that the automaton accepts. Forward and backward sums give that law's marginals and exact
samples (Rabiner, 1989), maxima its most likely text (DINGO, arXiv 2505.23061).

Shapes: K chains (stretches of a row), n positions, Q states, C classes, E edges, S sets. Sums are
float64 and scaled at every position. Weights are at least `FLOOR` where a token is possible, so
that the sums of what can be reached never all vanish: a way through is found whenever there is one.

What follows an end is no choice of the model's: it has learnt that padding does. So these positions
are not independent of the end, and cost nothing: `ending` is what the weight of their tokens
together is multiplied by, so that it is that of a position's whole law before an end.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfumato.grammar.automaton import Automaton
from sfumato.grammar.grammar import NOWHERE, Bools, Ints

Floats = NDArray[np.float64]

CLOSE = 1e-3
TINY = np.finfo(np.float64).tiny
FLOOR = -80.0  # log of the smallest weight, relative to the largest: a float32 can be so small


@dataclass(frozen=True, eq=False)
class Chains:
    """Stretches of rows that an automaton goes through, side by side."""

    automaton: Automaton
    start: Ints  # [K] the state before the first position
    goal: Floats  # [K, Q] how much each state is worth after the last, 0 where it will not do
    inside: Bools  # [K, n] a chain's own positions, from the first on

    def believe(
        self, mass: Floats, ending: Floats | None = None, like: "Beliefs | None" = None
    ) -> "Beliefs":
        """The backward sums of `mass` [K, n, C], over the states that can be reached: those of
        `like`, if other weights are known of the same positions. `ending` [K, n]."""
        weights = self._sums(mass, np.add)
        ending = self._ending(ending, 1.0)
        weights[..., self.automaton.edges.ended] *= ending
        reach = self._reached(weights > 0) if like is None else like.reach
        behind = _scaled(self.goal * reach[-1])
        back, scales = [behind], []
        for place in reversed(range(len(weights))):
            sums = self._back(weights[place], behind)
            sums *= reach[place]
            scale = sums.max(1, keepdims=True)
            if not self.whole[place]:
                scale = np.where(self.inside[:, place, None], scale, 1.0)
            assert scale.all(), "a row that no text can complete"
            behind = self._kept(place, sums / scale, behind)
            back.append(behind)
            scales.append(scale)
        return Beliefs(self, weights, ending, reach, back[::-1], scales[::-1])

    def around(
        self, mass: Floats, ending: Floats | None = None, own: Floats | None = None
    ) -> Floats:
        """[K, n, C] the weight of each class at each position but for its own: of all others.

        What is too unlikely for a float64 counts as nothing. `own` is the `ending` of a position
        when it is asked about, where another counts for the rest.
        """
        weights = self._sums(mass, np.add)
        ending = self._ending(ending, 1.0)
        weights[..., self.automaton.edges.ended] *= ending
        forth = [self._first()]
        for place in range(len(weights) - 1):
            ahead = _scaled(self._forth(weights[place], forth[-1]))
            forth.append(self._kept(place, ahead, forth[-1]))
        behind = _scaled(self.goal)
        found = np.empty_like(weights)
        for place in reversed(range(len(weights))):
            found[place] = self._by_set(forth[place], behind)
            behind = self._kept(place, _scaled(self._back(weights[place], behind)), behind)
        found[..., self.automaton.edges.ended] *= ending if own is None else self._ending(own, 1.0)
        return self._by_class(found)

    def likeliest(self, scores: Floats, ending: Floats | None = None) -> Ints:
        """[K, n] the set of each position on the way of the highest sum of scores [K, n, C],
        log-probabilities of each class's best token; of equals, the first edge. `ending` [K, n] is
        the score of what follows an end; nan: as scores say."""
        edges = self.automaton.edges
        weights = self._sums(scores, np.maximum)
        own = weights[..., edges.ended]
        ending = self._ending(ending, np.nan)
        weights[..., edges.ended] = np.where(np.isnan(ending) | (own == -np.inf), own, ending)
        with np.errstate(divide="ignore"):
            behind = np.log(self.goal)
        back = [behind]
        for place in reversed(range(len(weights))):
            over = weights[place].take(edges.sets, 1) + behind.take(edges.target, 1)
            best = np.full_like(behind, -np.inf)
            best[:, edges.sources] = np.maximum.reduceat(over, edges.source_start, axis=1)
            behind = self._kept(place, best, behind)
            back.append(behind)
        back.reverse()

        def pick(rows: Ints, place: int, state: Ints) -> Ints:
            over = weights[place][rows, edges.fan_sets[state]]
            over += back[place + 1][rows, edges.fan_target[state]]
            return np.where(edges.fan_real[state], over, -np.inf).argmax(1)

        return self.walk(pick)

    def walk(self, pick: Callable[[Ints, int, Ints], Ints]) -> Ints:
        """[K, n] the sets along a way: `pick` says which of the edges that leave states [K] to
        take, [K], given the rows [K, 1] and the position."""
        edges = self.automaton.edges
        state, rows = self.start, np.arange(len(self.start))
        sets = np.zeros(self.inside.shape, dtype=np.int64)
        for place in range(len(self.whole)):
            picked = pick(rows[:, None], place, state)
            sets[:, place] = edges.fan_sets[state, picked]
            state = np.where(self.inside[:, place], edges.fan_target[state, picked], state)
        return sets

    @cached_property
    def whole(self) -> list[bool]:
        """Whether a position is inside of all chains."""
        return [bool(column.all()) for column in self.inside.T]

    def _ending(self, given: Floats | None, none: float) -> Floats:
        """For every position and chain [n, K]."""
        if given is None or self.automaton.edges.ended == NOWHERE:
            return np.full(self.inside.T.shape, none)
        return given.T

    def _first(self) -> Floats:
        states = np.arange(self.automaton.num_states)
        return (self.start[:, None] == states).astype(np.float64)

    def _reached(self, some: Bools) -> list[Bools]:
        """n + 1 of [K, Q], the states that may be reached by classes of sets `some` [n, K, S]."""
        edges = self.automaton.edges
        reach = [self._first() > 0]
        anything = [bool(part.all()) for part in some]
        for place in range(len(some)):
            over = reach[-1].take(edges.source_to_target, 1)
            if not anything[place]:
                over &= some[place].take(edges.sets_to_target, 1)
            ahead = np.zeros_like(reach[-1])
            ahead[:, edges.targets] = np.logical_or.reduceat(over, edges.target_start, axis=1)
            reach.append(self._kept(place, ahead, reach[-1]))
        return reach

    def _kept(self, place: int, new: NDArray[Any], old: NDArray[Any]) -> NDArray[Any]:
        return new if self.whole[place] else np.where(self.inside[:, place, None], new, old)

    def _sums(self, mass: Floats, over: np.ufunc) -> Floats:
        """Weights of classes [K, n, C] -> of sets [n, K, S]."""
        edges = self.automaton.edges
        parts = mass.swapaxes(0, 1).take(edges.pair_class, axis=-1)
        return over.reduceat(parts, edges.pair_start, axis=-1)

    def _back(self, weights: Floats, behind: Floats) -> Floats:
        edges = self.automaton.edges
        over = weights.take(edges.sets, 1)
        over *= behind.take(edges.target, 1)
        result = np.zeros_like(behind)
        result[:, edges.sources] = np.add.reduceat(over, edges.source_start, axis=1)
        return result

    def _forth(self, weights: Floats, ahead: Floats) -> Floats:
        edges = self.automaton.edges
        over = weights.take(edges.sets_to_target, 1)
        over *= ahead.take(edges.source_to_target, 1)
        result = np.zeros_like(ahead)
        result[:, edges.targets] = np.add.reduceat(over, edges.target_start, axis=1)
        return result

    def _by_set(self, ahead: Floats, behind: Floats) -> Floats:
        edges = self.automaton.edges
        over = ahead.take(edges.source_to_set, 1)
        over *= behind.take(edges.target_to_set, 1)
        return np.add.reduceat(over, edges.set_start, axis=1)

    def _by_class(self, found: Floats) -> Floats:
        """Of sets [n, K, S] -> of classes [K, n, C]."""
        edges = self.automaton.edges
        parts = found.take(edges.class_pair, axis=-1)
        return np.add.reduceat(parts, edges.class_start, axis=-1).swapaxes(0, 1)


@dataclass(frozen=True, eq=False)
class Beliefs:
    """The law of tokens given that they spell a text of the grammar."""

    chains: Chains
    weights: Floats  # [n, K, S]
    ending: Floats  # [n, K]
    reach: list[Bools]  # n + 1 of [K, Q]
    back: list[Floats]  # n + 1 of [K, Q], the largest of each row 1
    scales: list[Floats]  # n of [K, 1], what they were divided by

    def nats(self) -> Floats:
        """[K] the logarithm of the mass of all texts, the largest worth of a state being 1."""
        return np.log(np.concatenate(self.scales, axis=1)).sum(1)

    def ratios(self) -> Floats:
        """[K, n, C]: times a token's own probability, its probability given the grammar."""
        chains, ahead = self.chains, self.chains._first()
        found = np.empty_like(self.weights)
        for place, behind in enumerate(self.back[1:]):
            share = ahead / np.maximum(self.back[place] * self.scales[place], TINY)
            found[place] = chains._by_set(share, behind)
            law = chains._forth(self.weights[place], share) * behind
            ahead = chains._kept(place, law, ahead)
        found[..., chains.automaton.edges.ended] *= self.ending
        return chains._by_class(found)

    def draw(self, u: Floats) -> Ints:
        """[K, n] the set of each position on a way drawn from the law, by inversion of u [K, n]."""
        edges = self.chains.automaton.edges

        def pick(rows: Ints, place: int, state: Ints) -> Ints:
            over = self.weights[place][rows, edges.fan_sets[state]]
            over *= self.back[place + 1][rows, edges.fan_target[state]]
            over *= edges.fan_real[state]
            sums = over.cumsum(1)
            whole = sums[:, -1:]
            aim = np.minimum(u[:, place, None] * whole, np.nextafter(whole, 0))
            return np.minimum((sums <= aim).sum(1), sums.shape[1] - 1)

        return self.chains.walk(pick)


def worth(automaton: Automaton, law: Floats, counts: Ints) -> Floats:
    """[K, Q] the mass of the texts that complete a state in `counts` [K] more positions, were all
    of them of one law over classes [K, C], and independent; behind an end all is free.

    A law of few places says little of what follows far away; but that going on costs what the
    grammar forbids, and an end costs it no more, is what the choice between them needs.
    """
    chains = Chains(automaton, counts, law, np.ones((len(law), 1), dtype=np.bool_))
    weights = chains._sums(law[:, None], np.add)[0]
    free = automaton.edges.ended
    if free != NOWHERE:
        weights[:, free] = 1.0
    now = np.repeat(automaton.final[None].astype(np.float64), len(law), 0)
    found = now.copy()
    for number in range(1, int(counts.max(initial=0)) + 1):
        after = chains._back(weights, now)
        still = counts >= number
        found[still] = after[still]
        if free != NOWHERE and bool((np.abs(after - now) <= CLOSE * now).all()):
            break  # the ended state is among them: what changes no more will not change
        now = after
    return found


def _scaled(values: Floats) -> Floats:
    return values / np.maximum(values.max(1, keepdims=True), TINY)
