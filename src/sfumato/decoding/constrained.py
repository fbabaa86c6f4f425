"""Decoding within a grammar: a wrapper of a step rule.

At every step a whole text of the grammar is drawn, by the model's laws of all positions together,
and the rule commits its tokens at the positions that the rule chooses. Whichever these are, what is
left can be completed, because that text completes it; and a rule that takes tokens back leaves only
more room. So the guarantee holds for any rule, any model and any number of positions at once.

The law of a step is that of positions that are independent, each by the model's law at it, given
the grammar, and given that all behind an end is padding. It is not the model's joint law given the
grammar, however few positions a step decides: what the tokens to come would think of one is not
known when it is drawn. Grammars of few texts are drawn exactly (`few_texts`).

What is beyond the block counts by the mass of what can complete a text there, were it like the
block (`grammar.chains.worth`): so that ending and going on are weighed against each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from sfumato.decoding.filters import Only
from sfumato.decoding.grammar_draw import SEEN, BlockSpans, Draw, Drawn
from sfumato.decoding.step import Around, Prediction, Step
from sfumato.errors import ConfigError
from sfumato.grammar.automaton import Automaton
from sfumato.grammar.chains import Chains
from sfumato.grammar.grammar import Bools
from sfumato.rng import Rng
from sfumato.types import Canvas


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


@dataclass(frozen=True)
class Constrained(Around):
    """A step rule that writes texts of a grammar only."""

    automaton: Automaton
    spans: tuple[Span, ...]
    ahead: Bools = field(repr=False)  # [n + 1, Q] whether so many tokens lead to a final state
    block: BlockSpans | None = field(default=None, repr=False)
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
        return replace(self, block=BlockSpans(chains, np.array(rest), numbers, places))

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
            canvas = replace(canvas, memory={**canvas.memory, SEEN: draw.seen})
        judged = Prediction(drawn.judged[own[where]], own, canvas, (Only(drawn.tokens),))
        return self.step(canvas, judged, t, s, rng)
