"""The smallest models that write: two layers that know a few sentences, made on the spot."""

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sfumato.data.tokenizer import encode
from sfumato.data.tokenizer_training import train_tokenizer
from sfumato.decoding.options import GenerationOptions
from sfumato.lm.model import DiffusionLM
from sfumato.lm.pages import template
from sfumato.models import DiffusionTransformer, TransformerConfig
from sfumato.objectives.masked import MaskedDiffusion
from sfumato.objectives.next_token import NextToken
from sfumato.objectives.times import Systematic
from sfumato.objectives.weights import ClippedWeight
from sfumato.rng import Rng
from sfumato.train.config import TrainOptions
from sfumato.train.optim import build_optimizers
from sfumato.types import Batch

SENTENCES = (
    "Once upon a time there was a fox.",
    "The fox met a big grey bear.",
    "The bear lost his red ball.",
    "A caf\u00e9 had a \u2603 on its roof.",
)
CANVAS = 24
ROLES = ("mask", "eos", "bos", "pad")
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MASKED = {"name": "masked", "schedule": {"name": "linear"}}
UNIFORM = {"name": "uniform", "schedule": {"name": "linear"}}
HYBRID = {"name": "hybrid", "uniform_share": 0.2, "schedule": {"name": "linear"}}


@functools.cache
def tokenizer():
    return train_tokenizer(SENTENCES * 2, 330)


def tiny_lm(
    corruption: dict[str, Any] = MASKED,
    *,
    objective: str = "masked",
    layout: str = "padded",
    **config: Any,
) -> DiffusionLM:
    """Random weights, large enough for predictions to differ."""
    ids = {f"{role}_token_id": getattr(tokenizer(), f"{role}_token_id") for role in ROLES}
    causal = objective == "next_token"
    keys = {
        "vocab_size": len(tokenizer()),
        "max_position_embeddings": 2 * CANVAS,
        "attention": "causal" if causal else "full",
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DiffusionTransformer(
            TransformerConfig(
                objective=objective, corruption=corruption, **keys | SHAPE | ids | config
            )
        )
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.2)
    options = GenerationOptions(canvas=CANVAS, layout=layout, precision="fp32")
    return DiffusionLM(model.eval(), tokenizer(), options)


def taught(objective: str = "masked", steps: int = 250) -> DiffusionLM:
    """A model that knows `SENTENCES` by heart, in a few seconds."""
    lm = tiny_lm(objective=objective)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm = DiffusionLM(DiffusionTransformer(lm.model.config), tokenizer(), lm.options)
    rows = [[lm.special.bos, *ids, lm.special.eos] for ids in encode(tokenizer(), [*SENTENCES])]
    tokens = template(rows * 4, CANVAS, lm.special.filler)[0]
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    batch = Batch(tokens, everywhere, torch.zeros_like(tokens), torch.arange(len(tokens)))
    loss = MaskedDiffusion(lm.special.mask, Systematic(len(tokens)), weight=ClippedWeight(3.0))
    loss = NextToken() if objective == "next_token" else loss
    rates = TrainOptions(learning_rate=0.05, adam_learning_rate=0.01)
    optimizers = build_optimizers(lm.model, rates, torch.float32)
    highest = [[group["lr"] for group in one.param_groups] for one in optimizers]
    for step in range(steps):
        lm.model.zero_grad()
        seen = replace(batch, slots=batch.slots + step * len(tokens))
        loss(lm.denoiser, seen, Rng.from_seed(0)).value.backward()
        for optimizer, peaks in zip(optimizers, highest, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * min(1.0, 2 * (1 - step / steps))  # so that it comes to rest
            optimizer.step()
    lm.model.eval()
    return lm


def saved(lm: DiffusionLM, folder: Path) -> Path:
    lm.save(folder)
    return folder
