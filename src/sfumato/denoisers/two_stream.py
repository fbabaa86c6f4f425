"""Every block of a text noisy in one pass: how models of blocks are trained and scored."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.denoisers.passes import CLEAN, TEXT, dropping_out, shifted
from sfumato.models.attention import Bidirectional, BlockCausal, NoisyBlocks, positions_from
from sfumato.rng import Rng
from sfumato.types import Integrand


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
                **dropping_out(self.rng, CLEAN),
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
            **dropping_out(self.rng, TEXT),
        )
        return out.loss, out.nll, out.correct
