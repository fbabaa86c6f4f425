"""From a network to a denoiser: what it sees, and how its output is read.

A denoiser maps noisy tokens to logits of the clean token at each position. Wrappers differ in what
text they show the network (`given`), not in what callers must know.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sfumato.denoisers.passes import (
    NO_SHADOW,
    SOURCE,
    TEXT,
    Shadow,
    as_prefix,
    dropping_out,
    reading_source,
    shifted,
    without_mask,
)
from sfumato.denoisers.two_stream import TwoStream
from sfumato.errors import ConfigError
from sfumato.models.attention import HIDDEN, Attend, Causal, positions_from, row_positions
from sfumato.models.encoded_source import Source
from sfumato.rng import Rng
from sfumato.types import Integrand


@dataclass(frozen=True)
class Full:
    """Joins the text around the tokens to them and runs the network over all of it."""

    model: nn.Module
    mask_id: int
    left: Tensor | None = None  # [B, P]
    right: Tensor | None = None  # [B, Q]
    left_hidden: Tensor | None = None  # [B, P] bool, padding: it goes first in its row
    shift: bool = False  # the network reads the token before each position
    attend: Attend | None = None
    source: Source | None = None  # what an encoder made of it
    rng: Rng | None = None  # of dropout in training, one key a row; torch's generator if None

    @classmethod
    def of(cls, model: nn.Module, mask_id: int) -> "Full":
        """A network as it was trained: one of next tokens reads causally."""
        attend = Causal() if model.block_size == 1 and model.shift else None
        return cls(model, mask_id, shift=bool(model.shift), attend=attend)

    @property
    def block_size(self) -> int | None:
        """Of a network that reads block after block; None where another pattern is laid over it."""
        return None if self.attend is not None else self.model.block_size  # type: ignore[return-value]

    @property
    def reads_source(self) -> bool:
        """Whether the network has an encoder for a source."""
        return bool(self.model.reads_source)

    def given(
        self,
        left: Tensor | None = None,
        right: Tensor | None = None,
        left_hidden: Tensor | None = None,
    ) -> "Full":
        """Also seeing `left` before and `right` after the tokens; [B, P], padded anywhere."""
        if left is not None:
            padded = left_hidden is not None
            if left_hidden is None:
                left_hidden = torch.zeros_like(left, dtype=torch.bool)
            if self.left is not None and self.left_hidden is not None:
                left = torch.cat((self.left, left), 1)
                left_hidden = torch.cat((self.left_hidden, left_hidden), 1)
            if padded:  # what is hidden goes first: positions count on over text in one piece only
                order = left_hidden.long().argsort(dim=1, descending=True, stable=True)
                left, left_hidden = left.gather(1, order), left_hidden.gather(1, order)
        else:
            left, left_hidden = self.left, self.left_hidden
        if right is None:
            right = self.right
        elif self.right is not None:
            right = torch.cat((right, self.right), 1)
        return replace(self, left=left, right=right, left_hidden=left_hidden)

    def conditioned(self, source: Tensor) -> "Full":
        """Also reading a source [B, S], `ABSENT` where it has no token.

        The network's encoder reads it, here and once; without one it is text on the left.
        """
        if self.reads_source:
            own = None if self.rng is None else self.rng.fold(SOURCE)
            return self.sourced(self.model.read(source, own))  # type: ignore[operator]
        return self.given(**as_prefix(source, self.mask_id))

    def sourced(self, source: Source) -> "Full":
        """Reading what an encoder made of a source."""
        return replace(self, source=source)

    def __call__(
        self,
        tokens: Tensor,  # [B, L]
        t: Tensor,  # [B]
        where: Tensor | None = None,  # [B, L] bool
        *,
        segments: Tensor | None = None,  # [B, L]
    ) -> Tensor:
        """Logits [B, L, V] or [N, V]; rows without a wanted position cost nothing."""
        wanted = torch.ones_like(tokens, dtype=torch.bool) if where is None else where
        active = wanted.any(1)
        if not bool(active.all()):
            rows = active.nonzero()[:, 0]
            return self._select(rows)(
                tokens[rows], t[rows], wanted[rows], segments=_rows(segments, rows)
            )
        joined, joined_segments, at = self._join(tokens, segments, wanted)
        logits = self._network(joined, t, joined_segments, at)
        return logits if where is not None else logits.view(*tokens.shape, -1)

    def autoregressive(self) -> "Full":
        """The same network read causally: logits at i are about token i, given all before it."""
        return replace(self, shift=True, attend=Causal())

    def beside(self, other: "Full") -> "Full | None":
        """One denoiser of these rows, then those of another; None where one forward cannot."""
        same = self.model is other.model and (self.shift, self.attend) == (
            other.shift,
            other.attend,
        )
        own = (self.left, self.right, self.left_hidden)
        theirs = (other.left, other.right, other.left_hidden)
        if not same or (self.source is None) != (other.source is None):
            return None
        if any(_shape(one) != _shape(two) for one, two in zip(own, theirs, strict=True)):
            return None
        left, right, hidden = (
            None if one is None or two is None else torch.cat((one, two))
            for one, two in zip(own, theirs, strict=True)
        )
        source = None
        if self.source is not None and other.source is not None:
            source = self.source.beside(other.source)
        return replace(self, left=left, right=right, left_hidden=hidden, source=source)

    def two_stream(self, clean: Tensor, size: int) -> "TwoStream":
        """The same network reading every block of `size` at once, each after clean text [B, L]."""
        return TwoStream(self.model, self.mask_id, clean, size, self.shift, self.rng)

    def leave_one_out(
        self, tokens: Tensor, t: Tensor, where: Tensor, *, segments: Tensor | None = None
    ) -> Tensor:
        """Logits [N, V] at `where`, each about as if its position were masked: one wide forward.

        What `Shadow` says of deeper networks: an approximation, at about twice the cost.
        """
        if self.shift:
            raise ConfigError(NO_SHADOW)
        joined, segments, at = self._join(tokens, segments, where)
        if segments is None:
            positions = row_positions(joined.shape[0], joined.shape[1], joined.device)
        else:
            positions = positions_from(segments)
            segments = torch.cat((segments, segments), 1)
        masks = torch.full_like(joined, self.mask_id)
        logits = self.model(
            torch.cat((joined, masks), 1),
            t=t,
            segments=segments,
            positions=torch.cat((positions, positions), 1),
            where=torch.cat((torch.zeros_like(at), at), 1),
            attend=Shadow(),
            **reading_source(self.source),
        ).logits
        return without_mask(logits, self.mask_id)

    def score(
        self,
        tokens: Tensor,  # [B, L]
        t: Tensor,  # [B]
        where: Tensor,  # [B, L] bool
        targets: Tensor,  # [N]
        weights: Tensor,  # [N]
        *,
        segments: Tensor | None = None,  # [B, L]
        integrand: Integrand | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of weights * nll with gradient, nll [N], correct [N]; logits live in chunks only."""
        joined, joined_segments, at = self._join(tokens, segments, where)
        out = self.model(
            self._shifted(joined, joined_segments),
            t=t,
            segments=joined_segments,
            where=at,
            labels=targets,
            weights=weights,
            excluded=(self.mask_id,),
            integrand=integrand,
            attend=self.attend,
            **reading_source(self.source),
            **dropping_out(self.rng, TEXT),
        )
        return out.loss, out.nll, out.correct

    def _select(self, rows: Tensor) -> "Full":
        return replace(
            self,
            left=_rows(self.left, rows),
            right=_rows(self.right, rows),
            left_hidden=_rows(self.left_hidden, rows),
            source=None if self.source is None else self.source.rows(rows),
        )

    def _join(
        self, tokens: Tensor, segments: Tensor | None, where: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """[left, tokens, right], their segments, and `where` among them."""
        if self.left is None and self.right is None:
            return tokens, segments, where
        if segments is None:
            segments = torch.zeros_like(tokens)
        parts, kinds, wanted = [tokens], [segments], [where]
        if self.left is not None and self.left_hidden is not None:
            parts.insert(0, self.left)
            first = segments[:, :1].expand(self.left.shape)
            kinds.insert(0, first.masked_fill(self.left_hidden, HIDDEN))
            wanted.insert(0, torch.zeros_like(self.left_hidden))
        if self.right is not None:
            parts.append(self.right)
            kinds.append(segments[:, -1:].expand(self.right.shape))
            wanted.append(torch.zeros_like(self.right, dtype=torch.bool))
        together = torch.cat(kinds, 1)
        alone = not bool((together != together[:, :1]).any())
        return torch.cat(parts, 1), None if alone else together, torch.cat(wanted, 1)

    def _shifted(self, tokens: Tensor, segments: Tensor | None) -> Tensor:
        """For an autoregressive network: the token before each; a document starts at mask_id."""
        if not self.shift:
            return tokens
        starts = torch.zeros_like(tokens, dtype=torch.bool)
        if segments is not None:
            starts = segments != torch.roll(segments, 1, dims=1)
        return shifted(tokens, starts, self.mask_id)

    def _network(self, tokens: Tensor, t: Tensor, segments: Tensor | None, where: Tensor) -> Tensor:
        if isinstance(self.attend, Causal):  # in training, all that it sees is clean
            t = torch.zeros_like(t)
        if self.block_size and self.left is not None:  # ... and earlier blocks are
            times = t[:, None].expand(tokens.shape).clone()
            times[:, : self.left.shape[1]] = 0
            t = times
        out = self.model(
            self._shifted(tokens, segments),
            t=t,
            segments=segments,
            where=where,
            attend=self.attend,
            **reading_source(self.source),
        )
        return without_mask(out.logits, self.mask_id)


def autoregressive(model: nn.Module, mask_id: int) -> Full:
    """A causal network read as a denoiser: logits at i are about token i, given all before it."""
    return Full(model, mask_id).autoregressive()


def _rows(tensor: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape
