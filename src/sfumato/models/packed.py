"""The backbone for inference: the same function in fewer and faster operations.

A pass over one block of a small model is a long row of tiny operations: what each costs is the
call, and reading the weights. Here the scales of norms that stand before a matrix are multiplied
into it, queries and keys are normalised and turned together, and on a CPU oneDNN lays out the
weights once as its products want them.

Shapes: B rows, L positions, D width, H heads, E head width, N positions wanted.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.devices import find_dtype
from sfumato.models.attend import Attend
from sfumato.models.cache import Before, KeyValues, Layer, Past
from sfumato.models.transformer import (
    Attention,
    Block,
    DiffusionOutput,
    DiffusionTransformer,
    RMSNorm,
)


class Product:
    """x [N, I] -> x @ weight.T [N, O].

    On a CPU by the products that torch.compile takes for frozen weights: for 8 positions of a small
    model in half the time of `linear`, in float32 and in bfloat16.
    """

    def __init__(self, weight: Tensor, rows: int):
        """Laid out for some `rows` at a time; any number works."""
        self.packed = _packs(weight)
        if self.packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
        self.weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
        return F.linear(x, self.weight)


def _packs(weight: Tensor) -> bool:
    """Whether oneDNN has products of this type here."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32


class PackedBlock:
    """`transformer.Block` without dropout."""

    def __init__(self, block: Block, rows: int):
        attention: Attention = block.attention
        self.heads, self.width = attention.heads, attention.width
        self.eps = block.attention_norm.eps
        self.qkv = Product(scaled(attention.qkv.weight, block.attention_norm), rows)
        self.out = Product(attention.out.weight, rows)
        self.gate_up = Product(scaled(block.mlp.gate_up.weight, block.mlp_norm), rows)
        self.down = Product(block.mlp.down.weight, rows)
        scales = torch.stack((attention.query_norm.weight, attention.key_norm.weight))
        self.scales = scales[:, None]  # [2, 1, E]

    def __call__(
        self,
        x: Tensor,  # [B * L, D], changed in place
        cos: Tensor,  # [B, L, 1, 1, E]
        sin: Tensor,
        bias: Tensor | None,  # [B, 1, L, P + L]
        past: Layer | None,
        index: Tensor | None,  # [N]
    ) -> tuple[Tensor, Before]:
        batch, length = cos.shape[:2]
        qkv = self.qkv(self._norm(x)).view(batch, length, 3, self.heads, self.width)
        qk = F.rms_norm(qkv[:, :, :2], (self.width,), None, self.eps) * self.scales
        turned = torch.addcmul(qk * cos, qk.roll(self.width // 2, -1), sin).to(qkv.dtype)
        q, k = turned.transpose(1, 3).unbind(2)
        v = qkv[:, :, 2].transpose(1, 2)
        new = Before(k, v)
        if past is not None:
            k, v = past.join(k, v)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        mixed = mixed.transpose(1, 2).reshape(x.shape)
        if index is not None:
            x, mixed = x[index], mixed[index]
        x.add_(self.out(mixed))
        gate, up = self.gate_up(self._norm(x)).chunk(2, -1)
        return x.add_(self.down(F.silu(gate).mul_(up))), new

    def _norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], None, self.eps)


class Packed:
    """A `DiffusionTransformer` as it is now: later changes of its weights do not reach here.

    It computes in `dtype`; logits are float32 or better.
    """

    def __init__(
        self, model: DiffusionTransformer, dtype: torch.dtype | None = None, rows: int = 16
    ):
        self.config, self.attend = model.config, model.attend
        if dtype not in (None, model.dtype):
            model = copy.deepcopy(model).to(dtype=dtype)  # type: ignore[call-arg]
        self.model = model
        with torch.no_grad():
            self.blocks = [PackedBlock(block, rows) for block in model.blocks]  # type: ignore[arg-type]
            self.head = Product(scaled(model.head.weight, model.norm), rows)

    @torch.no_grad()
    def __call__(
        self,
        input_ids: Tensor,  # [B, L]
        *,
        t: Tensor | None = None,
        segments: Tensor | None = None,  # [B, L]
        where: Tensor | None = None,  # [B, L] bool
        positions: Tensor | None = None,  # [B, L]
        attend: Attend | None = None,
        past: Past | None = None,
    ) -> DiffusionOutput:
        """What the model's `forward` returns without labels."""
        model = self.model
        start = model.begin(input_ids, t, segments, positions, attend or self.attend, past)
        x, cos, sin = start.x, torch.cat((start.cos, start.cos), -1), start.sin
        cos, sin = cos.transpose(1, 2)[:, :, :, None], torch.cat((-sin, sin), -1)
        sin = sin.transpose(1, 2)[:, :, :, None]
        index = None if where is None else where.flatten().nonzero()[:, 0]
        fresh, last = [], len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            layer = None if past is None else past.layer(number)
            x, new = block(x, cos, sin, start.bias, layer, index if number == last else None)
            fresh.append(new)
        logits = self.head(F.rms_norm(x, x.shape[-1:], None, self.config.rms_norm_eps))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = logits if index is not None else logits.view(*input_ids.shape, -1)
        return DiffusionOutput(
            logits=logits, key_values=KeyValues(tuple(fresh), start.positions, start.segments)
        )


def scaled(weight: Tensor, norm: RMSNorm) -> Tensor:
    """A matrix [O, I] that does the norm's scaling, too."""
    exact = weight.double() * norm.weight.double()
    return exact.to(weight.dtype)


class Network:
    """A model for inference without gradients: packed, and packed anew when its weights change."""

    def __init__(self, model: Any):
        self.model = model
        self.made_of: Any = None
        self.packed: Packed | None = None

    def compute(self, precision: str = "auto") -> Any:
        """In this precision; a model with an encoder is taken as it is."""
        model = self.model
        if type(model) is not DiffusionTransformer:
            return model
        dtype = model.dtype
        if dtype in (torch.float32, torch.bfloat16):  # others were asked for by their name
            dtype = find_dtype(precision, model.device)
        made_of = (dtype, *((w.data_ptr(), w._version) for w in model.parameters()))
        if self.packed is None or self.made_of != made_of:
            self.made_of, self.packed = made_of, Packed(model, dtype)
        return self.packed
