"""Tiny models of transformers with random weights, one of every kind that tests prove."""

import functools
import logging
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

VOCAB = 40
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED: dict[str, Any] = {"num_key_value_heads": 2}
NARROW = {**GROUPED, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
CAUSAL: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "qwen3": NARROW,
    "qwen3_moe": {**NARROW, **EXPERTS},
    "mistral": {**GROUPED, "sliding_window": 4},
    "gpt2": {},
    "gemma2": {**NARROW, "sliding_window": 4},
    "gemma3_text": {**NARROW, "sliding_window": 4},
    "phi3": GROUPED,
    "smollm3": GROUPED,
    "olmo2": GROUPED,
}
MASKED: dict[str, dict[str, Any]] = {
    "modernbert": {"local_attention": 8, "cls_token_id": 1, "sep_token_id": 2},
    "bert": {},
    "roberta": {"max_position_embeddings": 66},
}
LOCAL = {"mistral", "gemma2", "gemma3_text", "modernbert"}  # some layers see a window


@functools.cache
def hub_model(kind: str) -> PreTrainedModel:
    """Weights that are nowhere 0 or 1, so that no mistake hides."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    config = AutoConfig.for_model(kind, **{**SHAPE, **CAUSAL.get(kind, {}), **MASKED.get(kind, {})})
    auto = AutoModelForMaskedLM if kind in MASKED else AutoModelForCausalLM
    torch.manual_seed(0)
    model = auto.from_config(config, attn_implementation="eager").eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model
