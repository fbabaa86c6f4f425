"""Decoding within a grammar: a wrapper of a step rule.

At every step a whole text of the grammar is drawn, by the model's laws of all positions together,
and the rule commits its tokens at the positions that the rule chooses. Whichever these are, what is
left can be completed, because that text completes it; and a rule that takes tokens back leaves only
more room. So the guarantee holds for any rule, any model and any number of positions at once.

The law of a step is that of positions that are independent, each by the model's law at it, given
the grammar, and given that all behind an end is padding. It is not the model's joint law given the
grammar, however few positions a step decides: what the tokens to come would think of one is not
known when it is drawn. Grammars of few texts are drawn exactly (`finite`).

What is beyond the block counts by the mass of what can complete a text there, were it like the
block (`lattice.worth`): so that ending and going on are weighed against each other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.decoding.filters import Only
from sfumato.decoding.logits import draw_tokens, most_likely
from sfumato.decoding.step import Around, Prediction, Step
from sfumato.errors import ConfigError
from sfumato.grammar.automaton import Automaton
from sfumato.grammar.chains import FLOOR, TINY, Beliefs, Chains, Floats, worth
from sfumato.grammar.grammar import NOWHERE, Bools, Ints
from sfumato.rng import Rng
from sfumato.types import Canvas

_WAYS = 3  # the random stream of a step that no rule uses
_SEEN = "seen"  # in a canvas's memory: the laws of the block's positions
LEAST = 1e-200  # the worth of a state from which a text can be completed, at least


@dataclass(frozen=True)
class Span:
    """Positions of a page that one text of the grammar fills."""

    row: int
    begin: int
    end: int
    state: int = 0  # of the automaton before it


def constrain(step: Step, automaton: Automaton, spans: Sequence[Span]) -> "Constrained":
    """The rule within a grammar, if every span has room for a text of it."""
    ahead = automaton.completable(max(span.end - span.begin for span in spans))
    for span in spans:
        if not ahead[span.end - span.begin, span.state]:
            raise _refusal(automaton, span)
    return Constrained(step, automaton, tuple(spans), ahead)


def _refusal(automaton: Automaton, span: Span) -> ConfigError:
    """Why no text has the length of a span, and which lengths are near."""
    room, rooms = span.end - span.begin, list[int]()
    for length, some in enumerate(automaton.lengths(span.state)):
        rooms += [length] * some
        if (rooms and rooms[-1] > room) or length > room + automaton.num_states:
            break
    if not rooms:
        return ConfigError(
            "no sequence of the tokens that may be written spells a text of the grammar; "
            "suppress fewer tokens, or allow other texts"
        )
    if room < rooms[0]:
        return ConfigError(
            f"the shortest text of the grammar has {rooms[0]} tokens, and there is room for "
            f"{room}: use a length, or a gap_length, of at least {rooms[0]}"
        )
    return ConfigError(
        f"no text of the grammar has exactly {room} tokens, as many as the gap; use "
        f"gap_length={min(rooms, key=lambda length: abs(length - room))}"
    )


@dataclass(frozen=True, eq=False)
class _Block:
    """The chains of the part of a page that is being written."""

    chains: Chains
    rest: Ints  # [K] positions of the span behind the block
    rows: Ints  # [K]
    places: Ints  # [K, n] columns of the part


@dataclass(frozen=True)
class Constrained(Around):
    """A step rule that writes texts of a grammar only."""

    automaton: Automaton
    spans: tuple[Span, ...]
    ahead: Bools = field(repr=False)  # [n + 1, Q] whether so many tokens lead to a final state
    block: _Block | None = field(default=None, repr=False)
    exact = False

    @cached_property
    def by_row(self) -> dict[int, list[Span]]:
        found: dict[int, list[Span]] = {}
        for span in self.spans:
            found.setdefault(span.row, []).append(span)
        return found

    def within(
        self, page: Canvas, rows: Sequence[int], starts: Sequence[int], width: int
    ) -> "Constrained":
        """The rule for blocks of the page: of these rows, `width` columns from these ones on; those
        of a span before them are decided."""
        found, states, goals, rest = [], [], [], []
        for number, (row, start) in enumerate(zip(rows, starts, strict=True)):
            for span in self.by_row.get(row, ()):
                low, high = max(span.begin, start), min(span.end, start + width)
                if low < high:
                    found.append((number, low - start, high - start))
                    written = page.tokens[row, span.begin : low].tolist()
                    states.append(self.automaton.after(span.state, written))
                    goals.append(self.ahead[span.end - high])
                    rest.append(span.end - high)
        if not found:
            return replace(self, block=None)
        numbers, lows, highs = np.array(found).T
        places = lows[:, None] + np.arange((highs - lows).max())
        inside = places < highs[:, None]
        goal = np.stack(goals).astype(np.float64)
        chains = Chains(self.automaton, np.array(states), goal, inside)
        places = np.minimum(places, width - 1)
        return replace(self, block=_Block(chains, np.array(rest), numbers, places))

    def wanted(self, canvas: Canvas, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """Of a row with a wanted position, all that is noisy."""
        own = self.step.wanted(canvas, t, s, rng)
        return own | (canvas.noisy & own.any(1, keepdim=True))

    def __call__(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        asked = bool(seen.where.any())
        if self.block is None and asked:
            count, width = canvas.tokens.shape
            whole = self.within(canvas, range(count), [0] * count, width)
            assert whole.block is not None, "noisy positions, but no span"
            return whole(canvas, seen, t, s, rng)
        if not asked:
            return self.step(canvas, seen, t, s, rng)
        draw = self.draw(canvas, seen.where)
        return self.commit(draw, draw.of(seen, rng), t, s, rng)

    def draw(self, canvas: Canvas, where: Tensor) -> "Draw":
        assert self.block is not None, "placed by the loop"
        return Draw(self.automaton, self.block, canvas, where)

    def commit(self, draw: "Draw", drawn: "Drawn", t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        """The canvas with tokens of the text that was drawn, where the rule wants them."""
        canvas, where = draw.canvas, draw.where
        own = self.step.wanted(canvas, t, s, rng)
        if draw.rest.any():
            canvas = replace(canvas, memory={**canvas.memory, _SEEN: draw.seen})
        judged = Prediction(drawn.judged[own[where]], own, canvas, (Only(drawn.tokens),))
        return self.step(canvas, judged, t, s, rng)


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
    block: _Block
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
        u = rng.fold(_WAYS).uniform(2, self.where.shape[1]).cpu().numpy()
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
        kept = self.canvas.memory.get(_SEEN)
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
        kept = self.canvas.memory.get(_SEEN)
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
