"""Backbones. `FAMILIES` is the only table of them; importing it teaches transformers' Auto classes
our types."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from sfumato.models.config import TransformerConfig
from sfumato.models.encoder_decoder import (
    EncoderDecoder,
    EncoderDecoderConfig,
    create_conditional_model,
)
from sfumato.models.transformer import DiffusionTransformer

FAMILIES: dict[str, tuple[type[TransformerConfig], type[DiffusionTransformer]]] = {
    "sfumato": (TransformerConfig, DiffusionTransformer),
    "sfumato_encoder_decoder": (EncoderDecoderConfig, EncoderDecoder),
}

for _name, (_config, _model) in FAMILIES.items():
    AutoConfig.register(_name, _config)
    AutoModel.register(_config, _model)
    AutoModelForMaskedLM.register(_config, _model)

__all__ = [
    "FAMILIES",
    "DiffusionTransformer",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "TransformerConfig",
    "create_conditional_model",
]
