"""Exact arithmetic over all ways that a grammar leaves for a row of positions.

The tokens of a row are taken as independent, each by its own law, and conditioned on spelling a
text that the automaton accepts. Forward and backward sums give that law's marginals and exact
samples (Rabiner, 1989), maxima its most likely text (DINGO, arXiv 2505.23061).

Shapes: K chains (stretches of a row), n positions, Q states, C classes, E edges, S sets. Sums are
float64 and scaled at every position. Weights are at least `FLOOR` where a token is possible, so
that the sums of what can be reached never all vanish: a way through is found whenever there is one.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sfumato.grammar import Automaton, Bools, Ints

Floats = NDArray[np.float64]

FLOOR = -138.0  # log of the smallest weight, relative to the largest: 1e-60


@dataclass(frozen=True, eq=False)
class Chains:
    """Stretches of rows that an automaton goes through, side by side."""

    automaton: Automaton
    start: Ints  # [K] the state before the first position
    goal: Bools  # [K, Q] the states that will do after the last
    inside: Bools  # [K, n] a chain's own positions, from the first on

    def sums(self, mass: Floats) -> Floats:
        """Weights of classes [K, n, C] -> of sets [K, n, S]."""
        edges = self.automaton.edges
        return np.add.reduceat(mass[..., edges.pair_class], edges.pair_start, axis=-1)

    def believe(self, mass: Floats) -> "Beliefs":
        """The backward sums of `mass` [K, n, C], over the states that can be reached."""
        weights = self.sums(mass)
        count = weights.shape[1]
        states = np.arange(self.automaton.num_states)
        reach = [self.start[:, None] == states]
        for place in range(count):
            some = (weights[:, place] > 0).astype(np.float64)
            ahead = self._forth(some, reach[-1].astype(np.float64)) > 0
            reach.append(self._kept(place, ahead, reach[-1]))
        behind = (self.goal & reach[-1]).astype(np.float64)
        back, scales = [behind], []
        for place in reversed(range(count)):
            sums = self._back(weights[:, place], behind) * reach[place]
            scale = sums.max(1, keepdims=True)
            assert (scale[self.inside[:, place]] > 0).all(), "a row that no text can complete"
            scale = self._kept(place, scale, np.ones_like(scale))
            behind = self._kept(place, sums / scale, behind)
            back.append(behind)
            scales.append(scale)
        return Beliefs(self, weights, back[::-1], scales[::-1])

    def around(self, mass: Floats) -> Floats:
        """[K, n, C] the weight of each class at each position but for its own: of all others.

        What is too unlikely for a float64 counts as nothing.
        """
        weights = self.sums(mass)
        count = weights.shape[1]
        ahead = (self.start[:, None] == np.arange(self.automaton.num_states)).astype(np.float64)
        forth = [ahead]
        for place in range(count - 1):
            ahead = self._kept(place, _scaled(self._forth(weights[:, place], ahead)), ahead)
            forth.append(ahead)
        behind = self.goal.astype(np.float64)
        found = np.empty_like(weights)
        for place in reversed(range(count)):
            found[:, place] = self._by_set(forth[place], behind)
            behind = self._kept(place, _scaled(self._back(weights[:, place], behind)), behind)
        return self._by_class(found)

    def likeliest(self, scores: Floats) -> Ints:
        """[K, n] the set of each position on the way of the highest sum of scores [K, n, C],
        log-probabilities of each class's best token; of equals, the first edge."""
        edges = self.automaton.edges
        weights = np.maximum.reduceat(scores[..., edges.pair_class], edges.pair_start, axis=-1)
        behind = np.where(self.goal, 0.0, -np.inf)
        tables: list[Floats] = []
        for place in reversed(range(weights.shape[1])):
            over = weights[:, place][:, edges.sets] + behind[:, edges.target]
            tables.append(over)
            best = np.full_like(behind, -np.inf)
            best[:, edges.sources] = np.maximum.reduceat(over, edges.source_start, axis=1)
            behind = self._kept(place, best, behind)
        padded = (np.pad(t, ((0, 0), (0, 1)), constant_values=-np.inf) for t in reversed(tables))
        return self._walk(padded, lambda values, place: values.argmax(1))

    def _walk(self, tables, pick) -> Ints:
        """The sets along a way from the start: `pick` chooses among the edges of each state."""
        edges = self.automaton.edges
        state, rows = self.start, np.arange(len(self.start))
        sets = np.zeros(self.inside.shape, dtype=np.int64)
        for place, table in enumerate(tables):
            fan = edges.fan[state]
            edge = fan[rows, pick(table[rows[:, None], fan], place)]
            edge = np.minimum(edge, len(edges.source) - 1)  # outside of a chain: any
            sets[:, place] = edges.sets[edge]
            state = np.where(self.inside[:, place], edges.target[edge], state)
        return sets

    def _kept(self, place: int, new: NDArray, old: NDArray) -> NDArray:
        return np.where(self.inside[:, place, None], new, old)

    def _back(self, weights: Floats, behind: Floats) -> Floats:
        edges = self.automaton.edges
        over = weights[:, edges.sets] * behind[:, edges.target]
        result = np.zeros_like(behind)
        result[:, edges.sources] = np.add.reduceat(over, edges.source_start, axis=1)
        return result

    def _forth(self, weights: Floats, ahead: Floats) -> Floats:
        edges = self.automaton.edges
        over = (weights[:, edges.sets] * ahead[:, edges.source])[:, edges.to_target]
        result = np.zeros_like(ahead)
        result[:, edges.targets] = np.add.reduceat(over, edges.target_start, axis=1)
        return result

    def _by_set(self, ahead: Floats, behind: Floats) -> Floats:
        edges = self.automaton.edges
        over = ahead[:, edges.source] * behind[:, edges.target]
        return np.add.reduceat(over[:, edges.to_set], edges.set_start, axis=1)

    def _by_class(self, found: Floats) -> Floats:
        edges = self.automaton.edges
        return np.add.reduceat(found[..., edges.class_pair], edges.class_start, axis=-1)


@dataclass(frozen=True, eq=False)
class Beliefs:
    """The law of tokens given that they spell a text of the grammar."""

    chains: Chains
    weights: Floats  # [K, n, S]
    back: list[Floats]  # n + 1 of [K, Q], the largest of each row 1
    scales: list[Floats]  # n of [K, 1], what they were divided by

    def ratios(self) -> Floats:
        """[K, n, C]: times a token's own probability, its probability given the grammar."""
        chains = self.chains
        states = np.arange(chains.automaton.num_states)
        ahead = (chains.start[:, None] == states).astype(np.float64)
        found = np.empty_like(self.weights)
        for place, (before, behind) in enumerate(pairwise(self.back)):
            share = np.divide(ahead, before * self.scales[place], where=before > 0, out=0 * ahead)
            found[:, place] = chains._by_set(share, behind)
            ahead = chains._kept(
                place, chains._forth(self.weights[:, place], share) * behind, ahead
            )
        return chains._by_class(found)

    def draw(self, u: Floats) -> Ints:
        """[K, n] the set of each position on a way drawn from the law, by inversion of u [K, n]."""
        edges = self.chains.automaton.edges

        def tables():
            for place, behind in enumerate(self.back[1:]):
                over = self.weights[:, place][:, edges.sets] * behind[:, edges.target]
                yield np.pad(over, ((0, 0), (0, 1)))

        def pick(values: Floats, place: int) -> Ints:
            sums = values.cumsum(1)
            whole = sums[:, -1:]
            aim = np.minimum(u[:, place, None] * whole, np.nextafter(whole, 0))
            return np.minimum((sums <= aim).sum(1), values.shape[1] - 1)

        return self.chains._walk(tables(), pick)


def _scaled(values: Floats) -> Floats:
    return values / np.maximum(values.max(1, keepdims=True), np.finfo(np.float64).tiny)
