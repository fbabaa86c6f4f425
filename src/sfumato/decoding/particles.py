"""Several canvases a text within a grammar, each with a weight, of which one is drawn in the end.

Within a grammar a step draws by what the model thinks of all positions now; what it would think
once they are written is not known yet. So some texts are written too often. How much so is known
afterwards: that is the weight of a canvas, and sequential Monte Carlo puts right with it what was
drawn (Del Moral, Doucet and Jasra, 2006; for language models Lew et al., arXiv 2306.03081).

Let p(x_P | c) be the decoder's own law of the tokens that a step writes at positions P of a canvas
c, and q(x_P | c) that within the grammar. A path of canvases has the law pi = prod p without the
grammar. What is wanted is pi given that its last canvas is a text of the grammar; what is drawn is
prod q, which is never zero where pi and the grammar allow a path. So w = prod p / q makes of paths
that were drawn paths of pi given the grammar, up to a constant, for every choice of P that looks at
the canvas and the logits, not at the tokens drawn. Here

    q(x_P | c) = prod_P m(x) Z(c with x_P) / Z(c),

m being the weights that a step draws by, and Z their sums over all texts of the grammar.

With K canvases, one drawn by its weight has the law wanted as K grows without bound, whatever the
time of resampling; its error falls like 1/K. For a perfect denoiser and one token a step that is
the model's joint law given the grammar. Canvases are resampled where the effective sample size of
their weights is below K / 2. There a weight is multiplied by the mass of the texts that complete
its canvas, by the laws that the step saw (a twisted target); the weight itself forgets that again.
Where canvases are written block by block, what was read of the blocks before cannot be exchanged:
there all canvases stay, and only the last draw is by weight.

Shapes: B rows, K canvases of each next to each other; L positions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfumato.decoding.constrained import Constrained
from sfumato.decoding.filters import Allowed, Temperature
from sfumato.decoding.grammar_draw import Draw, Drawn
from sfumato.decoding.request import Request, check_size
from sfumato.decoding.rules import rule_name
from sfumato.decoding.step import Around, Chooser, Prediction
from sfumato.decoding.unmask import Ancestral, FirstHitting, RandomOrder
from sfumato.errors import ConfigError
from sfumato.grammar.chains import FLOOR, Floats
from sfumato.rng import Rng
from sfumato.types import Canvas

_CANVASES = 5  # random streams of a request: of the canvases of a row, and of who is drawn
_CHOSEN = 6
_AGAIN = 4  # of a step, for resampling


def check_particles(request: Request) -> None:
    """Raise where weights would be wrong."""
    options, rule = request.options, request.step.rule
    if options.particles == 1:
        return
    cells = len(request.rows) * options.particles, request.canvas.tokens.shape[1]
    check_size(*cells, options.num_steps)
    right = isinstance(rule, Ancestral | FirstHitting | RandomOrder | Chooser)
    odd = rule.revises or rule.reopens or rule.verifies or not rule.absorbing
    for wrong, reason in (
        (options.free, "particles weigh texts of a grammar; give one, or leave particles out"),
        (options.temperature == 0, "particles are drawn; use a temperature above 0"),
        (options.approx_cache is not None, "particles know no approx_cache; leave it out"),
        (
            odd or not right,
            f"step '{rule_name(options.step or 'ancestral')}' looks at the tokens that it draws; "
            "particles need one that does not, such as 'left_to_right' or 'random'",
        ),
    ):
        if wrong:
            raise ConfigError(reason)


def written(
    request: Request, run: Callable[[Request], Iterator[Canvas]], in_blocks: bool
) -> Iterator[Canvas]:
    """The pages of a request, each row with `particles` canvases; `in_blocks`: one after another.

    On the way a row shows its heaviest canvas, and when all are finished the one that is drawn.
    """
    count = request.options.particles
    if count == 1:
        yield from run(request)
        return
    many, nats = multiplied(request, count, copies=not in_blocks)
    u = request.rng.fold(_CHOSEN).uniform(1)[:, 0].cpu().numpy()
    for page in run(many):
        own = nats[:, 0].numpy().reshape(-1, count)
        done = (~page.noisy).all(1).cpu().numpy().reshape(-1, count).all(1)
        drawn = (np.cumsum(_shares(own), 1) <= u[:, None]).sum(1).clip(max=count - 1)
        picked = np.where(done, drawn, own.argmax(1)) + count * np.arange(len(own))
        rows = torch.from_numpy(picked).to(page.tokens.device)
        yield Canvas(page.tokens[rows], page.noisy[rows], page.fixed[rows])


def multiplied(request: Request, count: int, copies: bool) -> tuple[Request, Tensor]:
    """The request with so many rows for each of its own, and the weights that writing it notes."""
    assert isinstance(request.step, Constrained), "a request within a grammar"
    device, canvas = request.canvas.tokens.device, request.canvas
    rows = torch.arange(len(request.rows), device=device).repeat_interleave(count)
    number = torch.arange(len(rows), device=device) % count

    def many(values: Any) -> Any:
        return None if values is None else values[rows]

    spans = [
        replace(span, row=span.row * count + own)
        for span in request.step.spans
        for own in range(count)
    ]
    nats = torch.zeros(len(rows), 2, dtype=torch.float64)
    rule = Weighted(replace(request.step, spans=tuple(spans)), count, copies, nats)
    heat = (change for change in request.sharpening if isinstance(change, Temperature))
    kept = (*request.plain, *heat)  # heat alone has a law to weigh by
    made = replace(
        request,
        rows=tuple(request.rows[row] for row in rows.tolist()),
        canvas=Canvas(many(canvas.tokens), many(canvas.noisy), many(canvas.fixed)),
        rng=Rng(request.rng.fold(_CANVASES).keys[rows]).fold(number),
        step=rule,
        filters=tuple(replace(f, at=f.at[rows]) if isinstance(f, Allowed) else f for f in kept),
        left=many(request.left),
        hidden=many(request.hidden),
        source=many(request.source),
    )
    return made, nats


@dataclass(frozen=True)
class Weighted(Around):
    """A rule within a grammar for rows of `count` canvases, which notes their weights in `nats`."""

    step: Constrained
    count: int
    copies: bool  # the canvases of a row are written together, and may be drawn anew
    nats: Tensor = field(repr=False)  # [B * K, 2] log of weights, and of what completes a canvas
    rows: Tensor | None = None  # [n] of the page that a block belongs to
    exact = False

    def within(
        self, page: Canvas, rows: Sequence[int], starts: Sequence[int], width: int
    ) -> "Weighted":
        step = self.step.within(page, rows, starts, width)
        return replace(self, step=step, rows=torch.tensor(list(rows)))

    def __call__(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        if self.step.block is None or not bool(seen.where.any()):
            return self.step(canvas, seen, t, s, rng)
        assert self.rows is not None, "placed by the loop"
        draw = self.step.draw(canvas, seen.where)
        drawn = draw.of(seen, rng)
        new = self.step.commit(draw, drawn, t, s, rng)
        own = seen.at(seen.where).float().log_softmax(1)  # the law without the grammar
        after = replace(draw, canvas=new)
        # one of several gaps may be a chain each
        chains = self.rows[torch.from_numpy(draw.block.rows[draw.rows])]
        gained = torch.from_numpy(_gained(draw, drawn, after, own))
        self.nats[:, 0].index_add_(0, chains, gained)
        if not self.copies:
            return new
        self.nats[chains, 1] = 0.0
        self.nats[:, 1].index_add_(0, chains, torch.from_numpy(_ahead(after, own)))
        return self.resampled(new, rng)

    def resampled(self, canvas: Canvas, rng: Rng) -> Canvas:
        """The canvas with the canvases of a row drawn anew where few have all of the weight."""
        nats, twist = self.nats.numpy().copy().T.reshape(2, -1, self.count)
        aim = nats + twist
        share = _shares(aim)
        poor = 1 / (share**2).sum(1) < self.count / 2
        poor &= canvas.noisy.any(1).cpu().numpy().reshape(aim.shape).any(1)
        if not poor.any():
            return canvas
        u = rng.fold(_AGAIN).uniform(1)[:: self.count, 0].cpu().numpy()
        # systematic: K points at equal distances, of which the first is drawn
        points = (np.arange(self.count) + u[:, None]) / self.count
        picked = (share.cumsum(1)[:, None] <= points[..., None]).sum(2).clip(max=self.count - 1)
        picked = np.where(poor[:, None], picked, np.arange(self.count))
        # who was drawn by aim stands for the mean of it; its own weight is without the twist
        best = aim.max(1, keepdims=True)
        level = best + np.log(np.exp(aim - best).mean(1, keepdims=True))
        ahead = np.take_along_axis(twist, picked, 1)
        new = np.where(poor[:, None], level - ahead, nats)
        self.nats[:] = torch.from_numpy(np.stack((new.ravel(), ahead.ravel()), 1))
        rows = picked + self.count * np.arange(len(picked))[:, None]
        rows = torch.from_numpy(rows.ravel()).to(canvas.tokens.device)
        memory = {key: kept[rows] for key, kept in canvas.memory.items()}
        return Canvas(canvas.tokens[rows], canvas.noisy[rows], canvas.fixed[rows], memory)


def _gained(draw: Draw, drawn: Drawn, after: Draw, own: Tensor) -> Floats:
    """[K] log p / q of what a step has written."""
    written = draw.open & ~after.open
    numbers = draw.tensor(draw.numbers[written])
    tokens = after.canvas.tokens.cpu().numpy()[draw.at][written]
    place = np.zeros(len(draw.automaton.classes), dtype=np.int64)
    place[draw.automaton.order] = np.arange(len(draw.automaton.order))
    p = own[numbers, draw.tensor(tokens)].double().clamp_min(2 * FLOOR).cpu().numpy()
    m = drawn.live[numbers, draw.tensor(place[tokens])].double().cpu().numpy()
    ended = drawn.ways[written] == draw.automaton.edges.ended
    m += np.where(ended, np.log(drawn.ending[written]), 0.0)
    nats = np.zeros(written.shape)
    nats[written] = p - m
    left = after.believe(drawn.live, drawn.ending, drawn.beliefs)
    return nats.sum(1) + drawn.beliefs.nats() - left.nats()


def _ahead(after: Draw, own: Tensor) -> Floats:
    """[K] log of the mass of the texts that complete a canvas, none of which pays for padding."""
    live, alive = after.live(own), after.alive(own)
    left = after.believe(live, after.ending(after.by_class(live), alive), None)
    return left.nats() - np.where(after.open, np.log(alive), 0.0).sum(1)


def _shares(nats: Floats) -> Floats:
    """Weights of each row's canvases [B, K], together 1."""
    found = np.exp(nats - nats.max(1, keepdims=True))
    return found / found.sum(1, keepdims=True)
