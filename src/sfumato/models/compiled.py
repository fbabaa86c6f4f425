"""The packed pass over one text, compiled.

For one text a pass is mostly the calls of its operations. torch.compile fuses them, with the
weights frozen in; shapes are fixed, so a pass sees all columns of its store, of which those without
text are hidden. For many texts at once there is nothing to win, nor in float32 on a CPU.

Shapes: one row, L positions, C columns, D width, H heads, E head width.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from sfumato.errors import ConfigError, told
from sfumato.models.attention import HIDDEN, Attend, attention_allowed
from sfumato.models.kv_cache import Reading

if TYPE_CHECKING:
    from sfumato.models.packed import Packed


class Frozen(nn.Module):
    """x [N, I] -> x @ weight.T [N, O], by a weight that the compiler may lay out."""

    def __init__(self, weight: Tensor, rows: int):
        super().__init__()
        self.weight, self.dtype = nn.Parameter(weight.detach(), requires_grad=False), weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Columns(NamedTuple):
    """One layer of a store, and where in it the pass is."""

    keys: Tensor  # [1, C, H, E]
    values: Tensor
    place: Tensor  # [L]

    def join(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Everything [1, H, C, E], with a pass's own [1, H, L, E] written into it."""
        self.keys[:, self.place] = keys.transpose(1, 2)
        self.values[:, self.place] = values.transpose(1, 2)
        return self.keys.transpose(1, 2), self.values.transpose(1, 2)


class CompiledPass(nn.Module):
    """A pass of a packed network over a few positions of one text, each length compiled once.

    The first pass of a length takes tens of seconds, less where torch's cache knows it.
    """

    def __init__(self, packed: "Packed"):
        super().__init__()
        self.embed, self.time = packed.model.embed, packed.model.time
        self.blocks = nn.ModuleList(packed.frozen_blocks())
        self.norm, self.exact = packed.norm, packed.exact
        self.head = Frozen(packed.norm.scaled(packed.model.head.weight), 1)
        self.rates, (self.cos, self.sin) = packed.rates, packed.scales
        self.compiled = torch.compile(  # type: ignore[call-overload]
            self._pass,
            fullgraph=True,
            dynamic=False,
            isolate_recompiles=True,
            # nothing of this module ever changes, and to look costs a tenth of a pass
            options={"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe},
        )
        self.known: set[int] = set()  # lengths that are compiled

    @property
    def head_shape(self) -> tuple[int, int]:
        """H and E."""
        return self.blocks[0].heads, self.blocks[0].width  # type: ignore[return-value]

    def forward(self, tokens: Tensor, t: Tensor | None, reading: Reading, attend: Attend) -> Tensor:
        """Logits [L, V] of tokens [1, L]; their keys and values stay in the store."""
        store, length = reading.store, tokens.shape[1]
        heads, width = self.head_shape
        store.furnish(len(self.blocks), heads, width, self.head.dtype)
        if t is not None:
            t = t.expand(tokens.shape) if t.dim() == 2 else t[:, None].expand(tokens.shape)
        positions = reading.next_positions(length)
        given = (tokens, t if self.time is not None else None, positions, store.positions)
        if length in self.known:
            return self.compiled(*given, store.layers, attend)
        cpu = tokens.device.type == "cpu"
        try:
            with torch._inductor.config.patch(freezing=True, cpp_wrapper=cpu):  # type: ignore[attr-defined]
                logits = self.compiled(*given, store.layers, attend)
        except TorchDynamoException as error:
            reason = told(getattr(error, "inner_exception", error))
            raise ConfigError(
                f"torch cannot compile the model here: {reason}; `sfumato "
                "doctor` says whether a C++ compiler is missing, or leave torch_compile out"
            ) from error
        self.known.add(length)
        return logits

    def _pass(
        self,
        tokens: Tensor,  # [1, L]
        t: Tensor | None,  # [1, L]
        positions: Tensor,  # [1, L]
        kept: Tensor,  # [1, C] position that each column holds; written
        layers: list[tuple[Tensor, Tensor]],
        attend: Attend,
    ) -> Tensor:
        place = positions[0] % kept.shape[1]
        kept[:, place] = positions
        hidden = (kept < 0) | (kept > positions[:, -1:])
        seen = torch.zeros_like(kept).masked_fill(hidden, HIDDEN)
        allowed = attention_allowed(attend, positions, kept, torch.zeros_like(positions), seen)
        assert allowed is not None, "a pass is in a document"
        bias = torch.zeros_like(allowed, dtype=self.head.dtype).masked_fill(~allowed, -torch.inf)
        x = self.embed(tokens.flatten())
        if self.time is not None and t is not None:
            x = x + self.time(t.flatten())
        x, angle = x.to(self.exact), (positions[..., None] * self.rates)[:, :, None, None]
        cos, sin = angle.cos(), angle.sin()
        for number, (block, layer) in enumerate(zip(self.blocks, layers, strict=True)):
            own = cos * self.cos[number], sin * self.sin[number]
            x, _ = block(x, *own, bias, Columns(*layer, place), None)
        return self.head(self.norm(x).to(self.head.dtype)).to(self.exact)
