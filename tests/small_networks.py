"""Networks of a few thousand random weights."""

import torch

from sfumato.models import (
    DiffusionTransformer,
    EncoderDecoder,
    TransformerConfig,
    create_conditional_model,
)

VOCAB, LENGTH = 12, 8
WIDE = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def config(**options) -> TransformerConfig:
    shape = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
    return TransformerConfig(**(shape | options))


def network(seed: int = 0, **options) -> DiffusionTransformer:
    """Random weights everywhere: as built, output projections are 0 and would hide errors."""
    torch.manual_seed(seed)
    model = DiffusionTransformer(config(**options)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return model


def tokens(rows: int = 2, length: int = LENGTH, seed: int = 1) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (rows, length), generator=draw)


def reader(seed: int = 0, std: float = 0.4, **options) -> EncoderDecoder:
    """An encoder of another width than the decoder's; random weights everywhere."""
    torch.manual_seed(seed)
    model = create_conditional_model(config(**WIDE), config(**options), VOCAB).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=std)
    return model
