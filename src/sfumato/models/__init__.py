"""Backbones. `FAMILIES` is the only table of them; importing it teaches transformers' Auto classes
our types."""

from transformers import AutoConfig, AutoModelForMaskedLM

from sfumato.models.transformer import DiffusionTransformer, TransformerConfig

FAMILIES = {"sfumato": (TransformerConfig, DiffusionTransformer)}

for _name, (_config, _model) in FAMILIES.items():
    AutoConfig.register(_name, _config)
    AutoModelForMaskedLM.register(_config, _model)

__all__ = ["FAMILIES", "DiffusionTransformer", "TransformerConfig"]
