"""How a decoder would write texts that are known: the true tokens, put where a step rule decides.

`likelihood.by_decoder` is the same for rules that only `choose`. Here a rule may also go by chance
or by what it remembers, as long as it does not look at what was drawn; and a model of blocks writes
all blocks of a text at once, because each of them only waits for true text before it.

Shapes: B rows of L positions; K blocks of S positions in a row, so B * K rows of S.
"""

from collections import deque
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sfumato.decoding.loops import denoise, generate
from sfumato.decoding.page import blank
from sfumato.decoding.step import Around, Chooser, Prediction, Step
from sfumato.decoding.times import even_times, one_each
from sfumato.decoding.unmask import Ancestral, Klass, RandomOrder, spread
from sfumato.denoisers.full import Full
from sfumato.denoisers.passes import shifted, without_mask
from sfumato.errors import ConfigError, DataError
from sfumato.models.attention import HIDDEN, BlockCausal, NoisyBlocks
from sfumato.models.kv_cache import KeyValues
from sfumato.noise.corruption import Corruption
from sfumato.rng import Rng
from sfumato.types import Batch, Canvas, Denoiser

ROOM = 2**27  # logits that are remembered, at most: 0.5 GB


def can_teacher_force(step: Step) -> bool:
    """Whether a rule decides where, and only then draws what: else no text has a likelihood."""
    return isinstance(step, Chooser | Klass | Ancestral | RandomOrder)


@torch.no_grad()
def teacher_forced(
    denoiser: Denoiser,
    corruption: Corruption,
    batch: Batch,
    step: Step,
    rng: Rng,  # one key a row
    *,
    num_steps: int | None = None,
    block: int | None = None,
    lookahead: bool = True,
) -> Tensor:
    """Nats of every row [B], float64, under the decoder `generate` is with the same arguments.

    Exact, for rules that go by the state and by what the model says of it (DUEL, arXiv 2603.01367).
    For rules of chance, of the order that was drawn: on average over draws a bound on -log p.
    """
    _check(corruption, step)
    if bool((batch.segments != batch.segments[:, :1]).any()):
        raise DataError("teacher_forced reads rows of one document each; cut them to one length")
    page = blank(corruption, batch.tokens, ~batch.trainable, rng)
    pages = generate(
        denoiser,
        replace(page, memory=_memory(batch.tokens)),
        Following(step),
        rng,
        num_steps=num_steps,
        block=block,
        lookahead=lookahead,
        filters=(_Truth(),),
    )
    return deque(pages, maxlen=1)[0].memory["nats"].sum(1)


@dataclass(frozen=True)
class BlockTexts:
    """Texts that a model of blocks has read once, for any number of rules."""

    own: "_BlocksAtOnce"
    denoiser: "Remembered"
    corruption: Corruption
    batch: Batch  # one document a row, from its first token

    @classmethod
    @torch.no_grad()
    def read(cls, denoiser: Full, corruption: Corruption, batch: Batch) -> "BlockTexts":
        """Read the clean text, block after block."""
        size = denoiser.block_size
        if size is None:
            raise ConfigError("BlockTexts is for models of blocks; use teacher_forced for others")
        if bool((batch.segments != 0).any()):
            raise DataError("BlockTexts reads rows of one document each; cut them to one length")
        if batch.tokens.shape[1] % size:
            raise DataError(
                f"rows of {batch.tokens.shape[1]} tokens are not whole blocks of {size}; cut them, "
                "or fill them as the model has learnt"
            )
        clean = batch.tokens
        if denoiser.shift:
            clean = shifted(clean, torch.zeros_like(batch.trainable), denoiser.mask_id)
        read = denoiser.model(
            clean,
            t=torch.zeros(batch.tokens.shape, device=batch.tokens.device),
            segments=batch.segments,
            where=torch.zeros_like(batch.trainable),
            attend=BlockCausal(size),
        ).key_values
        rows = len(batch.tokens)
        before = clean[:, ::size].reshape(-1, 1) if denoiser.shift else None
        own = _BlocksAtOnce(denoiser.model, denoiser.mask_id, size, rows, read, before)
        return cls(own, Remembered.of(own), corruption, batch)

    @torch.no_grad()
    def teacher_forced(self, step: Step, rng: Rng, *, steps_each: int | None = None) -> Tensor:
        """Nats [B] under the decoder `generate_blocks` is; rng has one key a row.

        `steps_each`: of every block (None: one for every noisy position).
        """
        _check(self.corruption, step)
        size, rows = self.own.size, self.own.rows
        tokens = self.batch.tokens.view(-1, size)
        noisy = self.batch.trainable.reshape(-1, size)
        place = torch.arange(len(tokens), device=tokens.device)
        blocks = len(tokens) // rows
        own = rng.select(place // blocks)
        page = blank(self.corruption, tokens, ~noisy, own)
        times = one_each(noisy) if steps_each is None else even_times(steps_each)
        pages = denoise(
            self.denoiser,
            replace(page, memory=_memory(tokens)),
            Following(step),
            times,
            own.fold(place % blocks),
            filters=(_Truth(),),
        )
        return deque(pages, maxlen=1)[0].memory["nats"].view(rows, -1).sum(1)


@dataclass(frozen=True)
class _BlocksAtOnce:
    """A denoiser of B * K blocks that see clean text before them; finished ones cost nothing."""

    model: nn.Module
    mask_id: int
    size: int
    rows: int
    read: KeyValues
    before: Tensor | None  # [B * K, 1] what a shifted network reads in front of each block

    def __call__(
        self,
        tokens: Tensor,  # [B * K, S]
        t: Tensor,  # [B * K]
        where: Tensor | None = None,
        *,
        segments: Tensor | None = None,
    ) -> Tensor:
        assert where is not None, "the loop always says where"
        if self.before is not None:
            tokens = torch.cat((self.before, tokens[:, :-1]), 1)
        shape = (self.rows, -1)
        active = where.any(1).view(shape)  # [B, K]
        kept = active.long().argsort(dim=1, descending=True, stable=True)
        kept = kept[:, : int(active.sum(1).max())]  # [B, A] blocks, from left to right
        place = kept[:, :, None] * self.size + torch.arange(self.size, device=tokens.device)
        place = place.flatten(1)  # [B, A * S]

        def taken(values: Tensor) -> Tensor:
            return values.reshape(shape).gather(1, place)

        filling = ~active.gather(1, kept).repeat_interleave(self.size, 1)
        logits = self.model(
            taken(tokens),
            t=taken(t[:, None].expand(tokens.shape)).float(),
            segments=torch.zeros_like(place).masked_fill(filling, HIDDEN),
            positions=place,
            where=taken(where) & ~filling,
            attend=NoisyBlocks(self.size),
            past=self.read,
        ).logits
        return without_mask(logits, self.mask_id)

    def given(self, left: Tensor | None = None, right: Tensor | None = None) -> "_BlocksAtOnce":
        raise ConfigError("blocks at once have their text already")


@dataclass(frozen=True)
class Remembered:
    """A denoiser that is asked once about each state of a row: rules meet in many of them.

    For one set of texts, whose rows stay where they are; the text around the tokens is told apart
    by its length alone.
    """

    denoiser: Denoiser
    told_time: bool  # the network is, so that the same tokens at another time are another state
    seen: dict[tuple[object, ...], Tensor]  # logits [n, V] of a row
    around: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, denoiser: "Full | _BlocksAtOnce") -> "Remembered":
        """Nothing is known yet."""
        return cls(denoiser, denoiser.model.config.time_conditioned, {})  # type: ignore[union-attr]

    def __call__(
        self,
        tokens: Tensor,
        t: Tensor,
        where: Tensor | None = None,
        *,
        segments: Tensor | None = None,
    ) -> Tensor:
        assert where is not None, "the loop always says where"
        rows = where.any(1).nonzero()[:, 0].tolist()
        times = t.tolist() if self.told_time else [0.0] * len(tokens)
        states, wanted = tokens.cpu().numpy(), where.cpu().numpy()
        keys: list[tuple[object, ...]] = [
            (self.around, row, times[row], states[row].tobytes(), wanted[row].tobytes())
            for row in rows
        ]
        new = [n for n, key in enumerate(keys) if key not in self.seen]
        if new:
            fresh = torch.zeros_like(where)
            index = torch.tensor([rows[n] for n in new], device=where.device)
            fresh[index] = where[index]
            logits = self.denoiser(tokens, t, fresh)
            known = sum(one.numel() for one in self.seen.values())
            if known + logits.numel() > ROOM:
                kept = {key: self.seen[key] for key in keys if key in self.seen}
                self.seen.clear()
                self.seen.update(kept)
            parts = logits.split(fresh[index].sum(1).tolist())
            self.seen.update(zip((keys[n] for n in new), parts, strict=True))
        return torch.cat([self.seen[key] for key in keys])

    def given(self, left: Tensor | None = None, right: Tensor | None = None) -> "Remembered":
        widths = (0 if text is None else text.shape[1] for text in (left, right))
        around = tuple(a + b for a, b in zip(self.around, widths, strict=True))
        return replace(self, denoiser=self.denoiser.given(left, right), around=around)


@dataclass(frozen=True)
class Following(Around):
    """A rule whose tokens are the true ones, remembering how probable they were."""

    def __call__(self, canvas: Canvas, seen: Prediction, t: Tensor, s: Tensor, rng: Rng) -> Canvas:
        after = self.step(canvas, seen, t, s, rng)
        decided = canvas.noisy & ~after.noisy
        own, truth = seen.logits[decided[seen.where]].double(), canvas.memory["truth"][decided]
        nll = own.logsumexp(-1) - own.gather(-1, truth[:, None])[:, 0]
        nats = torch.where(decided, spread(nll, decided, 0.0), canvas.memory["nats"])
        return replace(after, memory={**after.memory, "nats": nats})


@dataclass(frozen=True)
class _Truth:
    """A filter that leaves the true token alone, where something is drawn."""

    sharpens = True

    def __call__(self, logits: Tensor, canvas: Canvas, where: Tensor) -> Tensor:
        truth = canvas.memory["truth"][where][:, None]
        return torch.full_like(logits, -torch.inf).scatter(-1, truth, 0.0)


def _memory(tokens: Tensor) -> dict[str, Tensor]:
    return {
        "truth": tokens,
        "nats": torch.zeros(tokens.shape, dtype=torch.float64).to(tokens.device),
    }


def _check(corruption: Corruption, step: Step) -> None:
    if not corruption.absorbing:
        raise ConfigError(
            "only masked diffusion can be teacher-forced: other noise is revised until the "
            "last step"
        )
    if not can_teacher_force(step):
        raise ConfigError(
            f"{type(step).__name__} chooses or revises positions by the drawn tokens, so its texts "
            "have no likelihood; use a rule that decides where before it draws, as Threshold"
        )
