"""The backbone: one modern transformer for diffusion and autoregression alike.

Pre-norm RMSNorm, rotary positions, normalised queries and keys, gated MLP, tied embeddings,
output projections that start at zero. It is a Hugging Face model: `save_pretrained`,
`from_pretrained`, `push_to_hub`, PEFT and FSDP work unchanged.

Shapes: B rows, L positions, D width, H heads, E head width, V vocabulary, P cached positions,
N positions at which an output is wanted.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from sfumato.errors import ConfigError
from sfumato.models.attention import (
    HIDDEN,
    Attend,
    BlockCausal,
    attend_from,
    attention_allowed,
    positions_from,
    row_positions,
)
from sfumato.models.config import TransformerConfig
from sfumato.models.dropout import position_keys
from sfumato.models.encoded_source import Source
from sfumato.models.kv_cache import KeyValues, Past
from sfumato.models.layers import Block, RMSNorm, rotary
from sfumato.models.output import DiffusionOutput
from sfumato.models.output_loss import compute_dtype, score_hidden, score_integrand
from sfumato.models.saving import save_network
from sfumato.models.shared_rows import SharedRows
from sfumato.models.time_embedding import TimeEmbedding, ZeroLinear
from sfumato.rng import Rng
from sfumato.types import Integrand


class Start(NamedTuple):
    """A pass before its first block."""

    x: Tensor  # [B * L, D]
    bias: Tensor | None  # [B, 1, L, P + L], 0 where seen and -inf elsewhere
    positions: Tensor  # [B, L]
    segments: Tensor | None  # [B, L]


class DiffusionTransformer(PreTrainedModel):
    """Noisy tokens in, logits of the clean token at each position out."""

    embed: nn.Embedding
    head: nn.Linear
    config_class = TransformerConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (the base class's form)
    _tied_weights_keys = {"head.weight": "embed.weight"}  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.time = TimeEmbedding(config.hidden_size) if config.time_conditioned else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.attend = attend_from(config.attention, config.block_size)
        self.gradient_checkpointing = False
        self.post_init()

    reads_source = False  # whether `read` makes a source of text, as an encoder does

    @property
    def block_size(self) -> int | None:
        """Positions of a block, of a network that reads block after block: 1 of next tokens."""
        if self.config.objective == "next_token":
            return 1
        return self.attend.size if isinstance(self.attend, BlockCausal) else None

    @property
    def shift(self) -> bool:
        """Whether the network reads the token before each position, as next-token ones do."""
        return self.config.shift or self.config.objective == "next_token"

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, ZeroLinear):
            init.zeros_(module.weight)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=module.in_features**-0.5)
        if isinstance(module, nn.Linear) and module.bias is not None:
            init.zeros_(module.bias)
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=0.02)
        if isinstance(module, RMSNorm):
            init.ones_(module.weight)

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.head = new_embeddings  # type: ignore[assignment]

    def begin(
        self,
        input_ids: Tensor,  # [B, L]
        t: Tensor | None,
        segments: Tensor | None,  # [B, L]
        positions: Tensor | None,  # [B, L]
        attend: Attend,
        past: Past | None,
    ) -> Start:
        """What the first block is given."""
        batch, length = input_ids.shape
        if positions is None:
            positions = self._positions(segments, past, batch, length, input_ids.device)
        keys, key_segments = positions, segments
        if past is not None:
            keys, key_segments, segments = past.known(positions, segments)
        allowed = attention_allowed(attend, positions, keys, segments, key_segments)
        bias = None
        if allowed is not None and not (allowed.device.type == "cpu" and bool(allowed.all())):
            bias = torch.zeros_like(allowed, dtype=compute_dtype(self.embed.weight))
            bias = bias.masked_fill(~allowed, -torch.inf)
        x = self.embed(input_ids.flatten())
        if self.time is not None:
            if t is None:
                raise ConfigError("this model reads the time: pass t, [B] in [0, 1]")
            x = x + self.time((t if t.dim() == 2 else t[:, None].expand(-1, length)).flatten())
        return Start(x, bias, positions, segments)

    def hidden(
        self,
        input_ids: Tensor,  # [B, L]
        t: Tensor | None,
        segments: Tensor | None,  # [B, L]
        positions: Tensor | None,  # [B, L]
        attend: Attend,
        past: Past | None,
        where: Tensor | None,  # [B, L] bool
        source: Source | None = None,
        rng: Rng | None = None,
    ) -> tuple[Tensor, KeyValues]:
        """Final hidden states, [B, L, D] or [N, D] at `where`, and this call's keys and values."""
        start = self.begin(input_ids, t, segments, positions, attend, past)
        alike = self._alike(input_ids) if source is None else None
        index = None if where is None else where.flatten().nonzero()[:, 0]
        cos, sin = rotary(start.positions, self.config.head_width, self.config.rope_theta)
        x, fresh = start.x if alike is None else alike.spread(alike.rows), []
        keys = None
        if rng is not None and self.training and self.config.dropout:
            keys = position_keys(rng, start.positions)
        for number, block in enumerate(self.blocks):
            last = number == len(self.blocks) - 1
            arguments = (
                x,
                cos,
                sin,
                start.bias,
                None if past is None else past.layer(number),
                index if last else None,
                None if number else alike,
                None if keys is None else Rng(keys).fold(number).keys,
                *(() if source is None else (source.layers[number],)),
            )
            if self.gradient_checkpointing and self.training:
                x, new = self._gradient_checkpointing_func(block.__call__, *arguments)
            else:
                x, new = block(*arguments)
            fresh.append(new)
        x = self.norm(x)
        x = x if index is not None else x.view(*input_ids.shape, -1)
        return x, KeyValues(tuple(fresh), start.positions, start.segments)

    def _alike(self, input_ids: Tensor) -> SharedRows | None:
        """Distinct embeddings, where gradients are wanted on a CPU: a third of the first block's
        products; elsewhere finding them costs more. Of positions that see the time, none."""
        if input_ids.device.type != "cpu" or not torch.is_grad_enabled() or self.time is not None:
            return None
        distinct, index = input_ids.flatten().unique(return_inverse=True)
        return SharedRows(self.embed(distinct), index)

    def _positions(
        self,
        segments: Tensor | None,
        past: Past | None,
        batch: int,
        length: int,
        device: torch.device,
    ) -> Tensor:
        """[B, L] positions of a pass for which none are given."""
        total = length if past is None else past.span(length)
        if total > self.config.max_position_embeddings:
            raise ConfigError(
                f"{total} positions, but the model was built for max_position_embeddings "
                f"{self.config.max_position_embeddings}; shorten the text"
            )
        if past is not None:
            return past.next_positions(length).expand(batch, -1)
        return (
            row_positions(batch, length, device) if segments is None else positions_from(segments)
        )

    def forward(
        self,
        input_ids: Tensor,  # [B, L]
        attention_mask: Tensor | None = None,  # [B, L], 0 where padded
        *,
        t: Tensor | None = None,  # [B], or [B, L] where positions differ
        segments: Tensor | None = None,  # [B, L]
        where: Tensor | None = None,  # [B, L] bool: positions whose output is wanted
        labels: Tensor | None = None,  # [N] clean tokens at `where`: returns nll instead of logits
        weights: Tensor | None = None,  # [N] weight of each position in `loss`, a sum
        excluded: tuple[int, ...] = (),  # token ids that get probability 0, with labels
        integrand: Integrand | None = None,  # scores the logits instead of cross-entropy
        positions: Tensor | None = None,  # [B, L], counted from the segments if None
        attend: Attend | None = None,  # another pattern than the config's
        past: Past | None = None,
        source: Source | None = None,  # for blocks that read one: `models.encoder_decoder`
        rng: Rng | None = None,  # of dropout in training, one key a row; torch's generator if None
        **kwargs,
    ) -> DiffusionOutput:
        """Logits of the clean token at each position; with labels, its cross-entropy."""
        unknown = set(kwargs) - {"return_dict"}  # Hugging Face passes return_dict everywhere
        if unknown:
            raise ConfigError(f"unknown argument {sorted(unknown)} of DiffusionTransformer")
        if attention_mask is not None:
            if segments is None:
                segments = torch.zeros_like(input_ids)
            segments = segments.masked_fill(attention_mask == 0, HIDDEN)
        hidden, key_values = self.hidden(
            input_ids, t, segments, positions, attend or self.attend, past, where, source, rng
        )
        if labels is None:
            return DiffusionOutput(logits=self.head(hidden), key_values=key_values)
        if where is None or weights is None:
            raise ConfigError("labels need `where` and `weights`: the positions that are scored")
        if integrand is None:
            scored = score_hidden(hidden, self.head.weight, labels, weights, excluded)
        else:
            scored = score_integrand(hidden, self.head, weights, integrand)
        return DiffusionOutput(loss=scored.value, nll=scored.nll, correct=scored.correct)

    def compile_blocks(self) -> None:
        """Let torch.compile fuse the blocks' element-wise work in training; all share three graphs.

        Costs tens of seconds at the first step (less when torch's cache is warm), and needs a C++
        compiler on a CPU. Outside of training nothing changes.
        """
        for block in self.blocks:
            block.compiled = True  # type: ignore[assignment]

    def freeze_decoder(self) -> None:
        """Let only an encoder learn, where there is one; raises where there is none."""
        raise ConfigError("model.freeze_decoder needs an encoder that learns; add one")

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Config and weights, these or those of another moment, as a plain Hugging Face folder."""
        config = copy.deepcopy(self.config)
        config.dtype = next(iter(weights.values())).dtype
        config.architectures = [type(self).__name__]
        save_network(folder, config, weights)

    def num_weights(self) -> int:
        """Trainable numbers, tied ones once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
