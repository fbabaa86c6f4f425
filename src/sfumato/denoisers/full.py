"""From a network to a denoiser: what it sees, and how its output is read.

A denoiser maps noisy tokens to logits of the clean token at each position. Wrappers differ in what
text they show the network (`given`), not in what callers must know.
"""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.errors import ConfigError
from sfumato.models.attention import (
    HIDDEN,
    Attend,
    Bidirectional,
    BlockCausal,
    Causal,
    NoisyBlocks,
    positions_from,
    row_positions,
)
from sfumato.models.encoded_source import Source
from sfumato.models.encoder_decoder import EncoderDecoder
from sfumato.models.kv_cache import Reading, Store
from sfumato.rng import Rng
from sfumato.types import ABSENT, Integrand

TEXT, CLEAN, SOURCE = 0, 1, 2  # what a network's streams of dropout are for

NO_SHADOW = (
    "this network reads the token before each position, so that no position can be left out of a "
    "pass; use a step rule that does not verify"
)


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
        return F.pad(seen, (before, 0), value=True)[None]


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
        if isinstance(self.model, EncoderDecoder):
            own = None if self.rng is None else self.rng.fold(SOURCE)
            return self.sourced(self.model.read(source, own))
        return self.given(**_as_prefix(source, self.mask_id))

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
            **_drawing(self.rng, TEXT),
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


def shifted(tokens: Tensor, starts: Tensor, mask_id: int) -> Tensor:
    """The token before each of [B, L]: mask_id before the first, and where a document starts."""
    return F.pad(tokens[:, :-1], (1, 0), value=mask_id).masked_fill(starts, mask_id)


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
    shift: bool = False  # reads the token before each position, the first of a block a clean one
    rng: Rng | None = None  # of dropout in training, one key a row

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
        positions, read, attend = positions_from(segments), None, Bidirectional()
        clean = self.clean
        if self.shift:
            clean = shifted(clean, positions == 0, self.mask_id)
            tokens = shifted(tokens, positions == 0, self.mask_id)
            tokens = torch.where(positions % self.size == 0, clean, tokens)
        if int(positions.max()) >= self.size:  # else no document has an earlier block to see
            read = self.model(
                clean,
                t=torch.zeros_like(t),
                segments=segments,
                where=torch.zeros_like(where),
                attend=BlockCausal(self.size),
                **_drawing(self.rng, CLEAN),
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
            **_drawing(self.rng, TEXT),
        )
        return out.loss, out.nll, out.correct


@dataclass
class Memory:
    """Keys and values of what a network has read, written over in place where a text differs."""

    inputs: Tensor | None = None  # [B, C] the tokens that were read, -1 where none was
    store: Store | None = None

    def known(self, inputs: Tensor) -> Tensor:
        """How many of the first inputs [B, P] of each row have been read, [B]."""
        assert self.inputs is not None, "nothing has been read"
        both = min(self.inputs.shape[1], inputs.shape[1])
        return (self.inputs[:, :both] == inputs[:, :both]).long().cumprod(1).sum(1)


@dataclass(frozen=True)
class Cached:
    """An autoregressive network that reads every token once and keeps its keys and values.

    A value, of which only the memory changes: every pass first looks how far the memory has read
    this very text, and reads the rest with what is asked for. So nothing leaks between requests.
    """

    model: nn.Module
    mask_id: int
    text: Tensor | None = None  # [B, P] on the left; shorter rows end in anything
    lengths: Tensor | None = None  # [B] of the rows
    source: Source | None = None
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)

    def given(
        self,
        left: Tensor | None = None,
        right: Tensor | None = None,
        left_hidden: Tensor | None = None,
    ) -> "Cached":
        """Also seeing `left` [B, P] before the tokens, padded anywhere."""
        if right is not None and right.shape[1]:
            raise ConfigError(
                "cached text cannot see what is on the right; decode with lookahead=False"
            )
        if left is None or not left.shape[1]:
            return self
        length = torch.full_like(left[:, 0], left.shape[1])
        if left_hidden is not None:  # what is hidden goes to the end
            order = left_hidden.long().argsort(dim=1, stable=True)
            left, length = left.gather(1, order), (~left_hidden).sum(1)
        if self.text is None or self.lengths is None:
            return replace(self, text=left, lengths=length, memory=Memory())
        place = torch.arange(left.shape[1], device=left.device)
        text = F.pad(self.text, (0, left.shape[1]))
        text.scatter_(1, self.lengths[:, None] + place, left)
        return replace(self, text=text, lengths=self.lengths + length)

    def conditioned(self, source: Tensor) -> "Cached":
        """Also reading a source [B, S], as `Full` does."""
        if isinstance(self.model, EncoderDecoder):
            return self.sourced(self.model.read(source))
        return self.given(**_as_prefix(source, self.mask_id))

    def sourced(self, source: Source) -> "Cached":
        """Reading what an encoder made of a source, and so reading its text anew."""
        return replace(self, source=source, memory=Memory())

    @torch.no_grad()
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
            raise ConfigError("a cache holds one document a row; use denoisers.autoregressive")
        batch, length = tokens.shape
        wanted = torch.ones_like(tokens, dtype=torch.bool) if where is None else where
        inputs, first = self._inputs(tokens)
        memory, room = self.memory, int(self.model.config.max_position_embeddings)  # type: ignore[union-attr]
        longest = int(first.max()) + length
        if longest > room:
            raise ConfigError(
                f"{longest} positions, but the model was built for max_position_embeddings {room}; "
                "shorten the text"
            )
        if memory.store is None or len(memory.store.positions) != batch:
            memory.store, memory.inputs = Store.empty(batch, room, tokens.device), inputs[:, :0]
        start = torch.minimum(memory.known(inputs), first)
        width = int((first - start).max()) + length
        start = start.clamp_max(room - width)  # reads some again where a row has no room for all
        read = start[:, None] + torch.arange(width, device=tokens.device)
        at = first - start
        at = at[:, None] + torch.arange(length, device=tokens.device)
        logits = self.model(
            inputs.gather(1, read.clamp_max(inputs.shape[1] - 1)),
            t=torch.zeros(batch, device=tokens.device),  # as in training
            where=torch.zeros_like(read, dtype=torch.bool).scatter_(1, at, wanted),
            attend=Causal(),
            past=Reading(memory.store, start),
            **_reading(self.source),
        ).logits
        place = torch.arange(inputs.shape[1], device=tokens.device)
        memory.inputs = inputs.masked_fill(place > read[:, -1:], -1)
        logits = without_mask(logits, self.mask_id)
        return logits if where is not None else logits.view(batch, length, -1)

    def _inputs(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What the network reads [B, P + L]: mask_id, the text and the tokens, up to the last; and
        how many tokens of the text that is, [B]."""
        if self.text is None or self.lengths is None:
            return F.pad(tokens[:, :-1], (1, 0), value=self.mask_id), torch.zeros_like(tokens[:, 0])
        inputs = F.pad(self.text, (1, tokens.shape[1] - 1), value=self.mask_id)
        place = torch.arange(1, tokens.shape[1], device=tokens.device)
        return inputs.scatter_(1, self.lengths[:, None] + place, tokens[:, :-1]), self.lengths


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


def _drawing(rng: Rng | None, stream: int) -> dict[str, Rng]:
    """Likewise, for networks that drop out."""
    return {} if rng is None else {"rng": rng.fold(stream)}


def _as_prefix(source: Tensor, mask_id: int) -> dict[str, Tensor]:
    """A source [B, S] as text on the left."""
    hidden = source == ABSENT
    return {"left": source.masked_fill(hidden, mask_id), "left_hidden": hidden}
