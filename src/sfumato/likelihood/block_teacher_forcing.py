"""Teacher forcing of block models: all blocks of a text at once.

Each of them only waits for the true text before it.

Shapes: B rows of L positions; K blocks of S positions in a row, so B * K rows of S.
"""

from collections import deque
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sfumato.decoding.loops import denoise
from sfumato.decoding.page import blank
from sfumato.decoding.step import Step
from sfumato.decoding.times import even_times, one_each
from sfumato.denoisers.full import Full
from sfumato.denoisers.passes import shifted, without_mask
from sfumato.errors import ConfigError, DataError
from sfumato.likelihood.remembered import Remembered
from sfumato.likelihood.teacher_forcing import TeacherForced, Truth, check_teacher_forced, truth_of
from sfumato.models.attention import HIDDEN, BlockCausal, NoisyBlocks
from sfumato.models.kv_cache import KeyValues
from sfumato.noise.corruption import Corruption
from sfumato.rng import Rng
from sfumato.types import Batch


@dataclass(frozen=True)
class TeacherForcedBlocks:
    """Texts that a model of blocks has read once, for any number of rules."""

    own: "BlocksAtOnce"
    denoiser: Remembered
    corruption: Corruption
    batch: Batch  # one document a row, from its first token

    @classmethod
    @torch.no_grad()
    def read(cls, denoiser: Full, corruption: Corruption, batch: Batch) -> "TeacherForcedBlocks":
        """Read the clean text, block after block."""
        size = denoiser.block_size
        if size is None:
            raise ConfigError(
                "TeacherForcedBlocks is for models of blocks; use teacher_forced for others"
            )
        if bool((batch.segments != 0).any()):
            raise DataError(
                "TeacherForcedBlocks reads rows of one document each; cut them to one length"
            )
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
        own = BlocksAtOnce(denoiser.model, denoiser.mask_id, size, rows, read, before)
        asked = Remembered.of(own, told_time=denoiser.model.config.time_conditioned)  # type: ignore[union-attr]
        return cls(own, asked, corruption, batch)

    @torch.no_grad()
    def teacher_forced(self, step: Step, rng: Rng, *, steps_each: int | None = None) -> Tensor:
        """Nats [B] under the decoder `generate_blocks` is; rng has one key a row.

        `steps_each`: of every block (None: one for every noisy position).
        """
        check_teacher_forced(self.corruption, step)
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
            replace(page, memory=truth_of(tokens)),
            TeacherForced(step),
            times,
            own.fold(place % blocks),
            filters=(Truth(),),
        )
        return deque(pages, maxlen=1)[0].memory["nats"].view(rows, -1).sum(1)


@dataclass(frozen=True)
class BlocksAtOnce:
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

    def given(self, left: Tensor | None = None, right: Tensor | None = None) -> "BlocksAtOnce":
        raise ConfigError("blocks at once have their text already")
