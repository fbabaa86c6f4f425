"""Draws of a block within a grammar: what is open, and how probable each state is."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.decoding.logits import draw_tokens, most_likely
from sfumato.decoding.step import Prediction
from sfumato.errors import ConfigError
from sfumato.grammar.automaton import Automaton
from sfumato.grammar.chains import FLOOR, TINY, Beliefs, Chains, Floats, worth
from sfumato.grammar.grammar import NOWHERE, Bools, Ints
from sfumato.rng import Rng
from sfumato.types import Canvas

WAYS = 3  # the random stream of a step that no rule uses
SEEN = "seen"  # in a canvas's memory: the laws of the block's positions
LEAST = 1e-200  # the worth of a state from which a text can be completed, at least


@dataclass(frozen=True, eq=False)
class BlockSpans:
    """The chains of the part of a page that is being written."""

    chains: Chains
    rest: Ints  # [K] positions of the span behind the block
    rows: Ints  # [K]
    places: Ints  # [K, n] columns of the part


@dataclass(frozen=True, eq=False)
class Drawn:
    """A text of the grammar for every row, and the law it was drawn by."""

    judged: Tensor  # [N, V] logits given the grammar, by which rules judge
    tokens: Tensor  # [B, W]
    live: Tensor  # [N, M] logits that it was drawn by
    ways: Ints  # [K, n] the set of each of its tokens
    ending: Floats  # [K, n]
    beliefs: Beliefs


@dataclass(frozen=True, eq=False)
class Draw:
    """One step's arithmetic between logits [N, V] at `where` and chains [K, n]."""

    automaton: Automaton
    block: BlockSpans
    canvas: Canvas
    where: Tensor  # [B, W]

    @cached_property
    def rows(self) -> Ints:
        """The chains of rows in which anything is wanted."""
        return self.where.any(1).cpu().numpy()[self.block.rows].nonzero()[0]

    @cached_property
    def chains(self) -> Chains:
        every, rows = self.block.chains, self.rows
        return Chains(self.automaton, every.start[rows], every.goal[rows], every.inside[rows])

    @cached_property
    def at(self) -> tuple[Ints, Ints]:
        """The row and the column of each position, [K, n] both."""
        places = self.block.places[self.rows]
        return self.block.rows[self.rows, None] + 0 * places, places

    @cached_property
    def numbers(self) -> Ints:
        """The row of logits of each position [K, n]; -1: none, or outside of a chain."""
        where = self.where.cpu().numpy()
        numbers = np.where(where, where.cumsum().reshape(where.shape) - 1, -1)
        return np.where(self.chains.inside, numbers[self.at], -1)

    @cached_property
    def open(self) -> Bools:
        """The positions that are to be decided, [K, n]."""
        return self.chains.inside & self.canvas.noisy.cpu().numpy()[self.at]

    @cached_property
    def rest(self) -> Ints:
        return self.block.rest[self.rows]

    def of(self, seen: Prediction, rng: Rng) -> Drawn:
        logits = seen.logits
        plain, alive = self.live(logits), self.alive(logits)
        classes = self.by_class(plain)
        mass = self.filled(classes, 0.0, 1.0)
        chains = self.chains
        if self.rest.any():
            chains = replace(chains, goal=self.goal(mass, alive))
        ending = self.ending(classes, alive)
        beliefs = chains.believe(mass, np.where(self.open, ending, 1.0))
        given = plain + self.spread(self.logs(chains, beliefs.ratios(), mass, ending))
        judged = self.back(given, logits)
        if seen.greedy:
            after = np.where(self.open, np.log(alive), np.nan)
            best = chains.likeliest(self.scores(plain), after)
            tokens = self.written(most_likely, plain, best)
            return Drawn(judged, tokens, plain, best, ending, beliefs)
        drawn = plain
        if seen.filters:
            # they change the law given the grammar: a nucleus may hold an end that is rare without
            cut = Prediction(judged, self.where, self.canvas, seen.filters).at(self.where)
            change = cut[:, self.order].float() - given
            drawn = self.live(self.back(plain + change.nan_to_num_(nan=-torch.inf), logits))
            mass = self.filled(self.by_class(drawn), 0.0, 1.0)
            beliefs = chains.believe(mass, np.where(self.open, ending, 1.0), beliefs)
        u = rng.fold(WAYS).uniform(2, self.where.shape[1]).cpu().numpy()
        rows, places = self.at
        ways = beliefs.draw(u[rows, 0, places])
        again = self.tensor(u[rows, 1, places][self.open])
        tokens = self.written(lambda part: draw_tokens(part, again), drawn, ways)
        return Drawn(judged, tokens, drawn, ways, ending, beliefs)

    def believe(self, live: Tensor, ending: Floats, like: Beliefs | None) -> Beliefs:
        """The sums over all texts that are left, by logits [N, M]; `like`: of those before."""
        mass = self.filled(self.by_class(live), 0.0, 1.0)
        chains = self.chains if like is None else like.chains
        return chains.believe(mass, np.where(self.open, ending, 1.0), like)

    def alive(self, logits: Tensor) -> Floats:
        """[K, n] the weight of all tokens that may stand before an end, in the grammar or not."""
        best = logits[:, self.order].float().amax(1, keepdim=True)
        best = best.masked_fill(best == -torch.inf, 0.0)
        whole = logits.float() - best
        whole = whole.index_fill(1, self.tensor(self.automaton.padding), -torch.inf)
        found = whole.double().logsumexp(1).clamp(FLOOR, -FLOOR).exp().cpu().numpy()
        return np.where(self.numbers >= 0, found[self.numbers], 1.0)

    def ending(self, classes: Floats, alive: Floats) -> Floats:
        """[K, n] what the weight of all that follows an end is multiplied by, by the laws of
        classes [N, C]."""
        edges = self.automaton.edges
        if edges.ended == NOWHERE:
            return np.ones(alive.shape)
        after = classes[:, edges.member[edges.ended]].sum(1)[self.numbers]
        return np.where((self.numbers >= 0) & (after > 0), alive / np.maximum(after, TINY), 1.0)

    @cached_property
    def remembered(self) -> Floats | None:
        """[K, n, C] the laws of positions as they were last seen, nan where they were not."""
        kept = self.canvas.memory.get(SEEN)
        return None if kept is None else kept.cpu().numpy()[self.at].astype(np.float64)

    def goal(self, mass: Floats, alive: Floats) -> Floats:
        """[K, Q] what states are worth behind the block, by the mean law of its positions."""
        laws = np.where(self.open[..., None], mass / alive[..., None], np.nan)
        if self.remembered is not None:
            laws = np.where(self.open[..., None], laws, self.remembered)
        self.laws[:] = laws
        known = self.chains.inside & ~np.isnan(laws[..., 0])
        law = np.where(known[..., None], laws, 0).sum(1) / np.maximum(known.sum(1), 1)[:, None]
        found = worth(self.automaton, law, self.rest)
        return np.where(self.chains.goal > 0, np.maximum(found, LEAST), 0.0)

    @cached_property
    def laws(self) -> Floats:
        """[K, n, C] what is remembered after this step."""
        return np.full((*self.open.shape, self.automaton.num_classes), np.nan)

    @property
    def seen(self) -> Tensor:
        """The same for the canvas [B, W, C]."""
        shape = (*self.where.shape, self.automaton.num_classes)
        kept = self.canvas.memory.get(SEEN)
        found = np.full(shape, np.nan, np.float32) if kept is None else kept.cpu().numpy().copy()
        rows, places = (place[self.chains.inside] for place in self.at)
        found[rows, places] = self.laws[self.chains.inside]
        return self.tensor(found)

    def tensor(self, values: Any) -> Tensor:
        return torch.from_numpy(values).to(self.where.device)

    @cached_property
    def order(self) -> Tensor:
        """[M] the tokens that the grammar knows, class after class."""
        return self.tensor(self.automaton.order)

    @cached_property
    def classes(self) -> Tensor:
        """[M] their classes."""
        return self.tensor(self.automaton.classes)[self.order]

    def live(self, logits: Tensor) -> Tensor:
        """Logits [N, V] -> of the tokens that the grammar knows [N, M], the best of them 0, none
        below FLOOR: where filters leave nothing that is valid, the grammar comes first."""
        logits = logits[:, self.order].float()
        best = logits.amax(1, keepdim=True)
        if bool(best.isnan().any()):
            raise ConfigError("the logits are not numbers; check the model")
        return logits.sub_(best.masked_fill_(best == -torch.inf, 0.0)).clamp_min_(FLOOR)

    def back(self, live: Tensor, like: Tensor) -> Tensor:
        """Of those tokens [N, M] -> of all [N, V]."""
        whole = torch.full(like.shape, -torch.inf, device=like.device)
        return whole.index_copy_(1, self.order, live)

    def by_class(self, live: Tensor) -> Floats:
        """The weight of each class [N, C]."""
        starts = self.automaton.order_start
        return np.add.reduceat(live.exp().cpu().numpy(), starts, axis=1, dtype=np.float64)

    def scores(self, live: Tensor) -> Floats:
        """The best logit of each class, [K, n, C]."""
        found = np.maximum.reduceat(live.cpu().numpy(), self.automaton.order_start, axis=1)
        return self.filled(found.astype(np.float64), -np.inf, 0.0)

    def filled(self, found: Floats, none: float, all_: float) -> Floats:
        """Of classes [N, C] -> of positions [K, n, C]; of a decided one, all on its token's."""
        mass = np.full((*self.open.shape, found.shape[1]), none)
        mass[self.open] = found[self.numbers[self.open]]
        decided = self.chains.inside & ~self.open
        tokens = self.canvas.tokens.cpu().numpy()[self.at]
        mass[decided, self.automaton.classes[tokens[decided]]] = all_
        return mass

    def logs(self, chains: Chains, ratios: Floats, mass: Floats, ending: Floats) -> Floats:
        """Logarithms of the ratios; those of decided positions, if a rule verifies them, are of
        the rest of their row."""
        verified = ~self.open & (self.numbers >= 0)
        if verified.any():
            ratios = np.where(
                verified[..., None],
                chains.around(mass, np.where(self.open, ending, 1.0), ending),
                ratios,
            )
        with np.errstate(divide="ignore"):
            return np.log(ratios)

    def spread(self, logs: Floats) -> Tensor:
        """Of classes [K, n, C] -> of the tokens that the grammar knows [N, M]."""
        known = self.numbers >= 0
        table = np.full((int(self.where.sum()), logs.shape[-1]), -np.inf, dtype=np.float32)
        table[self.numbers[known]] = logs[known]
        return self.tensor(table)[:, self.classes]

    def written(self, pick: Callable[[Tensor], Tensor], live: Tensor, ways: Ints) -> Tensor:
        """The text [B, W]: at every open position a token of its set, by `pick` of [n, M]."""
        sets, numbers = self.tensor(ways[self.open]), self.tensor(self.numbers[self.open])
        allowed = self.tensor(self.automaton.edges.member)[sets][:, self.classes]
        tokens = self.canvas.tokens.clone()
        at = tuple(self.tensor(place[self.open]) for place in self.at)
        tokens[at] = self.order[pick(live[numbers].masked_fill_(~allowed, -torch.inf))]
        return tokens
