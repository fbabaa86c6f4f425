"""What a network returns."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils.generic import ModelOutput

from sfumato.models.kv_cache import KeyValues


@dataclass
class DiffusionOutput(ModelOutput):
    """What `forward` returns; `logits` is [B, L, V], or [N, V] when `where` is given."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    nll: Tensor | None = None  # [N], with labels
    correct: Tensor | None = None  # [N] bool, with labels
    key_values: KeyValues | None = None
