"""Grammars of a few texts, such as choices: each text is drawn by the model's own law.

A finite set needs no approximation. Every text is scored from left to right, one token a pass, with
what is not written yet masked: that is how the decoder writes with `left_to_right` and a step for
every token, and for an autoregressive model the chain rule. One of them is drawn by these
probabilities, and the step rule then writes it.

A text is the tokens that the tokenizer makes of it, and the end behind it where there is room for
one: other spellings of it, of which a model thinks little, are not summed up.

Shapes: B rows of W positions; N texts that are candidates for them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod

import torch
from torch import Tensor

from sfumato.data.special_tokens import SpecialIds
from sfumato.decoding.constrained import Constrained, Span
from sfumato.decoding.filters import Allowed, Only
from sfumato.decoding.logits import draw_tokens
from sfumato.decoding.request import Request
from sfumato.decoding.step import Around, Prediction
from sfumato.decoding.unmask import LeftToRight
from sfumato.grammar.automaton import SPACED, Automaton
from sfumato.grammar.grammar import NOWHERE, Grammar
from sfumato.noise.corruption import Corruption
from sfumato.rng import Rng
from sfumato.types import Canvas

ROWS = 64  # that go through the network together
PASSES = 256  # of one row, that scoring all texts may take
_TEXT = 4  # the random stream of a request that draws the texts


@dataclass(frozen=True)
class Texts:
    """All texts of a grammar as tokens: at the beginning of a span, and behind a given space."""

    plain: tuple[tuple[int, ...], ...]
    spaced: tuple[tuple[int, ...], ...]

    @classmethod
    def of(
        cls,
        grammar: Grammar,
        automaton: Automaton,
        encode: Callable[[Sequence[str]], list[list[int]]],
        most: int,
    ) -> "Texts | None":
        """None where there are more than `most`; what needs a suppressed token is left out."""
        found = grammar.texts(most)
        if found is None:
            return None
        own: list[tuple[tuple[int, ...], ...]] = []
        for state, lead in ((0, ""), (SPACED, " ")):
            tokens = dict.fromkeys(map(tuple, encode([lead + text for text in found])))
            own.append(tuple(ids for ids in tokens if automaton.accepts(state, ids)))
        return cls(*own)

    def fitting(self, span: Span, end: int | None) -> list[tuple[int, ...]]:
        """Those that fill a span, or end in it."""
        room = span.end - span.begin
        texts = self.spaced if span.state == SPACED else self.plain
        if end is None:
            return [ids for ids in texts if len(ids) == room]
        ended = [(*ids, end) if len(ids) < room else ids for ids in texts]
        return [ids for ids in ended if len(ids) <= room]


@dataclass(frozen=True)
class Finite:
    """What a row may be filled with, if that is few."""

    spans: tuple[Span, ...]
    texts: Texts
    end: int | None  # the token behind a text; None: it fills its span
    filler: int  # what follows that
    order: LeftToRight
    most: int = PASSES  # of a row, that scoring may take

    @classmethod
    def of(
        cls,
        request: Request,
        corruption: Corruption,
        encode: Callable[[Sequence[str]], list[list[int]]],
        special: SpecialIds,
    ) -> "Finite | None":
        """Of a request within a grammar; None where it has more texts than there may be passes, or
        the model's noise is no masks, so that no text can be written token by token."""
        grammar, rule = request.options.grammar(), request.step
        if grammar is None or not isinstance(rule, Constrained) or not corruption.absorbing:
            return None
        texts = Texts.of(grammar, rule.automaton, encode, PASSES)
        end = special.eos if rule.automaton.classes[special.eos] != NOWHERE else None
        if texts is None:
            return None
        return cls(rule.spans, texts, end, special.filler, LeftToRight(corruption.schedule))

    def candidates(self, row: int) -> list[list[tuple[int, ...]]] | None:
        """Each a text for every span of the row; None: none, or too many."""
        spans = [span for span in self.spans if span.row == row]
        fitting = [self.texts.fitting(span, self.end) for span in spans]
        if not prod(map(len, fitting)) or prod(map(len, fitting)) > self.most:
            return None
        found = [list(one) for one in product(*fitting)]
        return found if sum(len(ids) for one in found for ids in one) <= self.most else None

    def laid(self, row: int, candidate: Sequence[tuple[int, ...]], width: int) -> Tensor:
        """The candidate where it belongs on the row [W], the filler behind it, -1 elsewhere."""
        tokens = torch.full((width,), -1)
        spans = [span for span in self.spans if span.row == row]
        for span, ids in zip(spans, candidate, strict=True):
            tokens[span.begin : span.end] = self.filler
            tokens[span.begin : span.begin + len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return tokens

    def asked(self, row: int, candidate: Sequence[tuple[int, ...]], width: int) -> Tensor:
        """The positions of its own tokens and ends [W]: behind them anything may follow."""
        asked = torch.zeros(width, dtype=torch.bool)
        for span, ids in zip((s for s in self.spans if s.row == row), candidate, strict=True):
            asked[span.begin : span.begin + len(ids)] = True
        return asked


def draw_texts(
    request: Request, finite: Finite, run: Callable[[Request], Iterator[Canvas]], *, cut: bool
) -> Request:
    """The request with a text drawn for every row, by the law of `run` with `left_to_right`.

    The user's temperature is that of the law of whole texts: 0 is the likeliest. Filters that cut
    the law of single tokens are not used; the others are. Where a row has too many candidates, the
    request is returned as it is. `cut`: what is behind a text is not seen, and need not be there.
    """
    width, device = request.canvas.tokens.shape[1], request.canvas.tokens.device
    candidates = [finite.candidates(row) for row in range(len(request.rows))]
    known: dict[tuple[object, ...], Tensor] = {}
    scored: list[tuple[Tensor, Tensor, Tensor]] = []  # of each row: texts, their own tokens, nats
    for row, found in enumerate(candidates):
        if any(each is None for each in candidates) or found is None:
            return request
        laid = torch.stack([finite.laid(row, one, width) for one in found])
        own = torch.stack([finite.asked(row, one, width) for one in found])
        key = _key(request, row, laid)
        if key not in known:
            known[key] = score(request, row, laid, own, finite.order, run, cut=cut)
        scored.append((laid, own, known[key]))
    u, temperature = request.rng.fold(_TEXT).uniform(1), request.options.temperature
    tokens, asked = [], []
    for row, (laid, own, nats) in enumerate(scored):
        if temperature == 0:
            best = int(nats.argmax())
        else:
            best = int(draw_tokens(nats[None] / temperature, u[row].to(nats.device)))
        tokens.append(laid[best])
        asked.append(own[best])
    written, noisy = torch.stack(tokens).to(device), torch.stack(asked).to(device)
    canvas = replace(
        request.canvas,
        tokens=torch.where((written >= 0) & ~noisy, written, request.canvas.tokens),
        noisy=noisy,
    )
    rule = request.step.rule  # without the grammar
    steps = request.options.num_steps
    if steps is not None and steps > int(noisy.sum(1).max()):
        steps = None  # not more than there are tokens
    options = replace(request.options, num_steps=steps, particles=1)
    filters = (*request.plain, Only(written))
    return replace(request, options=options, canvas=canvas, step=rule, filters=filters)


def _key(request: Request, row: int, laid: Tensor) -> tuple[object, ...]:
    """What the scores of a row's candidates depend on."""
    seen = (
        request.canvas.tokens,
        request.canvas.noisy,
        request.left,
        request.hidden,
        request.source,
    )
    own = tuple(None if each is None else each[row].cpu().numpy().tobytes() for each in seen)
    return (*own, laid.numpy().tobytes())


def score(
    request: Request,
    row: int,
    laid: Tensor,  # [N, W]
    asked: Tensor,  # [N, W]
    order: LeftToRight,
    run: Callable[[Request], Iterator[Canvas]],
    *,
    cut: bool,
) -> Tensor:
    """log p of each candidate for a row of the request, nats [N] float64."""
    parts = zip(laid.split(ROWS), asked.split(ROWS), strict=True)
    return torch.cat([_score(request, row, *part, order, run, cut) for part in parts])


def _score(
    request: Request,
    row: int,
    laid: Tensor,
    asked: Tensor,
    order: LeftToRight,
    run: Callable[[Request], Iterator[Canvas]],
    cut: bool,
) -> Tensor:
    device = request.canvas.tokens.device
    rows = torch.full((len(laid),), row, device=device)
    stop = int(asked.any(0).nonzero().max()) + 1 if cut else laid.shape[1]

    def picked(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[rows]

    nats = torch.zeros(asked.shape, dtype=torch.float64, device=device)
    scored = replace(
        request,
        options=replace(request.options, num_steps=None),
        rows=(request.rows[row],) * len(laid),
        canvas=Canvas(
            request.canvas.tokens[rows, :stop],
            asked[:, :stop].to(device),
            request.canvas.fixed[rows, :stop],
        ),
        rng=request.rng.select(rows),
        step=Scored(order, laid.to(device), nats),
        # that a text begins with a space is the same condition for all
        filters=tuple(f for f in request.plain if not isinstance(f, Allowed)),
        left=picked(request.left),
        hidden=picked(request.hidden),
        source=picked(request.source),
    )
    for _ in run(scored):
        pass
    return nats.sum(1)


@dataclass(frozen=True)
class Scored(Around):
    """A rule that writes given tokens and notes in `nats`, its output, how probable they were."""

    step: LeftToRight
    laid: Tensor  # [N, W]
    nats: Tensor = field(repr=False)  # [N, W] float64
    rows: Tensor | None = None  # [n, 1] where the block is
    columns: Tensor | None = None  # [n, S]
    exact = True

    def within(
        self, page: Canvas, rows: Sequence[int], starts: Sequence[int], width: int
    ) -> "Scored":
        """The rule for blocks of the page."""
        device = self.laid.device
        columns = torch.tensor(starts, device=device)[:, None] + torch.arange(width, device=device)
        last = self.laid.shape[1] - 1
        return replace(
            self,
            rows=torch.tensor(rows, device=device)[:, None],
            columns=columns.clamp_max(last),
        )

    def __call__(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        assert self.rows is not None, "placed by the loop"
        assert self.columns is not None, "placed by the loop"
        where, truth = seen.where, self.laid[self.rows, self.columns]
        own = seen.logits.double()
        logp = own.gather(1, truth[where][:, None])[:, 0] - own.logsumexp(1)
        rows = self.rows.expand_as(self.columns)
        self.nats[rows[where], self.columns[where]] = logp
        tokens = torch.where(where, truth, canvas.tokens)
        return replace(canvas, tokens=tokens, noisy=canvas.noisy & ~where)
