"""What the package asks of a network: one contract, whoever built it.

`sfumato.testing.check_network` says in one sentence which part of it a network breaks. Our own
transformer, its packed form, the encoder-decoder and every model of transformers that
`models.hub` takes apart keep it.

Shapes: B rows, L positions, P positions read before, V vocabulary, N positions wanted.
"""

from typing import Any, Protocol

from torch import Tensor

from sfumato.models.attention import Attend
from sfumato.models.kv_cache import Past
from sfumato.models.output import DiffusionOutput


class Network(Protocol):
    """Noisy tokens in, logits of the clean token at each position out."""

    config: Any  # at least vocab_size and max_position_embeddings
    attend: Attend  # its own pattern: which positions see which
    reads_source: bool  # `read` makes a source of text, as an encoder does

    @property
    def block_size(self) -> int | None:
        """Positions of a block, of a network that reads block after block: 1 of next tokens."""
        ...

    @property
    def shift(self) -> bool:
        """Whether output i is about the token after input i."""
        ...

    def __call__(
        self,
        input_ids: Tensor,  # [B, L]
        *,
        t: Tensor | None = None,  # [B], or [B, L] where positions differ
        segments: Tensor | None = None,  # [B, L] document of each position; -1 is hidden
        where: Tensor | None = None,  # [B, L] bool: positions whose output is wanted
        positions: Tensor | None = None,  # [B, L], counted from the segments if None
        attend: Attend | None = None,  # another pattern than its own
        past: Past | None = None,  # keys and values of text read before, and room for more
    ) -> DiffusionOutput:
        """`logits` [B, L, V], or [N, V] at `where`; `key_values` of this pass.

        One that can be trained takes `labels` [N] and `weights` [N] at `where`, `excluded` ids of
        probability 0 and an `integrand`, and returns `loss`, `nll` and `correct` in place of
        logits, of which it never holds those of a whole batch.
        """
        ...
