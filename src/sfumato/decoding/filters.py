"""Changes of the logits before anything is decided from them.

A filter takes logits [N, V] at the positions `where` [B, L] of a canvas and returns new logits;
nothing is modified in place, so the order of filters is the only thing that matters.

A filter that `sharpens` (temperature, top-k, top-p, min-p) changes what is drawn, not what the
model believes, so a rule that decides the surest positions first does not see it: at temperature 0
all would be sure. One that is `blind` reads the logits alone, wherever on a canvas they are.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sfumato.arguments import TokenId, check_fields, shown
from sfumato.errors import ConfigError
from sfumato.types import Canvas, Filter

WIDTHS = (64, 1024)  # most likely tokens that top-p looks at, before it looks at all

# what the options of the same names may be
Heat = Annotated[float, Field(ge=0, le=1e6, description="0 is greedy")]
Most = Annotated[int, Field(ge=1, le=2**31, description="leave it out to keep all")]
Nucleus = Annotated[float, Field(gt=0, le=1, description="1 keeps all")]
Floor = Annotated[float, Field(ge=0, le=1, description="0 keeps all")]
Penalty = Annotated[float, Field(gt=0, le=100, description="1 is none")]
Position = Annotated[int, Field(ge=0, lt=2**31)]
SMALLEST = 1e-4  # temperature that logits are divided by without overflow


def divided(filters: Iterable[Filter]) -> tuple[tuple[Filter, ...], tuple[Filter, ...]]:
    """Those that change what the model believes, and those that `sharpen` what is drawn."""
    kinds: tuple[list[Filter], list[Filter]] = ([], [])
    for change in filters:
        kinds[getattr(change, "sharpens", False)].append(change)
    return tuple(kinds[False]), tuple(kinds[True])


@dataclass(frozen=True)
class Temperature:
    """Divide by the temperature; 0 leaves the most likely token only (greedy)."""

    value: Heat
    sharpens = True
    blind = True

    def __post_init__(self):
        check_fields(self, value="temperature")
        if 0 < self.value < SMALLEST:
            raise ConfigError(
                f"temperature must be 0 or at least {SMALLEST}, got {self.value}; 0 is greedy"
            )

    @property
    def greedy(self) -> bool:
        return self.value == 0

    def __call__(self, logits: Tensor, canvas: Canvas, where: Tensor) -> Tensor:
        if self.value > 0:
            return logits / self.value
        best = logits.argmax(-1, keepdim=True)  # the first of equals: nothing is left to chance
        return torch.full_like(logits, -torch.inf).scatter_(-1, best, 0.0)


@dataclass(frozen=True)
class TopK:
    """Keep the k most likely tokens; of equals at the border, those with lower ids."""

    k: Most
    sharpens = True
    blind = True

    def __post_init__(self):
        check_fields(self, k="top_k")

    def __call__(self, logits: Tensor, canvas: Canvas, where: Tensor) -> Tensor:
        if self.k >= logits.shape[-1]:
            return logits
        count = torch.full_like(logits[:, 0], self.k, dtype=torch.int64)
        return _likeliest(logits, *logits.topk(self.k + 1, dim=-1), count)


@dataclass(frozen=True)
class TopP:
    """Keep the smallest set of tokens whose probability reaches p; at least one (nucleus)."""

    p: Nucleus
    sharpens = True
    blind = True

    def __post_init__(self):
        check_fields(self, p="top_p")

    def __call__(self, logits: Tensor, canvas: Canvas, where: Tensor) -> Tensor:
        if self.p == 1:
            return logits
        size, best = logits.shape[-1], logits.amax(-1, keepdim=True)
        wanted = self.p * (logits - best).double().exp_().sum(-1, keepdim=True)  # the best's is 1
        kept, open_ = torch.full_like(logits, -torch.inf), torch.ones_like(best, dtype=torch.bool)
        for width in (*(w for w in WIDTHS if w < size), size):
            rows = (open_ & (wanted <= width)).nonzero()[:, 0]  # so many cannot hold more
            if not len(rows):
                continue
            own = logits[rows] if len(rows) < len(logits) else logits
            values, order = own.topk(width) if width < size else own.sort(dim=-1, descending=True)
            held = (values - best[rows]).double().exp_().cumsum(-1)
            within = F.pad(held[:, :-1], (1, 0)) < wanted[rows]  # what more likely tokens hold
            found = ~within[:, -1] | (width == size)
            chosen = (own, values, order, within.sum(-1))
            kept[rows[found]] = _likeliest(*(each[found] for each in chosen))
            open_[rows[found]] = False
        return kept


def _likeliest(logits: Tensor, values: Tensor, order: Tensor, count: Tensor) -> Tensor:
    """Logits [N, V] of which the `count` [N] most likely are left; of equals at the border, those
    with lower ids. values and order [N, W] are of the most likely, one more than are left if there
    is one; which of equals come first there does not matter."""
    place, last = torch.arange(values.shape[1], device=values.device), count.clamp_min(1)[:, None]
    left = values.masked_fill(place >= count[:, None], -torch.inf)
    kept = torch.full_like(logits, -torch.inf).scatter_(-1, order, left)
    border = values.gather(1, last - 1)
    beyond = values.gather(1, last.clamp_max(values.shape[1] - 1))
    tied = ((beyond == border) & (border > -torch.inf) & (last < values.shape[1]))[:, 0]
    if bool(tied.any()):
        own, border, more = logits[tied], border[tied], (values > border).sum(1)
        equal, wanted = own == border, (count - more)[tied, None]
        inside = (own > border) | (equal & (equal.cumsum(-1, dtype=torch.int32) <= wanted))
        kept[tied] = own.masked_fill(~inside, -torch.inf)
    return kept


@dataclass(frozen=True)
class MinP:
    """Keep tokens at least p times as likely as the likeliest (arXiv 2407.01082)."""

    p: Floor
    sharpens = True
    blind = True

    def __post_init__(self):
        check_fields(self, p="min_p")

    def __call__(self, logits: Tensor, canvas: Canvas, where: Tensor) -> Tensor:
        if self.p == 0:
            return logits
        floor = logits.amax(-1, keepdim=True) + math.log(self.p)
        return logits.masked_fill(logits < floor, -torch.inf)


@dataclass(frozen=True)
class Repetition:
    """Make tokens that the canvas already shows less likely: logits / penalty where positive,
    times penalty where negative (CTRL, arXiv 1909.05858)."""

    penalty: Penalty

    def __post_init__(self):
        check_fields(self, penalty="repetition_penalty")
        if self.penalty < 0.01:
            raise ConfigError(
                f"repetition_penalty must be at least 0.01, got {self.penalty}; 1 is none"
            )

    def __call__(self, logits: Tensor, canvas: Canvas, where: Tensor) -> Tensor:
        rows = where.nonzero()[:, 0]
        shown = torch.zeros(len(canvas.tokens), logits.shape[-1], dtype=torch.bool).to(rows.device)
        at, place = (~canvas.noisy).nonzero(as_tuple=True)
        shown[at, canvas.tokens[at, place]] = True
        lower = torch.where(logits > 0, logits / self.penalty, logits * self.penalty)
        return torch.where(shown[rows], lower, logits)


@dataclass(frozen=True)
class Suppress:
    """Tokens that are never written: special ids, words a user bans."""

    ids: tuple[TokenId, ...]
    blind = True

    def __post_init__(self):
        check_fields(self, ids="suppress")

    def __call__(self, logits: Tensor, canvas: Canvas, where: Tensor) -> Tensor:
        if not self.ids:
            return logits
        return logits.index_fill(-1, torch.tensor(self.ids, device=logits.device), -torch.inf)


@dataclass(frozen=True)
class Forced:
    """Tokens that positions of every row must become: pairs of a position and a token's id."""

    tokens: Annotated[
        tuple[tuple[Position, TokenId], ...], Field(title="pairs of a position and a token's id")
    ]
    __post_init__ = check_fields

    def __call__(self, logits: Tensor, canvas: Canvas, where: Tensor) -> Tensor:
        places = where.nonzero()[:, 1]
        for position, token in self.tokens:
            only = torch.full_like(logits[:1], -torch.inf)
            only[:, token] = 0.0
            logits = torch.where((places == position)[:, None], only, logits)
        return logits


@dataclass(frozen=True)
class Allowed:
    """Tokens that alone may stand at some positions."""

    at: Tensor  # [B, L] bool
    ids: Tensor  # [V] bool

    def __post_init__(self):
        for name, shape in (("at", "[B, L]"), ("ids", "[V]")):
            given, ndim = getattr(self, name), shape.count(",") + 1
            if not (isinstance(given, Tensor) and (given.ndim, given.dtype) == (ndim, torch.bool)):
                raise ConfigError(f"{name} must be a tensor {shape} of bool, got {shown(given)}")

    def __call__(self, logits: Tensor, canvas: Canvas, where: Tensor) -> Tensor:
        width = where.shape[1]  # of a canvas that has grown, the first positions are meant
        at = F.pad(self.at, (0, max(0, width - self.at.shape[1])))[:, :width]
        return logits.masked_fill(at[where][:, None] & ~self.ids, -torch.inf)


@dataclass(frozen=True)
class Only:
    """Leaves what was chosen before alone, where something is drawn."""

    tokens: Tensor  # [B, L]
    sharpens = True

    def __call__(self, logits: Tensor, canvas: Canvas, where: Tensor) -> Tensor:
        width = self.tokens.shape[1]  # a page of whole blocks may be wider, by given filling
        own = self.tokens[where[:, :width]][:, None]
        return torch.full_like(logits, -torch.inf).scatter(-1, own, 0.0)
