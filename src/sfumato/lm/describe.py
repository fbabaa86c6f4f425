"""A model in one line: what `repr` says of it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sfumato.lm.model import DiffusionLM


def describe(lm: "DiffusionLM") -> str:
    """What kind of model it is, how large, and where its weights are."""
    config, weights = lm.model.config, sum(each.numel() for each in lm.model.parameters())
    kind = ["next token" if lm.autoregressive else type(lm.corruption).__name__.lower()]
    if lm.block_size:
        kind.append(f"blocks of {lm.block_size}")
    if lm.model.reads_source:
        kind.append("with an encoder")
    size = (
        f"{weights / 1e6:.2f}M weights",
        f"{config.vocab_size} tokens",
        f"{config.max_position_embeddings} positions",
        str(lm.model.dtype).removeprefix("torch."),
        str(lm.device),
    )
    return f"DiffusionLM({', '.join((*kind, *size))})"
