"""What an objective must keep."""

import math
from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor

from sfumato.denoisers.full import Full
from sfumato.models.config import TransformerConfig
from sfumato.models.transformer import DiffusionTransformer
from sfumato.rng import Rng
from sfumato.testing.claims import Undisturbed, close, expect, kind
from sfumato.types import Batch, Loss, Objective

_ROWS, _LENGTH = 4, 6  # of the rows that objectives are tried on


def check_objective(
    objective: Objective,
    *,
    vocab_size: int = 5,
    mask_id: int = 4,
    denoiser: Full | None = None,  # of such a vocabulary, for objectives that need another network
    samples: int = 200,
) -> None:
    """A loss with a gradient, of the trainable tokens alone, and of each row by itself.

    Where the loss says that it `bounds`, a network that knows nothing must get what it deserves:
    log(V - 1) nats a token, for the V - 1 tokens that are not the mask.
    """
    expect(
        callable(objective) and not isinstance(objective, type),
        f"an objective is called with a denoiser, a batch and an rng; {objective!r} cannot be",
    )
    denoiser = denoiser or _network(vocab_size, mask_id)
    batch, rng = _batch(vocab_size, mask_id), Rng.from_seed(0)
    before = [value.clone() for value in vars(batch).values()]
    with Undisturbed("an objective"):
        loss = objective(denoiser, batch, rng)
    expect(
        all(torch.equal(a, b) for a, b in zip(before, vars(batch).values(), strict=True)),
        "an objective must not write into its batch",
    )
    nats = _check_loss(loss, batch)
    again = objective(denoiser, batch, rng)
    expect(
        torch.equal(again.value, loss.value) and torch.equal(again.nll, loss.nll),
        "the same rng and slots must give the same loss: keep no state, draw from `rng` alone",
    )
    _check_gradient(denoiser, loss)
    for row in range(_ROWS):
        alone = Batch(**{name: value[row : row + 1] for name, value in vars(batch).items()})
        close(
            _check_loss(objective(denoiser, alone, rng), alone)[0],
            nats[row],
            1e-3,
            "a row's nll must be what it is alone, by its slot, whatever its neighbours",
        )
    if loss.bounds:
        _check_bound(objective, denoiser, batch, samples, math.log(vocab_size - 1))


def _network(vocab_size: int, mask_id: int) -> Full:
    shape: Any = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = TransformerConfig(
        vocab_size=vocab_size, mask_token_id=mask_id, max_position_embeddings=_LENGTH, **shape
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Full(DiffusionTransformer(config), mask_id)


def _batch(vocab_size: int, mask_id: int, first: int = 0) -> Batch:
    letters = torch.tensor([v for v in range(vocab_size) if v != mask_id])
    draws = Rng.from_seed(5, _ROWS).uniform(_LENGTH)
    trainable = torch.ones(_ROWS, _LENGTH, dtype=torch.bool)
    trainable[0, :2] = False
    trainable[2, 4:] = False
    return Batch(
        letters[(draws * len(letters)).long()],
        trainable,
        torch.zeros(_ROWS, _LENGTH, dtype=torch.int64),
        torch.arange(first, first + _ROWS),
    )


def _check_loss(loss: Loss, batch: Batch) -> Tensor:
    """nll [B, L], rows that are there several times together."""
    expect(
        isinstance(loss, Loss),
        f"an objective must return a types.Loss ({', '.join(f.name for f in fields(Loss))}); got "
        f"{type(loss).__name__}",
    )
    rows, length = batch.tokens.shape
    expect(
        loss.value.dim() == 0 and bool(loss.value.isfinite()),
        f"value must be one finite number; got {kind(loss.value)} {loss.value}",
    )
    expect(
        loss.nll.shape[1:] == (length,) and loss.nll.shape[0] % rows == 0 and len(loss.nll) > 0,
        f"nll must be [{rows}, {length}], for every position; got {kind(loss.nll)}",
    )
    expect(
        not loss.nll.requires_grad and bool(loss.nll.isfinite().all()),
        "nll must be finite and without a gradient: detach it",
    )
    times = len(loss.nll) // rows
    expect(
        bool((loss.nll[~batch.trainable.repeat(times, 1)] == 0).all()),
        "nll must be 0 where a token is not trainable",
    )
    expect(
        int(loss.count) == times * int(batch.trainable.sum()),
        f"count must be the trainable tokens, {times * int(batch.trainable.sum())}, not those "
        f"that are masked; got {int(loss.count)}",
    )
    expect(
        0 <= int(loss.correct) <= int(loss.corrupted),
        f"correct must be some of the corrupted; got {int(loss.correct)} of {int(loss.corrupted)}",
    )
    return loss.nll.reshape(times, rows, length).mean(0)


def _check_gradient(denoiser: Full, loss: Loss) -> None:
    expect(loss.value.requires_grad, "value must have a gradient; it was detached on the way")
    params = [p for p in denoiser.model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss.value, params, allow_unused=True)
    sizes = [float(each.abs().max()) for each in found if each is not None]
    expect(
        all(map(math.isfinite, sizes)) and max(sizes, default=0.0) > 0,
        f"value must have a finite gradient that is not 0; got {sizes}",
    )


@torch.no_grad()
def _check_bound(
    objective: Objective, denoiser: Full, batch: Batch, samples: int, truth: float
) -> None:
    weights: Tensor = cast(Any, denoiser.model).embed.weight
    kept = weights.detach().clone()
    weights.zero_()  # equal logits, and the head is tied to it
    try:
        means = []
        for number in range(samples):
            each = Batch(**vars(batch) | {"slots": batch.slots + number * _ROWS})
            loss = objective(denoiser, each, Rng.from_seed(0))
            means.append(float(loss.nll.double().sum() / loss.count))
    finally:
        weights.copy_(kept)
    found = torch.tensor(means, dtype=torch.float64)
    mean, error = float(found.mean()), float(found.std() / math.sqrt(samples))
    expect(
        abs(mean - truth) <= 5 * error + 1e-3,
        "where a loss says that it bounds, nll must be the bound itself, whatever is trained: of "
        f"equal logits it is {truth:.4f} nats a token on average; got {mean:.4f} +- {error:.4f}. "
        "Say bounds=False if it is none",
    )
