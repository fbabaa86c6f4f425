"""Small networks with nothing at zero, so that no mistake hides."""

import torch

from sfumato.models import DiffusionTransformer, TransformerConfig


def network(vocab_size: int = 7, **options) -> DiffusionTransformer:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    options = {"max_position_embeddings": 64, **shape, **options}
    model = DiffusionTransformer(TransformerConfig(vocab_size=vocab_size, **options)).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)  # output projections start at zero
    return model
