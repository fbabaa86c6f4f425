"""Texts scored under a model: laid out as in training, and what they cost in nats."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.arguments import COUNT, SEED
from sfumato.errors import DataError
from sfumato.estimates import Estimate
from sfumato.likelihood.bounds import bound
from sfumato.likelihood.exact import left_to_right
from sfumato.likelihood.result import Likelihood
from sfumato.lm.pages import template
from sfumato.lm.texts import Texts, listed, repeated
from sfumato.models.attention import HIDDEN
from sfumato.rng import Rng
from sfumato.types import Batch, PairBatch

if TYPE_CHECKING:
    from sfumato.lm.model import DiffusionLM


def score(
    lm: "DiffusionLM", text: Texts, source: Texts | None, num_samples: int, seed: int
) -> list[Estimate]:
    """Nats per token of each text; see `DiffusionLM.score`."""
    num_samples, seed = COUNT.check("num_samples", num_samples), SEED.check("seed", seed)
    wanted = listed("text", text)
    if not wanted or not all(wanted):
        raise DataError("nothing to score: every text needs at least one character")
    texts, sources = repeated(wanted, source, 1)
    batch, text_at, owner = text_rows(lm, texts)
    first = torch.searchsorted(owner, owner)  # of the rows of the same text
    batch = replace(batch, slots=batch.slots - first)
    if sources:
        batch = PairBatch(**vars(batch), source=lm.source_rows(sources)[owner])
    with lm.inference():
        if lm.autoregressive:
            rows: Likelihood = left_to_right(lm.denoiser, batch)
        else:
            rng = Rng.from_seed(seed, device=lm.device)
            rows = bound(lm.denoiser, lm.corruption, batch, rng, samples=num_samples)
    return replace(rows, tokens=text_at.sum(1)).grouped(owner).per_row


def text_rows(lm: "DiffusionLM", texts: Sequence[str]) -> tuple[Batch, Tensor, Tensor]:
    """Texts laid out as in training; see `DiffusionLM.rows`."""
    canvas = lm.options.canvas or lm.model.config.max_position_embeddings
    rows, owner = [], []
    for number, ids in enumerate(lm.encode(listed("text", texts))):
        whole = [*lm.prompts.opening(ids), lm.special.eos]
        for start in range(0, len(whole), canvas):
            rows.append(whole[start : start + canvas])
            owner.append(number)
    padded = lm.options.layout == "padded"
    width = canvas if padded else max(map(len, rows))
    tokens, text = template(rows, width, lm.special.filler)
    batch = Batch(
        tokens,
        torch.ones_like(text) if padded else text,
        torch.zeros_like(tokens) if padded else torch.where(text, 0, HIDDEN),
        torch.arange(len(rows)),
    )
    moved = Batch(*(getattr(batch, f.name).to(lm.device) for f in fields(batch)))
    return moved, text.to(lm.device), torch.tensor(owner, device=lm.device)
