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
from torch import Tensor, nn

from sfumato.devices import find_dtype
from sfumato.errors import ConfigError
from sfumato.models.attention import Attend, BlockCausal
from sfumato.models.compiled import CompiledPass, Frozen
from sfumato.models.kv_cache import Before, KeyValues, Layer, Past, Reading
from sfumato.models.layers import Attention, Block, RMSNorm
from sfumato.models.transformer import DiffusionOutput, DiffusionTransformer


class Product:
    """x [N, I] -> x @ weight.T [N, O].

    On a CPU by the products that torch.compile takes for frozen weights: for 8 positions of a small
    model in half the time of `linear`, in float32 and in bfloat16.
    """

    def __init__(self, weight: Tensor, rows: int):
        """Laid out for some `rows` at a time; any number works."""
        self.packed, self.dtype = _packs(weight), weight.dtype
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


class PackedBlock(nn.Module):
    """`transformer.Block` without dropout, over a float32 residual stream or a better one."""

    def __init__(self, block: Block, rows: int, product: "type[Product | Frozen]"):
        super().__init__()
        attention: Attention = block.attention
        self.heads, self.width = attention.heads, attention.width
        self.norm = Norm(block.attention_norm, attention.qkv.in_features)
        self.turned = Norm(attention.query_norm, self.width)
        self.queries, self.keys = self.turned.scales, Norm(attention.key_norm, self.width).scales
        self.qkv = product(self.norm.scaled(attention.qkv.weight), rows)
        self.out = product(attention.out.weight, rows)
        self.gate_up = product(
            Norm(block.mlp_norm, attention.qkv.in_features).scaled(block.mlp.gate_up.weight), rows
        )
        self.down = product(block.mlp.down.weight, rows)

    def forward(
        self,
        x: Tensor,  # [B * L, D], changed in place
        cos: Tensor,  # [B, L, 2, 1, E], with the scales of queries and keys
        sin: Tensor,
        bias: Tensor | None,  # [B, 1, L, P + L]
        past: Layer | None,
        index: Tensor | None,  # [N]
    ) -> tuple[Tensor, Before]:
        batch, length = cos.shape[:2]
        dtype = self.qkv.dtype
        qkv = self.qkv(self.norm(x).to(dtype)).view(batch, length, 3, self.heads, self.width)
        qk, v = qkv[:, :, :2], qkv[:, :, 2].transpose(1, 2)
        turned = torch.addcmul(qk * cos, qk.roll(self.width // 2, -1), sin)
        q, k = turned.div_(self.turned.length(qk)).to(dtype).transpose(1, 3).unbind(2)
        new = Before(k, v)
        if past is not None:
            k, v = past.join(k, v)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        mixed = mixed.transpose(1, 2).reshape(x.shape)
        if index is not None:
            x, mixed = x[index], mixed[index]
        x.add_(self.out(mixed))
        gate, up = self.gate_up(self.norm(x).to(dtype)).chunk(2, -1)
        return x.add_(self.down(F.silu(gate).mul_(up))), new


class Norm:
    """RMSNorm but for its scales: x * sqrt(width) / |x|, of which `scaled` does the sqrt(width)."""

    def __init__(self, norm: RMSNorm, width: int):
        self.scales = norm.weight.double() * width**0.5
        self.exact = torch.promote_types(norm.weight.dtype, torch.float32)
        small = torch.tensor((width * norm.eps) ** 0.5)
        self.small = small.to(device=norm.weight.device, dtype=self.exact)

    def length(self, x: Tensor) -> Tensor:
        """|x| over the last dimension, kept; a little more, as eps asks for."""
        return torch.linalg.vector_norm(x, 2, -1, True, dtype=self.exact).hypot(self.small)

    def __call__(self, x: Tensor) -> Tensor:
        return x / self.length(x)

    def scaled(self, weight: Tensor) -> Tensor:
        """What follows, [O, I] or [I], with the norm's own scaling in it."""
        return (weight.double() * self.scales).to(weight.dtype)


class Packed:
    """A `DiffusionTransformer` as it is now: later changes of its weights do not reach here.

    It computes in `dtype`; the residual stream and logits are float32 or better.
    """

    def __init__(
        self,
        model: DiffusionTransformer,
        dtype: torch.dtype | None = None,
        rows: int = 16,
    ):
        self.config, self.attend = model.config, model.attend
        self.block_size, self.shift = model.block_size, model.shift
        self.reads_source = model.reads_source
        self.passes = 0  # so far
        if dtype not in (None, model.dtype):
            model = copy.deepcopy(model).to(dtype=dtype)  # type: ignore[call-arg]
        self.model = model
        self.exact = torch.promote_types(model.dtype, torch.float32)
        with torch.no_grad():
            self.blocks = [PackedBlock(block, rows, Product) for block in model.blocks]  # type: ignore[arg-type]
            self.norm = Norm(model.norm, self.config.hidden_size)
            self.head = Product(self.norm.scaled(model.head.weight), rows)
            width = self.config.head_width
            exponent = torch.arange(0, width, 2, device=model.device).repeat(2) / width
            self.rates = self.config.rope_theta ** -exponent.float()  # [E] radians a position
            scales = [torch.stack((block.queries, block.keys)) for block in self.blocks]
            cos = torch.stack(scales).to(self.exact)[:, None, None, :, None]
            ahead = torch.ones_like(exponent, dtype=self.exact)
            ahead[: width // 2] = -1
            self.scales = cos, cos.roll(width // 2, -1) * ahead  # [layers, 1, 1, 2, 1, E] each
        self.compiled: CompiledPass | None = None

    def compile(self) -> "Packed":
        """The same network, whose passes of one text over its store are compiled."""
        other = copy.copy(self)
        with torch.no_grad():
            other.compiled, other.passes = CompiledPass(self), 0
        return other

    def frozen_blocks(self) -> list[PackedBlock]:
        """Its blocks with weights as they come."""
        return [PackedBlock(block, 1, Frozen) for block in self.model.blocks]  # type: ignore[arg-type]

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
        self.passes += 1
        with torch.inference_mode():
            logits, read = self._read(
                input_ids, t, segments, where, positions, attend or self.attend, past
            )
        # a tensor made here may be written to and learnt from, one of inference mode may not
        return DiffusionOutput(logits=logits.clone(), key_values=read)

    def _read(
        self,
        input_ids: Tensor,
        t: Tensor | None,
        segments: Tensor | None,
        where: Tensor | None,
        positions: Tensor | None,
        attend: Attend,
        past: Past | None,
    ) -> tuple[Tensor, KeyValues | None]:
        plain = isinstance(past, Reading) and positions is None and segments is None
        if self.compiled is not None and plain and self._short(input_ids, attend):
            logits = self.compiled(input_ids, t, past, attend)
            if where is None:
                return logits.view(*input_ids.shape, -1), None
            return logits[where.flatten()], None
        start = self.model.begin(input_ids, t, segments, positions, attend, past)
        x, angle = start.x.to(self.exact), start.positions[..., None] * self.rates  # [B, L, E]
        angle = angle[:, :, None, None]
        cos, sin = angle.cos() * self.scales[0], angle.sin() * self.scales[1]
        index = None if where is None else where.flatten().nonzero()[:, 0]
        fresh, last = [], len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            layer, chosen = None if past is None else past.layer(number), None
            if number == last:
                chosen = index
            x, new = block(x, cos[number], sin[number], start.bias, layer, chosen)
            fresh.append(new)
        logits = self.head(self.norm(x).to(self.head.dtype)).to(self.exact)
        logits = logits if index is not None else logits.view(*input_ids.shape, -1)
        return logits, KeyValues(tuple(fresh), start.positions, start.segments)

    def _short(self, input_ids: Tensor, attend: Attend) -> bool:
        """Whether it is a pass of the kind that comes again and again: one text, a block or two."""
        size = attend.size if isinstance(attend, BlockCausal) else 1
        lengths = (size,) if self.shift and size == 1 else (size, 2 * size)
        return len(input_ids) == 1 and input_ids.shape[1] in lengths


class Network:
    """A model for inference without gradients: packed, and packed anew when its weights change."""

    def __init__(self, model: Any):
        self.model = model
        self.made_of: Any = None
        self.packed: Packed | None = None
        self.compiled: Packed | None = None

    def check(self, precision: str, torch_compile: bool = False) -> None:
        """Raise for what a network that is not packed cannot do."""
        if type(self.model) is DiffusionTransformer:
            return
        kind = "model with an encoder" if self.model.reads_source else type(self.model).__name__
        if torch_compile:
            raise ConfigError(f"a {kind} is not compiled; leave out torch_compile")
        if precision == "auto":
            return
        if find_dtype(precision, self.model.device) != self.model.dtype:
            raise ConfigError(
                f"a {kind} computes in the type of its weights; leave out precision, or load it "
                "with another dtype"
            )

    def compute(self, precision: str = "auto", torch_compile: bool = False) -> Any:
        """In this precision; a network that is no plain `DiffusionTransformer` is taken as it is.

        `torch_compile` is for one text at a time.
        """
        model = self.model
        if type(model) is not DiffusionTransformer:
            return model
        dtype = model.dtype
        if dtype in (torch.float32, torch.bfloat16):  # others were asked for by their name
            dtype = find_dtype(precision, model.device)
        made_of = (dtype, *((w.data_ptr(), w._version) for w in model.parameters()))
        if self.packed is None or self.made_of != made_of:
            self.made_of, self.packed, self.compiled = made_of, Packed(model, dtype), None
        if not torch_compile:
            return self.packed
        self.compiled = self.compiled or self.packed.compile()
        return self.compiled
