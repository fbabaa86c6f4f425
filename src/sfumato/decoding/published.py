"""WINO and KLASS as their authors' code decides, where `revising.Wino` and `steps.Klass` differ.

For comparisons with their papers; docs/conventions.md says what differs and why. Given greedy
decoding in one block they go the authors' way, step for step, until the schedule's last step: there
all that is left is decided, where their loops go on or leave masks behind.

The same conventions as `decoding/unmask.py`.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.decoding.logits import log_odds
from sfumato.decoding.remask import Wino
from sfumato.decoding.step import Prediction, commit, draw_at
from sfumato.decoding.unmask import Klass, highest, odds_of, spread
from sfumato.rng import Rng
from sfumato.types import Canvas

_UNSEEN = 30  # as many as WINO's authors take for decided before the first step
_TINY = 1e-12  # KLASS's authors add it to probabilities


@dataclass(frozen=True)
class WinoPublished(Wino):
    """WINO (arXiv 2507.18578) as in its authors' code: confidence is of the token that was drawn;
    fewer are taken back than the step BEFORE decided, and none where this one decides but one."""

    def __call__(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        where, tokens = seen.where, draw_at(canvas, canvas.noisy & seen.where, seen, rng)
        odds = spread(log_odds(seen.logits, tokens[where]), where, -torch.inf)
        left = canvas.noisy.sum(1)
        sure = (canvas.noisy & (odds > odds_of(self.draft))).sum(1)
        count = sure.minimum((0.7 * left).long().clamp(5, 20)).clamp_min(1)
        count = torch.where(s <= 0, left, count.minimum(left))
        doubted = where & ~canvas.noisy & (odds < odds_of(self.verify))
        known = canvas.memory.get("decided", torch.full_like(canvas.tokens, _UNSEEN))
        room = torch.where((count > 1) & (s > 0), doubted.sum(1).minimum(known[:, 0] - 1), 0)
        chosen, back = highest(odds, canvas.noisy, count), highest(-odds, doubted, room)
        new = commit(canvas, chosen, tokens)
        decided = count[:, None].expand(canvas.tokens.shape)
        return replace(
            new,
            tokens=new.tokens.masked_fill(back, self.mask_id),
            noisy=new.noisy | back,
            memory={**canvas.memory, "decided": decided},
        )


@dataclass(frozen=True)
class KlassPublished(Klass):
    """KLASS (arXiv 2511.05664) as in its authors' code: the surest of an even share only where
    nothing is stable, a share that does not shrink when the steps before decided more."""

    def __call__(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        where, left = seen.where, canvas.noisy.sum(1)
        probs = seen.logits.double().softmax(-1)
        calm, total = torch.zeros_like(canvas.tokens), left
        if "probs" in canvas.memory:
            total = canvas.memory["total"][:, 0]
            before = canvas.memory["probs"][where]
            moved = (probs * ((probs + _TINY).log() - (before + _TINY).log())).sum(-1)
            calm[where] = torch.where(moved < self.eps, canvas.memory["calm"][where] + 1, 0)
        odds = spread(log_odds(seen.logits), where, -torch.inf)
        stable = canvas.noisy & (calm >= self.patience) & (odds > odds_of(self.level))
        steps = (1 / (t - s).clamp_min(1e-9)).round().long()
        passed = ((1 - t) * steps).round().long()
        share = total // steps + (passed < total % steps)
        share = torch.where(s <= 0, left, torch.where(stable.any(1), 0, share))
        chosen = stable | highest(odds, canvas.noisy, share)
        whole = torch.zeros((*canvas.tokens.shape, probs.shape[-1]), dtype=torch.float64)
        whole = whole.to(probs.device)
        whole[where] = probs
        new = commit(canvas, chosen, draw_at(canvas, chosen, seen, rng))
        kept = {"probs": whole, "calm": calm, "total": total[:, None].expand(canvas.tokens.shape)}
        return replace(new, memory={**canvas.memory, **kept})
