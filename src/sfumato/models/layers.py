"""The parts of the backbone: norm, rotary positions, attention, gated MLP, and the block of them.

Shapes: B rows, L positions, D width, H heads, E head width, P cached positions,
N positions at which an output is wanted.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.models.config import TransformerConfig
from sfumato.models.dropout import dropout
from sfumato.models.kv_cache import Before, Layer
from sfumato.models.shared_rows import SharedRows
from sfumato.models.time_embedding import ZeroLinear
from sfumato.rng import Rng

WRITTEN_OUT = 512  # most keys for which attention holds all its scores


class RMSNorm(nn.Module):
    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rotary(positions: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [B, 1, L, width / 2] of rotary positions (Su et al., arXiv 2104.09864)."""
    exponent = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32) / width
    angle = positions[:, None, :, None].float() * theta**-exponent
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x_i, x_{i + E/2}) of [B, H, L, E] by their angles."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x1 * sin + x2 * cos), dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Scaled dot product attention of [B, H, L, E].

    Written out where gradients are wanted on a CPU: torch's own backward takes twice as long there,
    and its saving of memory matters for long rows only.
    """
    if q.device.type != "cpu" or not torch.is_grad_enabled() or k.shape[2] > WRITTEN_OUT:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    scores = q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(-1).to(v.dtype) @ v


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.width = config.hidden_size // self.heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.out = ZeroLinear(config.hidden_size, config.hidden_size, bias=False)
        self.query_norm = RMSNorm(self.width, config.rms_norm_eps)
        self.key_norm = RMSNorm(self.width, config.rms_norm_eps)

    def turn(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B * L, 3 * D] -> queries, keys, values, each [B, H, L, E]."""
        batch, _, length, _ = cos.shape
        q, k, v = qkv.view(batch, length, 3, self.heads, self.width).unbind(2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        q = rotate(self.query_norm(q), cos, sin).to(v.dtype)
        k = rotate(self.key_norm(k), cos, sin).to(v.dtype)
        return q, k, v


class Mlp(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = ZeroLinear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)
        self.dropout = config.dropout
        self.compiled = False  # in training

    def project(self, x: Tensor) -> Tensor:
        """What attention needs of each position, [N, D] -> [N, 3 * D]."""
        return self.attention.qkv(self.attention_norm(x))

    def mix(
        self,
        x: Tensor,  # [B * L, D]
        cos: Tensor,  # [B, 1, L, E / 2]
        sin: Tensor,
        bias: Tensor | None,  # [B, 1, L, P + L], 0 where seen and -inf elsewhere
        past: Layer | None = None,
    ) -> tuple[Tensor, Before]:
        """What each position gathers from those it sees, [B * L, D]; the new keys and values."""
        return self.gather(self.project(x), cos, sin, bias, past)

    def gather(
        self,
        qkv: Tensor,  # [B * L, 3 * D]
        cos: Tensor,
        sin: Tensor,
        bias: Tensor | None,
        past: Layer | None,
    ) -> tuple[Tensor, Before]:
        """The same from what is projected."""
        q, k, v = self.attention.turn(qkv, cos, sin)
        new = Before(k, v)
        if past is not None:
            k, v = past.join(k, v)
        mixed = attention(q, k, v, bias).transpose(1, 2)
        return mixed.reshape(len(qkv), qkv.shape[1] // 3), new

    def update(self, x: Tensor, mixed: Tensor, *keys: Tensor) -> Tensor:
        """Each position by itself, [N, D]; keys [N] of dropout behind attention and the MLP."""
        first, second = keys or (None, None)
        x = x + dropout(self.attention.out(mixed), self.dropout, self.training, first)
        return x + dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training, second)

    def forward(
        self,
        x: Tensor,  # [B * L, D]
        cos: Tensor,  # [B, 1, L, E / 2]
        sin: Tensor,
        bias: Tensor | None,  # [B, 1, L, P + L], 0 where seen and -inf elsewhere
        past: Layer | None = None,
        index: Tensor | None = None,  # [N] positions wanted; the last block computes no others
        alike: SharedRows | None = None,  # what x is made of, where many positions are the same
        keys: Tensor | None = None,  # [B * L] of dropout in training; torch's generator if None
    ) -> tuple[Tensor, Before]:
        parts = (Block.mix, Block.gather, Block.update)
        mix, gather, update = _compiled() if self.compiled and self.training else parts
        if alike is None:
            mixed, new = mix(self, x, cos, sin, bias, past)
        else:
            qkv = alike.spread(self.project(alike.rows))
            mixed, new = gather(self, qkv, cos, sin, bias, past)
        if index is not None:
            x, mixed = x[index], mixed[index]
            keys = None if keys is None else keys[index]
        return update(self, x, mixed, *_two_streams(keys)), new


def _two_streams(keys: Tensor | None) -> tuple[Tensor, ...]:
    return () if keys is None else (Rng(keys).fold(0).keys, Rng(keys).fold(1).keys)


@functools.cache
def _compiled() -> tuple[Callable, Callable, Callable]:
    """The parts of a block compiled, for all blocks alike; rows of any number."""
    mix, gather = torch.compile(Block.mix), torch.compile(Block.gather)
    return mix, gather, torch.compile(Block.update, dynamic=True)
