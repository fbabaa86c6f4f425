"""Approximate caches for models of full attention (Fast-dLLM, arXiv 2505.22618, section 3.1).

In such a model every position sees every other one, so keys and values of text outside a block
change whenever the block does. These wrappers pretend that they do not: they are read in the first
pass over a block, and kept. What that costs in accuracy is measured, not assumed: see `Drift`.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.arguments import MOST, Kind
from sfumato.denoisers.full import Full
from sfumato.denoisers.passes import without_mask
from sfumato.errors import ConfigError
from sfumato.models.attention import positions_from, row_positions
from sfumato.models.kv_cache import KeyValues

KIND = Kind(Literal["prefix", "dual"])
Passes = Annotated[int, Field(ge=1, le=MOST, title="at least 1 pass")]
PASSES = Kind(Passes | None)


@dataclass
class Drift:
    """How far cached predictions are from exact ones: KL(exact || cached) in nats a position."""

    total: float = 0.0
    worst: float = 0.0
    count: int = 0

    @property
    def mean(self) -> float:
        return self.total / max(1, self.count)

    def add(self, exact: Tensor, cached: Tensor) -> None:
        logp, logq = exact.double().log_softmax(-1), cached.double().log_softmax(-1)
        apart = (logp.exp() * (logp - logq).nan_to_num(0.0)).sum(-1)
        self.total += float(apart.sum())
        self.worst = max(self.worst, float(apart.max()))
        self.count += len(apart)


@dataclass
class _Kept:
    """Keys and values of a block's first pass, and how often they have served since."""

    outside: KeyValues | None = None
    passes: int = 0


@dataclass(frozen=True)
class ApproximateCache:
    """A denoiser that reads the text around a block once in `refresh` passes (None: once).

    prefix: what is left of the block is kept, the block and what follows are read in every pass.
    dual: what follows is kept, too. `probe`: every so many passes the exact logits are computed as
    well, and `drift` is told of them.
    """

    full: Full
    kind: str = "dual"
    refresh: int | None = None
    probe: int | None = None
    drift: Drift = field(default_factory=Drift)
    kept: _Kept = field(default_factory=_Kept)

    def __post_init__(self):
        KIND.check("an approximate cache", self.kind)  # these alone: one is made for every block
        PASSES.check("refresh", self.refresh)
        PASSES.check("probe", self.probe)
        if self.full.shift or self.full.block_size:
            raise ConfigError(
                "approximate caches are for models of full attention; this one has an exact cache, "
                "which is used by itself"
            )

    def given(
        self,
        left: Tensor | None = None,
        right: Tensor | None = None,
        left_hidden: Tensor | None = None,
    ) -> "ApproximateCache":
        """The same around other text, with nothing kept."""
        return replace(self, full=self.full.given(left, right, left_hidden), kept=_Kept())

    def __call__(
        self,
        tokens: Tensor,  # [B, L]
        t: Tensor,  # [B]
        where: Tensor | None = None,  # [B, L] bool
        *,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, L, V] or [N, V]."""
        if segments is not None:
            raise ConfigError("an approximate cache reads one document a row, got segments")
        wanted = torch.ones_like(tokens, dtype=torch.bool) if where is None else where
        if self.kept.outside is None or self.kept.passes == self.refresh:
            logits = self._read(tokens, t, wanted)
        else:
            logits = self._reuse(tokens, t, wanted)
        self.kept.passes += 1
        return logits if where is not None else logits.view(*tokens.shape, -1)

    def _laid(self, tokens: Tensor, wanted: Tensor) -> "_Laid":
        joined, segments, at = self.full._join(tokens, None, wanted)
        if segments is None:
            positions = row_positions(joined.shape[0], joined.shape[1], joined.device)
        else:
            positions = positions_from(segments)
        start = 0 if self.full.left is None else self.full.left.shape[1]
        stop = joined.shape[1] if self.kind == "prefix" else start + tokens.shape[1]
        return _Laid(joined, segments, positions, at, slice(start, stop))

    def _read(self, tokens: Tensor, t: Tensor, wanted: Tensor) -> Tensor:
        """An exact pass over everything, whose keys and values are kept."""
        text = self._laid(tokens, wanted)
        out = self.full.model(
            text.tokens, t=t, segments=text.segments, positions=text.positions, where=text.where
        )
        self.kept.outside = out.key_values.without(text.fresh)
        self.kept.passes = 0
        return without_mask(out.logits, self.full.mask_id)

    def _reuse(self, tokens: Tensor, t: Tensor, wanted: Tensor) -> Tensor:
        text = self._laid(tokens, wanted)
        fresh = text.fresh
        out = self.full.model(
            text.tokens[:, fresh],
            t=t,
            segments=None if text.segments is None else text.segments[:, fresh],
            positions=text.positions[:, fresh],
            where=text.where[:, fresh],
            past=self.kept.outside,
        )
        logits = without_mask(out.logits, self.full.mask_id)
        if self.probe and self.kept.passes % self.probe == 0:
            self.drift.add(self.full(tokens, t, wanted), logits)
        return logits


@dataclass(frozen=True)
class _Laid:
    """The tokens among the text around them."""

    tokens: Tensor  # [B, P + L + Q]
    segments: Tensor | None
    positions: Tensor
    where: Tensor
    fresh: slice  # of positions that are read in every pass
