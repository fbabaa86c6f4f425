"""Backbones. `FAMILIES` is the only table of them."""

from sfumato.models.transformer import DiffusionTransformer, TransformerConfig

FAMILIES = {"sfumato": (TransformerConfig, DiffusionTransformer)}

__all__ = ["FAMILIES", "DiffusionTransformer", "TransformerConfig"]
