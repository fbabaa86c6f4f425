"""A denoiser that reads a source: `transformer.py` with an encoder and cross-attention.

The encoder runs once; every block then also attends to what it made of the source. The blocks'
new output projections start at zero, so that a trained denoiser stays the same function when it
is given an encoder, and its weights keep their names.

Shapes: B rows, L positions, S source positions, D width, H heads, E head width.
"""

import math

import torch
from torch import Tensor, nn

from sfumato.errors import ConfigError
from sfumato.models.attention import HIDDEN, Bidirectional, attention_allowed, positions_from
from sfumato.models.config import SHAPE, TransformerConfig, encoder_problem
from sfumato.models.dropout import dropout, position_keys
from sfumato.models.encoded_source import Layer, Source
from sfumato.models.kv_cache import Before
from sfumato.models.kv_cache import Layer as Read
from sfumato.models.layers import Block, RMSNorm, attention, rotary
from sfumato.models.output_loss import compute_dtype
from sfumato.models.shared_rows import SharedRows
from sfumato.models.time_embedding import ZeroLinear
from sfumato.models.transformer import DiffusionTransformer
from sfumato.rng import Rng
from sfumato.types import ABSENT

CROSS = 2  # a block's third stream of dropout


class EncoderDecoderConfig(TransformerConfig):
    """The decoder's config, and the shape of its encoder."""

    model_type = "sfumato_encoder_decoder"

    def __init__(self, encoder: dict | None = None, **decoder):
        super().__init__(**decoder)
        if problem := encoder_problem({} if encoder is None else encoder):
            raise ConfigError(f"model config: {problem}")
        whole = TransformerConfig(vocab_size=self.vocab_size, **(encoder or {}))
        self.encoder = {key: getattr(whole, key) for key in SHAPE}

    @classmethod
    def of(cls, encoder: TransformerConfig, decoder: TransformerConfig) -> "EncoderDecoderConfig":
        """From the configs of two networks."""
        keys = decoder.to_dict()
        for key in ("model_type", "architectures", "transformers_version"):
            keys.pop(key, None)
        shape = {key: getattr(encoder, key) for key in SHAPE}
        return cls(encoder=shape, **{**keys, "architectures": [EncoderDecoder.__name__]})


class SourceReader(nn.Module):
    """Encoded source -> what one block attends to."""

    def __init__(self, config: TransformerConfig, source_width: int):
        super().__init__()
        self.heads = config.num_attention_heads
        self.width = config.head_width
        self.key_value = nn.Linear(source_width, 2 * config.hidden_size, bias=False)
        self.key_norm = RMSNorm(self.width, config.rms_norm_eps)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """[B, S, D of the encoder] -> keys and values, each [B, H, S, E]."""
        batch, length, _ = states.shape
        split = self.key_value(states).view(batch, length, 2, self.heads, self.width)
        k, v = (part.transpose(1, 2) for part in split.unbind(2))
        return self.key_norm(k).to(v.dtype), v


class CrossAttention(nn.Module):
    """What each position gathers from the source."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.width = config.head_width
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.query_norm = RMSNorm(self.width, config.rms_norm_eps)
        self.out = ZeroLinear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, layer: Layer) -> Tensor:
        """[B * L, D] -> [B * L, D]."""
        k, v, bias = layer
        q = self.query(self.norm(x)).view(len(k), -1, self.heads, self.width).transpose(1, 2)
        mixed = attention(self.query_norm(q).to(v.dtype), k, v, bias.to(v.dtype))
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class SourceBlock(Block):
    """A block that first reads the source, if there is one, and then is as any other."""

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        self.cross = CrossAttention(config)

    def forward(
        self,
        x: Tensor,  # [B * L, D]
        cos: Tensor,
        sin: Tensor,
        bias: Tensor | None,
        past: Read | None = None,
        index: Tensor | None = None,
        alike: SharedRows | None = None,  # none where a source is read
        keys: Tensor | None = None,
        layer: Layer | None = None,
    ) -> tuple[Tensor, Before]:
        if layer is not None:
            own = None if keys is None else Rng(keys).fold(CROSS).keys
            x = x + dropout(self.cross(x, layer), self.dropout, self.training, own)
        return super().forward(x, cos, sin, bias, past, index, alike, keys)


class TextEncoder(nn.Module):
    """Every source position sees every other one of its row, and no padding."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, tokens: Tensor, rng: Rng | None = None) -> Tensor:
        """[B, S], `ABSENT` where there is nothing -> [B, S, D]; rng of dropout, one key a row."""
        batch, length = tokens.shape
        most = self.config.max_position_embeddings
        if length > most:
            raise ConfigError(
                f"{length} tokens of source, but the encoder was built for {most}; shorten it"
            )
        segments = torch.zeros_like(tokens).masked_fill(tokens == ABSENT, HIDDEN)
        positions = positions_from(segments)
        allowed = attention_allowed(Bidirectional(), positions, positions, segments, segments)
        assert allowed is not None, "segments were given"
        bias = _bias(allowed, compute_dtype(self.embed.weight))
        cos, sin = rotary(positions, self.config.head_width, self.config.rope_theta)
        x = self.embed(tokens.clamp_min(0).flatten())
        keys = None
        if rng is not None and self.training and self.config.dropout:
            keys = position_keys(rng, positions)
        for number, block in enumerate(self.blocks):
            own = None if keys is None else Rng(keys).fold(number).keys
            x, _ = block(x, cos, sin, bias, keys=own)
        return self.norm(x).view(batch, length, -1)


class EncoderDecoder(DiffusionTransformer):
    """Noisy tokens and a source in, logits of the clean token at each position out.

    `read` makes of the source what `forward` takes; without one it is its decoder alone.
    """

    config_class = EncoderDecoderConfig
    reads_source = True
    _no_split_modules = ["Block", "SourceBlock"]  # noqa: RUF012 (the base class's form)

    def __init__(self, config: EncoderDecoderConfig):
        super().__init__(config)
        encoder = TransformerConfig(vocab_size=config.vocab_size, **config.encoder)
        self.encoder = TextEncoder(encoder)
        # not in the blocks: sharded weights of a block are whole while its forward runs only
        self.readers = nn.ModuleList(
            SourceReader(config, encoder.hidden_size) for _ in range(config.num_hidden_layers)
        )
        self.blocks = nn.ModuleList(SourceBlock(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    def read(self, tokens: Tensor, rng: Rng | None = None) -> Source:
        """Encode a source [B, S], `ABSENT` where it has no token; rows of nothing else get 0.

        rng: of dropout in training, one key a row.
        """
        absent = tokens == ABSENT
        there = ~absent.all(1)
        states = self.encoder(tokens, rng)
        # softmax needs something to see, also where all is absent
        bias = _bias(~(absent & there[:, None])[:, None, None], states.dtype)
        kept = there[:, None, None, None]
        layers = []
        for reader in self.readers:
            k, v = reader(states)
            layers.append((k, v * kept.to(v.dtype), bias))
        return Source(tuple(layers))

    def load_decoder(self, model: DiffusionTransformer) -> None:
        """Take over the weights of a denoiser of the decoder's shape, by name."""
        own, other = dict(self.named_parameters()), dict(model.named_parameters())
        strange = [
            name for name in other if name not in own or own[name].shape != other[name].shape
        ]
        missing = [name for name in own if not _is_new(name) and name not in other]
        if strange or missing:
            raise ConfigError(
                f"the weights do not fit the decoder, for instance {(strange + missing)[0]}: give "
                "it the shape of the model that they come from"
            )
        _copy(own, other)

    def load_encoder(self, model: DiffusionTransformer) -> None:
        """Let the encoder start from the weights of a denoiser of its shape."""
        own, other = dict(self.encoder.named_parameters()), dict(model.named_parameters())
        strange = [n for n in own if n not in other or own[n].shape != other[n].shape]
        if strange:
            raise ConfigError(
                f"the weights do not fit the encoder, for instance {strange[0]}: give it the "
                "shape of the model that they come from"
            )
        _copy(own, {name: other[name] for name in own})

    def freeze_decoder(self) -> None:
        """Let only the encoder and the cross-attention learn."""
        for name, param in self.named_parameters():
            param.requires_grad_(_is_new(name))

    def unfreeze_all(self) -> None:
        """Let everything learn."""
        self.requires_grad_(True)


def create_conditional_model(
    encoder_config: str | TransformerConfig = "small",
    decoder_config: str | TransformerConfig = "small",
    vocab_size: int = 8192,
    *,
    encoder_length: int = 64,
    decoder_length: int = 256,
    mask_token_id: int | None = None,
) -> EncoderDecoder:
    """An encoder-decoder of two sizes by name ("tiny" to "xxlarge"), or of two configs.

    Configs bring everything themselves, so that what is said beside them must agree.
    """
    encoder = _config_of(encoder_config, vocab_size, encoder_length, None)
    decoder = _config_of(decoder_config, vocab_size, decoder_length, mask_token_id)
    return EncoderDecoder(EncoderDecoderConfig.of(encoder, decoder))


def _config_of(
    wanted: str | TransformerConfig, vocab_size: int, length: int, mask_token_id: int | None
) -> TransformerConfig:
    if isinstance(wanted, str):
        return TransformerConfig.of_size(
            wanted,
            vocab_size=vocab_size,
            max_position_embeddings=length,
            mask_token_id=mask_token_id,
        )
    if wanted.vocab_size != vocab_size:
        raise ConfigError(
            f"the config has a vocabulary of {wanted.vocab_size}, but vocab_size is {vocab_size}"
        )
    return wanted


def _is_new(name: str) -> bool:
    """Whether a weight is one that a denoiser without an encoder does not have."""
    return name.startswith(("encoder.", "readers.")) or ".cross." in name


@torch.no_grad()
def _copy(own: dict[str, nn.Parameter], other: dict[str, nn.Parameter]) -> None:
    for name, param in other.items():
        own[name].copy_(param)


def _bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(allowed, dtype=dtype).masked_fill(~allowed, -math.inf)
