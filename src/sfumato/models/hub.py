"""Any text model of transformers as a network of this package.

Embedding, layers, norms and head are its own, and so are rotary positions, scales and soft caps.
Its attention is ours: every model of transformers calls a function that it looks up by name, and
that function here lays the pattern that was asked for over the keys, intersects it with the window
of a local layer, and joins keys and values that were read before. So a causal model reads both
ways, a masked one block after block, and both keep a cache.

Shapes: B rows, L positions, D width, H heads, E head width, V vocabulary, N positions wanted.
"""

import copy
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sfumato.errors import ConfigError
from sfumato.models.attention import (
    Attend,
    Bidirectional,
    attend_from,
    attention_allowed,
    positions_from,
    row_positions,
)
from sfumato.models.kv_cache import Before, KeyValues, Past
from sfumato.models.output import DiffusionOutput
from sfumato.models.output_loss import score_integrand
from sfumato.models.saving import save_network
from sfumato.rng import Rng
from sfumato.types import Integrand

NAME = "sfumato"  # of our attention in transformers' table
STATE = "_sfumato_pass"  # where a module finds the pass that it is part of

# how the outputs of a model that says nothing of it are to be read
READING = {
    "objective": "masked",
    "corruption": {"name": "masked", "schedule": {"name": "linear"}},
    "shift": False,
    "attention": "full",
    "block_size": None,
    "time_conditioned": False,
    "vocabulary_digest": None,
    "mask_token_id": None,
}


@dataclass
class _Pass:
    """What the attention of every layer needs to know of the pass that it is part of."""

    attend: Attend = field(default_factory=Bidirectional)
    positions: Tensor | None = None  # [B, L]
    segments: Tensor | None = None  # [B, L]
    keys: Tensor | None = None  # [B, P + L] positions of all keys
    key_segments: Tensor | None = None
    past: Past | None = None
    fresh: dict[int, Before] = field(default_factory=dict)
    order: dict[int, int] = field(default_factory=dict)  # id of an attention module: its layer
    seen: dict[int | None, Tensor | None] = field(default_factory=dict)  # by window

    def number(self, module: nn.Module) -> int:
        return self.order.setdefault(id(module), len(self.order))

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """0 where a key is seen and -inf elsewhere, [B, 1, L, P + L]; None: all are."""
        if window not in self.seen:
            assert self.positions is not None, "a pass has begun"
            assert self.keys is not None, "a pass has begun"
            allowed = attention_allowed(
                self.attend, self.positions, self.keys, self.segments, self.key_segments
            )
            if window is not None:
                near = (self.positions[:, :, None] - self.keys[:, None, :]).abs() < window
                allowed = near[:, None] if allowed is None else allowed & near[:, None]
            bias = None
            if allowed is not None and not (allowed.device.type == "cpu" and bool(allowed.all())):
                bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
                bias = bias.masked_fill(~allowed, -torch.inf)
            self.seen[window] = bias
        bias = self.seen[window]
        return None if bias is None else bias.to(dtype)


def _attention(
    module: nn.Module,
    query: Tensor,  # [B, H, L, E]
    key: Tensor,  # [B, heads of keys, L, E]
    value: Tensor,
    attention_mask: Tensor | None,  # transformers' own, which ours replaces
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers calls it: [B, L, H, E]."""
    odd = [name for name, given in others.items() if torch.is_tensor(given) and name in _ODD]
    if odd:
        raise ConfigError(
            f"{type(module).__name__} passes {odd[0]} to its attention, which the adapter does not "
            "know; this family of models cannot be taken apart"
        )
    now: _Pass = vars(module)[STATE]
    number = now.number(module)
    now.fresh[number] = Before(key, value)
    if now.past is not None:
        key, value = now.past.layer(number).join(key, value)
    bias, shared = now.bias(sliding_window, query.dtype), query.shape[1] != key.shape[1]
    if softcap is None:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout, scale=scaling, enable_gqa=shared
        )
    else:
        if shared:
            times = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
        scores = (
            query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        )
        scores = softcap * torch.tanh(scores / softcap)
        scores = scores if bias is None else scores + bias
        weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        out = F.dropout(weights, dropout) @ value
    return out.transpose(1, 2).contiguous(), None


_ODD = {"s_aux", "position_bias", "relative_position"}  # what some families add to the scores
ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)


class _Given(nn.Module):
    """In place of a model's body: returns the hidden states that it is given, and nothing else."""

    def forward(self, *_: Any, inputs_embeds: Tensor | None = None, **__: Any) -> "_Hidden":
        return _Hidden(last_hidden_state=inputs_embeds)


class _Hidden(BaseModelOutputWithPast):
    """What else a head looks for, such as losses of routers, is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class HubNetwork(nn.Module):
    """A causal or masked language model of transformers, read as this package reads networks.

    Its config says how, in the same words as ours (`READING`), and transformers ignores them. A
    causal model without such words is one of next tokens; a masked one is a denoiser as it is, told
    no time.
    """

    reads_source = False

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        body = getattr(model, model.base_model_prefix, None) if model.base_model_prefix else None
        if model.config.is_encoder_decoder or not isinstance(body, nn.Module) or body is model:
            raise ConfigError(
                f"{type(model).__name__} cannot be taken apart: expected a decoder or an encoder "
                "with a language modelling head on top, and found "
                + ("both of them" if model.config.is_encoder_decoder else "no body under a head")
            )
        if model.get_output_embeddings() is None:
            raise ConfigError(
                f"{type(model).__name__} has no output embeddings, so it says nothing of tokens; "
                "load it as a causal or masked language model"
            )
        self.model = model
        self.offset = _first_position(body)
        self.config = copy.deepcopy(model.config)
        self.config.max_position_embeddings = model.config.max_position_embeddings - self.offset
        read_as(self.config, causal=False)
        model.set_attn_implementation(NAME)
        self.now = _Pass()
        for module in model.modules():
            vars(module)[STATE] = self.now
        # the head is all that the model does behind its body: the same modules, without the body
        head = copy.copy(model)
        head._modules = dict(model._modules)
        head._modules[model.base_model_prefix] = _Given()
        self.__dict__["_head"] = head  # no child: its weights are the model's
        self.attend: Attend = attend_from(self.config.attention, self.config.block_size)
        self.checked = False

    @classmethod
    def of(cls, model: PreTrainedModel) -> "HubNetwork":
        """A model as transformers knows it: causal ones are of next tokens until they say else."""
        causal = "CausalLM" in type(model).__name__ or "LMHead" in type(model).__name__
        read_as(model.config, causal=causal)
        return cls(model)

    @property
    def body(self) -> nn.Module:
        return getattr(self.model, self.model.base_model_prefix)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def block_size(self) -> int | None:
        if self.config.objective == "next_token":
            return 1
        return getattr(self.attend, "size", None)

    @property
    def shift(self) -> bool:
        return bool(self.config.shift) or self.config.objective == "next_token"

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of hidden states [N, D], soft caps, biases and scales included."""
        return self.__dict__["_head"](inputs_embeds=hidden[None]).logits[0]

    def forward(
        self,
        input_ids: Tensor,  # [B, L]
        *,
        t: Tensor | None = None,  # of no use here: such a model is told no time
        segments: Tensor | None = None,  # [B, L]
        where: Tensor | None = None,  # [B, L] bool
        labels: Tensor | None = None,  # [N]
        weights: Tensor | None = None,  # [N]
        excluded: tuple[int, ...] = (),
        integrand: Integrand | None = None,
        positions: Tensor | None = None,  # [B, L]
        attend: Attend | None = None,
        past: Past | None = None,
        rng: Rng | None = None,
    ) -> DiffusionOutput:
        """As `models.network.Network` has it."""
        hidden, read = self._hidden(input_ids, segments, positions, attend, past, rng)
        hidden = hidden.flatten(0, 1) if where is None else hidden[where]
        if labels is None:
            logits = self.head(hidden)
            logits = logits if where is not None else logits.view(*input_ids.shape, -1)
            return DiffusionOutput(logits=logits, key_values=read)
        if where is None or weights is None:
            raise ConfigError("labels need `where` and `weights`: the positions that are scored")
        own = integrand or CrossEntropy(labels, excluded)
        scored = score_integrand(hidden, _Head(self), weights, own)
        return DiffusionOutput(loss=scored.value, nll=scored.nll, correct=scored.correct)

    def _hidden(
        self,
        input_ids: Tensor,
        segments: Tensor | None,
        positions: Tensor | None,
        attend: Attend | None,
        past: Past | None,
        rng: Rng | None,
    ) -> tuple[Tensor, KeyValues]:
        """The body's last hidden states [B, L, D], and this pass's keys and values."""
        if positions is None:
            positions = self._positions(input_ids, segments, past)
        now, keys, key_segments = self.now, positions, segments
        if past is not None:
            keys, key_segments, segments = past.known(positions, segments)
        now.attend, now.positions, now.segments = attend or self.attend, positions, segments
        now.keys, now.key_segments, now.past = keys, key_segments, past
        now.fresh, now.seen = {}, {}
        devices = [input_ids.device] if input_ids.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=rng is not None):
            if rng is not None:  # its dropout is torch's, by the seed of this pass
                torch.manual_seed(int(rng.keys[0]) & (2**63 - 1))
            out = self.body(
                input_ids=input_ids,
                position_ids=positions.clamp_min(0) + self.offset,
                **({"use_cache": False} if _caches(self.config) else {}),
            )
        layers = tuple(now.fresh[number] for number in range(len(now.fresh)))
        if not self.checked:
            self._check(len(layers))
        return out.last_hidden_state, KeyValues(layers, positions, segments)

    def _check(self, layers: int) -> None:
        """Raise where some layers do not attend, or attend by a function of their own."""
        wanted = self.config.num_hidden_layers
        if layers != wanted:
            raise ConfigError(
                f"{type(self.model).__name__} cannot be taken apart: {wanted} layers, of which "
                f"{layers} attend by transformers' interface; expected all of them"
            )
        self.checked = True

    def _positions(self, input_ids: Tensor, segments: Tensor | None, past: Past | None) -> Tensor:
        batch, length = input_ids.shape
        total = length if past is None else past.span(length)
        most = int(self.config.max_position_embeddings)
        if total > most:
            raise ConfigError(
                f"{total} positions, but the model was built for max_position_embeddings {most}; "
                "shorten the text"
            )
        if past is not None:
            return past.next_positions(length).expand(batch, -1)
        if segments is None:
            return row_positions(batch, length, input_ids.device)
        return positions_from(segments)

    def write(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """The model as transformers has it, its config with our words beside its own."""
        config = copy.deepcopy(self.model.config)
        for name in READING:
            setattr(config, name, getattr(self.config, name))
        config.dtype = next(iter(weights.values())).dtype
        config.architectures = [type(self.model).__name__]
        save_network(folder, config, weights)

    # names of weights and modules are those of the model, as its folder has them

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        return self.model.named_parameters(prefix, recurse, remove_duplicate)

    def named_modules(
        self,
        memo: set[nn.Module] | None = None,
        prefix: str = "",
        remove_duplicate: bool = True,
    ) -> Generator[tuple[str, nn.Module], None, None]:
        yield from self.model.named_modules(memo, prefix, remove_duplicate)

    def get_output_embeddings(self) -> nn.Module:
        return self.model.get_output_embeddings()  # type: ignore[return-value]

    def activation_checkpointing_enable(self) -> None:
        """Layers are computed again in the backward pass, which is that of one forward pass."""
        self.model.activation_checkpointing_enable()

    def compile_blocks(self) -> None:
        """Raises: only our own transformer's blocks are compiled in training."""
        raise ConfigError(
            "train.torch_compile is for model.family=sfumato; leave it out, or train without it"
        )

    def freeze_decoder(self) -> None:
        """Raises: there is no encoder beside it."""
        raise ConfigError("model.freeze_decoder needs an encoder that learns; add one")

    def num_weights(self) -> int:
        """Trainable numbers, tied ones once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


class CrossEntropy:
    """-log p of the clean tokens [N], some ids excluded: an integrand."""

    def __init__(self, targets: Tensor, excluded: tuple[int, ...]):
        self.targets, self.excluded = targets, list(excluded)

    def __call__(self, logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        if self.excluded:
            logits = logits.index_fill(
                1, torch.tensor(self.excluded, device=logits.device), -torch.inf
            )
        wanted = self.targets[part, None]
        own = logits.gather(1, wanted)[:, 0]
        return logits.logsumexp(1) - own, own.detach() == logits.detach().amax(1)


class _Head(nn.Module):
    """A network's head as a module, of which it is no child."""

    def __init__(self, network: HubNetwork):
        super().__init__()
        self.__dict__["network"] = network

    def forward(self, hidden: Tensor) -> Tensor:
        return self.__dict__["network"].head(hidden)


def read_as(config: Any, *, causal: bool) -> Any:
    """The same config with what it lacks of `READING`; a causal model's is one of next tokens."""
    if causal and not hasattr(config, "objective"):
        config.objective, config.attention = "next_token", "causal"
    for name, default in READING.items():
        if not hasattr(config, name):
            setattr(config, name, copy.deepcopy(default))
    return config


def _first_position(body: nn.Module) -> int:
    """RoBERTa and its kin count positions from behind that of padding."""
    embeddings = getattr(body, "embeddings", None)
    if hasattr(embeddings, "create_position_ids_from_input_ids"):
        return int(embeddings.padding_idx) + 1  # type: ignore[union-attr]
    return 0


def _caches(config: Any) -> bool:
    return hasattr(config, "use_cache")
