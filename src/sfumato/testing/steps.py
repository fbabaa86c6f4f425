"""What a step rule must keep."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sfumato.decoding.loops import denoise
from sfumato.decoding.page import blank
from sfumato.decoding.step import FLAGS, Prediction, Step
from sfumato.decoding.times import even_times
from sfumato.noise.corruption import Corruption
from sfumato.rng import Rng
from sfumato.testing.claims import Undisturbed, expect, forward_law, kind, letters
from sfumato.types import Canvas


def check_step(step: Step, corruption: Corruption, *, revises: bool = False) -> None:
    """A rule decides noisy positions from logits it asked for, writes nothing else, and ends.

    `revises`: the rule may take decisions back, as one that says so itself. A rule that says it is
    `exact` must also draw from the law of a perfect denoiser. Give the corruption a small
    vocabulary (4 to 8 tokens).
    """
    expect(isinstance(step, Step), f"a rule is an object derived from Step; got {step!r}")
    for name in FLAGS:
        said = getattr(step, name)
        expect(isinstance(said, bool), f"{name} must be True or False; got {said!r}")
    revises = revises or step.revises
    rng = Rng.from_seed(1, 6)
    canvas = _half_done(corruption, rng)
    network = _Network.random(corruption)
    watched = _Watched(step, corruption, revises)
    with Undisturbed("a step"):
        first = _run(watched, network, canvas, rng)
    again = _run(watched, network, canvas, rng)
    expect(
        torch.equal(first.tokens, again.tokens),
        "the same rng must give the same text: keep no state, and draw from `rng` alone",
    )
    for row in range(len(canvas.tokens)):
        only = torch.tensor([row])
        alone = _run(watched, network, _rows(canvas, only), rng.select(only), only)
        expect(
            torch.equal(alone.tokens, first.tokens[only]),
            "a row must become what it becomes alone, whatever its neighbours, their keys and "
            f"their times; row {row} gives {alone.tokens[0].tolist()} alone and "
            f"{first.tokens[row].tolist()} in a batch",
        )
    text = letters(corruption).repeat(_LENGTH)[:_LENGTH]
    written = _run(watched, _Network.certain(corruption, text), canvas, rng).tokens
    expect(
        torch.equal(written[canvas.noisy], text.expand_as(written)[canvas.noisy]),
        f"a rule must write what a model is certain of, {text.tolist()}; got {written.tolist()}",
    )
    if step.exact:
        _check_law(step, corruption)


_LENGTH = 6  # positions of the canvases that rules are tried on


@dataclass(frozen=True)
class _Network:
    """Logits that depend on every token of a row, worked out row by row: bitwise the same in any
    batch."""

    table: Tensor  # [L (read), V (token), L (about), V]
    mask_id: int

    @classmethod
    def random(cls, corruption: Corruption) -> "_Network":
        size = corruption.vocab_size
        draws = Rng.from_seed(0, _LENGTH * size).uniform(_LENGTH, size)
        return cls(3 * draws.view(_LENGTH, size, _LENGTH, size), corruption.mask_id)

    @classmethod
    def certain(cls, corruption: Corruption, text: Tensor) -> "_Network":
        size = corruption.vocab_size
        answer = 60.0 / _LENGTH * one_hot(text, size).double()
        return cls(answer.expand(_LENGTH, size, _LENGTH, size), corruption.mask_id)

    def __call__(self, tokens: Tensor, where: Tensor) -> Tensor:
        places = torch.arange(_LENGTH)
        pairs = zip(tokens, where, strict=True)
        logits = torch.cat([self.table[places, row].sum(0)[wanted] for row, wanted in pairs])
        return logits.float().index_fill(-1, torch.tensor([self.mask_id]), -torch.inf)


@dataclass(frozen=True)
class _Watched:
    """A rule under watch: what it may and may not do in one call."""

    step: Step
    corruption: Corruption
    revises: bool

    def told(self, canvas: Canvas, t: Tensor, rng: Rng) -> None:
        times = self.step.told(canvas, t, rng)
        expect(
            times.shape == t.shape and bool(((times >= 0) & (times <= 1)).all()),
            f"told must return {list(t.shape)} times in [0, 1]; got {times}",
        )

    def wanted(self, canvas: Canvas, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        before = _copy(canvas)
        where = self.step.wanted(canvas, t, s, rng)
        expect(_same(canvas, before), "wanted must not write into the canvas")
        expect(
            where.shape == canvas.tokens.shape and where.dtype == torch.bool,
            f"wanted must return {list(canvas.tokens.shape)} bool; got {kind(where)}",
        )
        expect(not bool((where & canvas.fixed).any()), "wanted must not name a fixed position")
        return where

    def __call__(
        self, canvas: Canvas, where: Tensor, logits: Tensor, t: Tensor, s: Tensor, rng: Rng
    ) -> Canvas:
        before, logits_before = _copy(canvas), logits.clone()
        new = self.step(canvas, Prediction(logits, where, canvas), t, s, rng)
        expect(_same(canvas, before), "a step must return a new canvas, not write into the old one")
        expect(torch.equal(logits, logits_before), "a step must not write into the logits")
        expect(
            new.tokens.shape == canvas.tokens.shape and new.tokens.dtype == torch.int64,
            f"a step must keep tokens {kind(canvas.tokens)}; got {kind(new.tokens)}",
        )
        expect(new.noisy.dtype == torch.bool, f"noisy must stay bool; got {new.noisy.dtype}")
        self._check_places(canvas, where, new)
        left = int(new.noisy[s <= 0].sum())
        expect(left == 0, f"nothing may be noisy after s = 0; {left} positions are")
        return new

    def _check_places(self, canvas: Canvas, where: Tensor, new: Canvas) -> None:
        expect(
            torch.equal(new.fixed, canvas.fixed)
            and torch.equal(new.tokens[canvas.fixed], canvas.tokens[canvas.fixed])
            and not bool((new.noisy & canvas.fixed).any()),
            "fixed positions must never be written",
        )
        mask_id, decided = self.corruption.mask_id, ~new.noisy & ~new.fixed
        expect(bool((new.tokens[decided] != mask_id).all()), "the mask token must never be decided")
        unasked = canvas.noisy & ~new.noisy & ~where
        expect(
            not bool(unasked.any()),
            "a position was decided whose logits `wanted` did not name: [row, place] "
            f"{unasked.nonzero().tolist()[:1]}",
        )
        if self.corruption.absorbing:
            expect(
                bool((new.tokens[new.noisy] == mask_id).all()),
                "positions still noisy must hold the mask token",
            )
        kept = (new.tokens == canvas.tokens) & ~new.noisy | canvas.noisy
        finished = ~canvas.noisy.any(1)
        expect(
            self.step.reopens or bool(kept[finished].all()),
            "a row with nothing noisy is finished: leave it alone, or say reopens = True",
        )
        expect(
            self.revises or bool(kept.all()),
            "decided positions must stay as they are; if taking decisions back is the point, "
            "the rule has to say revises = True",
        )


def _run(
    step: _Watched, network: _Network, canvas: Canvas, rng: Rng, rows: Tensor | None = None
) -> Canvas:
    """Five steps, every row at its own times: (1 - u) ** (1 + b / 2) for row b."""
    power = 1 + (torch.arange(len(canvas.tokens)) if rows is None else rows).double() / 2
    for number in range(5):
        if not (step.step.reopens or bool(canvas.noisy.any())):
            break
        t, s = (1 - number / 5) ** power, (1 - (number + 1) / 5) ** power
        draws = rng.fold(number)
        step.told(canvas, t, draws)
        where = step.wanted(canvas, t, s, draws)
        canvas = step(canvas, where, network(canvas.tokens, where), t, s, draws)
    return canvas


def _half_done(corruption: Corruption, rng: Rng) -> Canvas:
    """Six rows: blank, with given text in front or inside, half decided, mixed, and finished."""
    choices = letters(corruption)
    text = choices[(rng.fold(7).uniform(_LENGTH) * len(choices)).long()]
    fixed = torch.zeros(len(text), _LENGTH, dtype=torch.bool)
    fixed[1, :2] = fixed[2, 3] = fixed[4, ::2] = True
    canvas = blank(corruption, text, fixed, rng.fold(8))
    decided = torch.zeros_like(fixed)
    decided[3, 1:4] = decided[4, 1] = decided[5] = True
    tokens = torch.where(decided, text, canvas.tokens)
    return replace(canvas, tokens=tokens, noisy=canvas.noisy & ~decided)


def _check_law(
    step: Step, corruption: Corruption, samples: int = 4000, num_steps: int = 48
) -> None:
    """Three positions whose tokens lean on each other, and a perfect denoiser of their law."""
    texts = torch.cartesian_prod(*[letters(corruption)[:3]] * 3)
    law = (2.5 * Rng.from_seed(3).uniform(len(texts))[0]).exp()
    law = law / law.sum()
    rng = Rng.from_seed(2, samples)
    nothing = torch.zeros(samples, 3, dtype=torch.bool)
    canvas = blank(corruption, nothing.long(), nothing, rng.fold(0))
    oracle = _Oracle(corruption, texts, law)
    *_, last = denoise(oracle, canvas, step, even_times(num_steps), rng.fold(1))
    number = (last.tokens[:, None] == texts).all(-1).long().argmax(1)
    seen = torch.bincount(number, minlength=len(texts)) / samples
    far = float((seen - law).abs().sum() / 2)
    chance = float((law * (1 - law) / samples).sqrt().sum()) * 0.4  # mean distance of true draws
    expect(
        far < 2 * chance + 0.5 / num_steps,
        f"exact is True, but with a perfect denoiser the texts are {far:.3f} away from its law in "
        f"total variation, where chance makes {chance:.3f}: draw from the logits, choose positions "
        "without looking at what was drawn, decide few at a time, or say exact = False",
    )


@dataclass(frozen=True)
class _Oracle:
    """The perfect denoiser of a law over short texts, by Bayes' rule."""

    corruption: Corruption
    texts: Tensor  # [S, L]
    law: Tensor  # [S]

    def __call__(
        self,
        tokens: Tensor,
        t: Tensor,
        where: Tensor | None = None,
        *,
        segments: Tensor | None = None,
    ) -> Tensor:
        rows = torch.arange(len(tokens))[:, None]
        weight = self.law.expand(len(tokens), -1)
        kernel = forward_law(self.corruption, t)  # [B, x_0, x_t]
        for place in range(tokens.shape[1]):
            weight = weight * kernel[rows, self.texts[:, place], tokens[:, place, None]]
        clean = one_hot(self.texts, self.corruption.vocab_size).double()
        probs = torch.einsum("bs,slv->blv", weight / weight.sum(1, keepdim=True), clean)
        return probs.log() if where is None else probs.log()[where]

    def given(self, left: Tensor | None = None, right: Tensor | None = None) -> "_Oracle":
        raise AssertionError("a rule must not ask for another denoiser")

    def leave_one_out(self, tokens: Tensor, t: Tensor, where: Tensor) -> Tensor:
        return self(tokens, t, where)


def _rows(canvas: Canvas, rows: Tensor) -> Canvas:
    memory = {name: kept[rows] for name, kept in canvas.memory.items()}
    return Canvas(canvas.tokens[rows], canvas.noisy[rows], canvas.fixed[rows], memory)


def _copy(canvas: Canvas) -> Canvas:
    memory = {name: kept.clone() for name, kept in canvas.memory.items()}
    return Canvas(canvas.tokens.clone(), canvas.noisy.clone(), canvas.fixed.clone(), memory)


def _same(one: Canvas, other: Canvas) -> bool:
    pairs = [(one.tokens, other.tokens), (one.noisy, other.noisy), (one.fixed, other.fixed)]
    pairs += [(kept, other.memory[name]) for name, kept in one.memory.items()]
    return all(torch.equal(a, b) for a, b in pairs)
