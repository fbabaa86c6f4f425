"""From a network to a denoiser: what it sees, and how its output is read.

A denoiser maps noisy tokens to logits of the clean token at each position. Wrappers differ in what
text they show the network (`given`), not in what callers must know.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError
from sfumato.models.attend import (
    HIDDEN,
    Attend,
    BlockCausal,
    Causal,
    NoisyBlocks,
    positions_from,
    row_positions,
)
from sfumato.models.attend import Full as Whole
from sfumato.models.cache import KeyValues
from sfumato.models.encoder_decoder import EncoderDecoder
from sfumato.models.source import Source
from sfumato.types import ABSENT, Integrand


@dataclass(frozen=True)
class Shadow:
    """Leave-one-out attention over 2L positions: the tokens, then L masks that shadow them.

    All see the text read before. Tokens see tokens. A shadow sees itself and every token but the
    one it stands for (WINO, arXiv 2507.18578). At masked positions that is the ordinary prediction.
    At decided ones it is the prediction as if they were masked in a network of one layer; in deeper
    ones their neighbours have seen them, and pass on some of it.
    """

    def allowed(self, query: Tensor, key: Tensor) -> Tensor | None:
        length, before = query.shape[1] // 2, key.shape[1] - query.shape[1]
        itself = torch.eye(length, dtype=torch.bool, device=query.device)
        none = torch.zeros_like(itself)
        seen = torch.cat((torch.cat((~none, none), 1), torch.cat((~itself, itself), 1)), 0)
        return torch.nn.functional.pad(seen, (before, 0), value=True)[None]


@dataclass(frozen=True)
class Full:
    """Joins the text around the tokens to them and runs the network over all of it."""

    model: nn.Module
    mask_id: int
    left: Tensor | None = None  # [B, P]
    right: Tensor | None = None  # [B, Q]
    left_hidden: Tensor | None = None  # [B, P] bool, left padding
    shift: bool = False  # an autoregressive network: its output at i is about i + 1
    attend: Attend | None = None
    source: Source | None = None  # what an encoder made of it

    @property
    def block_size(self) -> int | None:
        """Of a network that reads block after block."""
        attend = self.attend or getattr(self.model, "attend", None)
        return attend.size if isinstance(attend, BlockCausal) else None

    def given(
        self,
        left: Tensor | None = None,
        right: Tensor | None = None,
        left_hidden: Tensor | None = None,
    ) -> "Full":
        """Also seeing `left` before and `right` after the tokens; [B, P], padded on the left."""
        if left is not None:
            if left_hidden is None:
                left_hidden = torch.zeros_like(left, dtype=torch.bool)
            if self.left is not None and self.left_hidden is not None:
                left = torch.cat((self.left, left), 1)
                left_hidden = torch.cat((self.left_hidden, left_hidden), 1)
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
        if isinstance(self.model, EncoderDecoder):
            return replace(self, source=self.model.read(source))
        return self.given(**_as_prefix(source, self.mask_id))

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
        return TwoStream(self.model, self.mask_id, clean, size)

    def leave_one_out(
        self, tokens: Tensor, t: Tensor, where: Tensor, *, segments: Tensor | None = None
    ) -> Tensor:
        """Logits [N, V] at `where`, each about as if its position were masked: one wide forward.

        What `Shadow` says of deeper networks: an approximation, at about twice the cost.
        """
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
            **_reading(self.source),
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
            **_reading(self.source),
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
        before = torch.roll(tokens, 1, dims=1)
        starts = torch.zeros_like(tokens, dtype=torch.bool)
        starts[:, 0] = True
        if segments is not None:
            starts = starts | (segments != torch.roll(segments, 1, dims=1))
        return before.masked_fill(starts, self.mask_id)

    def _network(self, tokens: Tensor, t: Tensor, segments: Tensor | None, where: Tensor) -> Tensor:
        if self.block_size and self.left is not None:  # in training, earlier blocks are clean
            times = t[:, None].expand(tokens.shape).clone()
            times[:, : self.left.shape[1]] = 0
            t = times
        out = self.model(
            self._shifted(tokens, segments),
            t=t,
            segments=segments,
            where=where,
            attend=self.attend,
            **_reading(self.source),
        )
        return without_mask(out.logits, self.mask_id)


@dataclass(frozen=True)
class TwoStream:
    """Every block noisy in one pass, each seeing the clean text of the blocks before it.

    The clean text is read once, block by block, and the noisy text attends to its keys and values
    (BD3-LM, arXiv 2503.09573, section 3.2): L x 2L scores, and no output head on the clean half.
    """

    model: nn.Module
    mask_id: int
    clean: Tensor  # [B, L]
    size: int

    def score(
        self,
        tokens: Tensor,  # [B, L]
        t: Tensor,  # [B, L], one time for each block
        where: Tensor,  # [B, L] bool
        targets: Tensor,  # [N]
        weights: Tensor,  # [N]
        *,
        segments: Tensor | None = None,  # [B, L]
        integrand: Integrand | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Full.score`; blocks count from the start of each document."""
        if segments is None:
            segments = torch.zeros_like(tokens)
        positions, read, attend = positions_from(segments), None, Whole()
        if int(positions.max()) >= self.size:  # else no document has an earlier block to see
            read = self.model(
                self.clean,
                t=torch.zeros_like(t),
                segments=segments,
                where=torch.zeros_like(where),
                attend=BlockCausal(self.size),
            ).key_values
            attend = NoisyBlocks(self.size)
        out = self.model(
            tokens,
            t=t,
            segments=segments,
            positions=positions,
            where=where,
            labels=targets,
            weights=weights,
            excluded=(self.mask_id,),
            integrand=integrand,
            attend=attend,
            past=read,
        )
        return out.loss, out.nll, out.correct


@dataclass(frozen=True)
class Cached:
    """Reads each piece of the text on the left once, and keeps its keys and values.

    Exact only where text on the left does not see what follows, so for causal and block-causal
    models. A value: `given` returns a new denoiser, and nothing leaks between requests.
    """

    model: nn.Module
    mask_id: int
    attend: Attend
    shift: bool = False
    past: KeyValues | None = None
    last: Tensor | None = None  # [B, 1] the token before the next one
    source: Source | None = None

    def __post_init__(self):
        if self.attend.allowed(torch.zeros(1, 1), torch.ones(1, 1)) is None:
            raise ConfigError(
                "a cache needs a causal or block-causal model: in this one, text on the left sees "
                "what follows it; use denoisers.Full"
            )

    def given(
        self,
        left: Tensor | None = None,
        right: Tensor | None = None,
        left_hidden: Tensor | None = None,
    ) -> "Cached":
        """Also seeing `left` [B, P] before the tokens; only the first may be padded on its left."""
        if right is not None and right.shape[1]:
            raise ConfigError(
                "cached text cannot see what is on the right; decode with lookahead=False"
            )
        if left is None or not left.shape[1]:
            return self
        if left_hidden is None:
            left_hidden = torch.zeros_like(left, dtype=torch.bool)
        visible = (~left_hidden).sum(1)
        if isinstance(self.attend, BlockCausal) and bool((visible % self.attend.size).any()):
            raise ConfigError(
                f"{visible.tolist()} tokens on the left of the rows are not all multiples of the "
                f"block size {self.attend.size}, so a last block is not finished and cannot be "
                "cached; use denoisers.Full"
            )
        segments = None
        if bool(left_hidden.any()):
            segments = torch.zeros_like(left).masked_fill(left_hidden, HIDDEN)
            left = left.masked_fill(left_hidden, self.mask_id)  # what a shifted text starts from
        new = self._network(left, None, segments, torch.zeros_like(left, dtype=torch.bool))
        new = new.key_values
        past = new if self.past is None else self.past.extend(new)
        return replace(self, past=past, last=left[:, -1:])

    def conditioned(self, source: Tensor) -> "Cached":
        """Also reading a source [B, S], as `Full` does; before any text on the left."""
        if isinstance(self.model, EncoderDecoder):
            return replace(self, source=self.model.read(source))
        return self.given(**_as_prefix(source, self.mask_id))

    def __call__(
        self,
        tokens: Tensor,  # [B, L]
        t: Tensor,  # [B]
        where: Tensor | None = None,  # [B, L] bool
        *,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, L, V] or [N, V]."""
        return without_mask(self._network(tokens, t, segments, where).logits, self.mask_id)

    def _network(
        self, tokens: Tensor, t: Tensor | None, segments: Tensor | None, where: Tensor | None
    ) -> Any:
        if self.shift:
            first = torch.full_like(tokens[:, :1], self.mask_id) if self.last is None else self.last
            tokens = torch.cat((first, tokens[:, :-1]), 1)
        if t is None:
            t = torch.zeros(len(tokens), device=tokens.device)
        return self.model(
            tokens,
            t=t,
            segments=segments,
            where=where,
            attend=self.attend,
            past=self.past,
            **_reading(self.source),
        )


def without_mask(logits: Tensor, mask_id: int) -> Tensor:
    """float32 logits in which the mask token has probability 0."""
    logits = logits.to(torch.float32, copy=True)  # what the network returned may be its own
    logits[..., mask_id] = -torch.inf
    return logits


def autoregressive(model: nn.Module, mask_id: int) -> Full:
    """A causal network read as a denoiser: logits at i are about token i, given all before it."""
    return Full(model, mask_id).autoregressive()


def _rows(tensor: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape


def _reading(source: Source | None) -> dict[str, Source]:
    """An argument for networks that read a source; others have no such argument."""
    return {} if source is None else {"source": source}


def _as_prefix(source: Tensor, mask_id: int) -> dict[str, Tensor]:
    """A source [B, S] as text on the left, which is padded on its left."""
    hidden = source == ABSENT
    order = hidden.long().argsort(dim=1, descending=True, stable=True)  # what is absent goes first
    source, hidden = source.gather(1, order), hidden.gather(1, order)
    return {"left": source.masked_fill(hidden, mask_id), "left_hidden": hidden}
