"""A network's config: every key, what it may be, and the class that holds them.

`KEYS` is the one table of it, for the class in Python and in training and for the config.json of a
folder: a key that is not in it is refused, as a value that the table does not allow is. What
Hugging Face itself writes into every config.json is in `STANDARD`; keys that begin with an
underscore are its own affair.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig

from sfumato.errors import ConfigError, near
from sfumato.models.attention import ATTENDS, attend_from
from sfumato.noise.corruption import CORRUPTIONS, corruption_from
from sfumato.storage.files import brief

# name -> width, layers, heads: the six sizes of the "diffusion-llm" project, with its 4x MLP turned
# into a gated one of the same number of weights (8/3 of the width, rounded up to a multiple of 64)
SIZES = {
    "tiny": (256, 4, 4),
    "small": (384, 6, 6),
    "medium": (512, 8, 8),
    "large": (640, 10, 10),
    "xlarge": (768, 12, 12),
    "xxlarge": (1024, 16, 16),
}
NEXT_TOKEN = "next_token"
OBJECTIVES = (*CORRUPTIONS, NEXT_TOKEN)  # what the outputs were learnt as


class Kind(NamedTuple):
    """What the values of a key may be."""

    expected: str
    allows: Callable[[Any], bool]


def whole(low: int, high: int) -> Kind:
    """Numbers from `low` to `high`, without a fraction."""
    return Kind(
        f"a whole number from {low} to {high}",
        lambda v: isinstance(v, int) and not isinstance(v, bool) and low <= v <= high,
    )


def real(low: float, high: float, *, above: bool = False, below: bool = False) -> Kind:
    """Numbers from `low` to `high`; with `above` and `below` without these themselves."""
    start, end = "above" if above else "from", "to below" if below else "to"

    def allows(v: Any) -> bool:
        if isinstance(v, bool) or not isinstance(v, int | float):
            return False
        return (low < v if above else low <= v) and (v < high if below else v <= high)

    return Kind(f"a number {start} {low:g} {end} {high:g}", allows)


def one_of(*words: str) -> Kind:
    return Kind(f"one of {', '.join(words)}", lambda v: isinstance(v, str) and v in words)


def optional(kind: Kind) -> Kind:
    return Kind(f"{kind.expected}, or null", lambda v: v is None or kind.allows(v))


def _ids(value: Any) -> bool:
    listed = value if isinstance(value, list) else [value]
    return all(ID.allows(one) for one in listed)


FLAG = Kind("true or false", lambda v: isinstance(v, bool))
WORD = Kind("a string", lambda v: isinstance(v, str) and len(v) < 1000)
WORDS = Kind("a list of strings", lambda v: isinstance(v, list) and all(map(WORD.allows, v)))
TABLE = Kind("an object", lambda v: isinstance(v, dict))
COUNT = whole(1, 2**24)
ID = whole(0, 2**24 - 1)
LABELS = Kind(
    "an object of labels by their number",
    lambda v: isinstance(v, dict) and all(re.fullmatch(r"\d{1,6}", str(key)) for key in v),
)
DTYPES = ("float32", "bfloat16", "float16", "float64", "auto")
DTYPE = Kind(f"one of {', '.join(DTYPES)}", lambda v: isinstance(v, torch.dtype) or v in DTYPES[:5])

DIGEST = Kind(
    "a number of tokens and a digest of them, such as 4096-0f1e2d3c4b5a6978",
    lambda v: isinstance(v, str) and bool(re.fullmatch(r"\d{1,8}-[0-9a-f]{16}", v)),
)

SHAPE = {
    "hidden_size": whole(2, 2**20),
    "num_hidden_layers": whole(1, 2**12),
    "num_attention_heads": whole(1, 2**12),
    "intermediate_size": optional(whole(1, 2**22)),  # none: 8/3 of the width, in steps of 64
    "max_position_embeddings": COUNT,
    "rope_theta": real(1, 1e12),
    "rms_norm_eps": real(0, 1, above=True, below=True),
    "dropout": real(0, 1, below=True),
}
KEYS = {
    "vocab_size": whole(2, 2**24),
    **SHAPE,
    "time_conditioned": FLAG,
    "attention": one_of(*ATTENDS),
    "block_size": optional(COUNT),
    "block_length": optional(COUNT),  # as others call it
    "shift": FLAG,
    "objective": one_of(*OBJECTIVES),
    "corruption": optional(TABLE),  # and what `corruption_from` says
    "mask_token_id": optional(ID),
    "tie_word_embeddings": FLAG,
    "vocabulary_digest": optional(DIGEST),  # of the tokenizer: `data.tokenizer.vocabulary_digest`
}
STANDARD = {
    "model_type": WORD,
    "transformers_version": optional(WORD),
    "architectures": optional(WORDS),
    "dtype": optional(DTYPE),
    "torch_dtype": optional(DTYPE),
    **dict.fromkeys(
        ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id"),
        optional(Kind("a token's id, or a list of them", _ids)),
    ),
    **dict.fromkeys(
        ("output_hidden_states", "output_attentions", "return_dict", "use_cache", "torchscript"),
        optional(FLAG),
    ),
    **dict.fromkeys(("is_encoder_decoder", "is_decoder", "add_cross_attention"), optional(FLAG)),
    "chunk_size_feed_forward": whole(0, 2**24),
    "id2label": optional(LABELS),
    "label2id": optional(TABLE),
    "num_labels": whole(1, 2**16),
    "problem_type": optional(WORD),
    "auto_map": optional(TABLE),
    "tokenizer_class": optional(WORD),
    **dict.fromkeys(("attn_implementation", "experts_implementation"), optional(WORD)),
    "name_or_path": Kind("anything", lambda v: True),
}


def config_problem(keys: Mapping[str, Any]) -> str | None:
    """What is wrong with a config: which key, what was expected, and what is there instead."""
    for key, value in keys.items():
        if str(key).startswith("_"):
            continue
        kind = KEYS.get(key) or STANDARD.get(key)
        if kind is None:
            return f"unknown key '{key}'{near(str(key), KEYS)}"
        if not kind.allows(value):
            return f"'{key}' must be {kind.expected}; got {brief(value)}"
    return _shape_problem(keys, "") or _reading_problem(keys)


def _shape_problem(keys: Mapping[str, Any], place: str) -> str | None:
    width, heads = keys.get("hidden_size", 384), keys.get("num_attention_heads", 6)
    if width % (2 * heads):
        return (
            f"{place}hidden_size {width} must be an even multiple of {place}num_attention_heads "
            f"{heads}: rotary positions pair the coordinates of a head"
        )
    return None


def _reading_problem(keys: Mapping[str, Any]) -> str | None:
    """What is wrong with how the outputs are to be read."""
    vocab, mask = keys.get("vocab_size", 8192), keys.get("mask_token_id")
    if mask is not None and mask >= vocab:
        return f"'mask_token_id' must be one of the {vocab} tokens; got {mask}"
    try:
        attend_from(keys.get("attention", "full"), keys.get("block_size"))
        if keys.get("corruption") is not None:
            corruption_from(keys["corruption"], vocab, mask or 0)
    except ConfigError as error:
        return str(error)
    return None


def encoder_problem(encoder: Any) -> str | None:
    """The same of the encoder's own keys, those of `SHAPE`."""
    if not isinstance(encoder, dict):
        return f"'encoder' must be an object; got {brief(encoder)}"
    for key, value in encoder.items():
        if key not in SHAPE:
            return f"unknown key 'encoder.{key}'{near(str(key), SHAPE)}"
        if not SHAPE[key].allows(value):
            return f"'encoder.{key}' must be {SHAPE[key].expected}; got {brief(value)}"
    return _shape_problem(encoder, "encoder.")


class TransformerConfig(PreTrainedConfig):
    """Everything needed to build the network, and how its outputs are to be read."""

    model_type = "sfumato"
    attribute_map = {"block_length": "block_size"}  # noqa: RUF012 (the base class's form)

    def __init__(
        self,
        vocab_size: int = 8192,
        hidden_size: int = 384,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 6,
        intermediate_size: int | None = None,
        max_position_embeddings: int = 1024,
        rope_theta: float = 10000.0,
        rms_norm_eps: float = 1e-6,
        dropout: float = 0.0,
        time_conditioned: bool = False,
        attention: str = "full",
        block_size: int | None = None,
        shift: bool = False,  # reads the token before each position, as autoregression does
        objective: str = "masked",
        corruption: dict | None = None,
        mask_token_id: int | None = None,
        tie_word_embeddings: bool = True,
        vocabulary_digest: str | None = None,  # none: the tokenizer is not known
        **kwargs,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.dropout = dropout
        self.time_conditioned = time_conditioned
        self.attention = attention
        self.block_size = kwargs.pop("block_length", None) if block_size is None else block_size
        self.shift = shift
        self.objective = objective
        self.mask_token_id = mask_token_id
        self.vocabulary_digest = vocabulary_digest
        own = {key: value for key, value in vars(self).items() if key in KEYS}
        own |= {
            "intermediate_size": intermediate_size,
            "corruption": corruption,
            "tie_word_embeddings": tie_word_embeddings,
        }
        if problem := config_problem({**kwargs, **own}):
            raise ConfigError(f"model config: {problem}")
        self.intermediate_size = intermediate_size or 64 * math.ceil(hidden_size * 8 / 3 / 64)
        self.corruption = corruption or {"name": "masked", "schedule": {"name": "linear"}}
        super().__init__(**{"tie_word_embeddings": tie_word_embeddings, **kwargs})

    @property
    def head_width(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def of_size(cls, size: str, **options) -> "TransformerConfig":
        """One of `SIZES`, for instance `of_size("small", vocab_size=4096)`."""
        if size not in SIZES:
            raise ConfigError(f"unknown model size '{size}'{near(size, SIZES)}")
        width, layers, heads = SIZES[size]
        shape = {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
        }
        return cls(**{**shape, **options})
