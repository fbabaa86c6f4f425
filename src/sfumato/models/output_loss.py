"""Cross-entropy of the output head, without ever holding the logits of all positions.

The head of a small model costs more memory than all the rest: [N, V] floats, several times over.
Here it runs in chunks of positions, and each chunk's gradient is made at once, in the same pass.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sfumato.types import Integrand

CHUNK = 512  # positions at most; 512 x 8192 float32 logits are 16 MB


class Scored(NamedTuple):
    value: Tensor  # scalar, sum of weights * nll: backpropagate this
    nll: Tensor  # [N] nats, no gradient
    correct: Tensor  # [N] bool, no token is likelier than the clean one


def compute_dtype(like: Tensor) -> torch.dtype:
    """The dtype in which matrices are multiplied: what autocast asks for, or that of `like`."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


def chunks(count: int) -> Iterator[slice]:
    """0..count in parts of equal size; a small last one would cost nearly as much as a full one."""
    number = -(-count // CHUNK)
    for i in range(number):
        yield slice(count * i // number, count * (i + 1) // number)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """sum_i weights_i * nll_i of softmax(hidden @ head.T); gradients are made in the forward."""

    @staticmethod
    def forward(ctx, hidden, head, targets, weights, excluded):  # type: ignore[override]
        need = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        count, compute = len(hidden), hidden.dtype
        weight, exact = head.to(compute), torch.promote_types(compute, torch.float32)
        nll = torch.empty(count, dtype=exact, device=hidden.device)
        correct = torch.empty(count, dtype=torch.bool, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if need else None
        grad_head = torch.zeros_like(head, dtype=exact) if need else None
        for part in chunks(count):
            logits = (hidden[part] @ weight.T).to(exact)
            if excluded:
                logits[:, list(excluded)] = -torch.inf
            # A softmax that overwrites the logits: passes over them are what the head costs.
            wanted = targets[part, None]
            top, chosen = logits.amax(-1, keepdim=True), logits.gather(-1, wanted)
            correct[part] = (chosen == top)[:, 0]
            odds = logits.sub_(top).exp_()
            total = odds.sum(-1, keepdim=True)
            nll[part] = (total.log() + top - chosen)[:, 0]
            if need:
                scale = weights[part, None].to(exact)
                grad = odds.mul_(scale / total)
                grad.scatter_add_(-1, wanted, -scale)
                grad = grad.to(compute)
                grad_hidden[part] = grad @ weight  # type: ignore[index]
                grad_head += (grad.T @ hidden[part]).to(exact)
        ctx.save_for_backward(grad_hidden, grad_head)
        value, nll = (weights.to(exact) * nll).sum(), nll.float()
        ctx.mark_non_differentiable(nll, correct)
        return value, nll, correct

    @staticmethod
    def backward(ctx, grad_value, grad_nll, grad_correct):  # type: ignore[override]
        grad_hidden, grad_head = ctx.saved_tensors
        return (
            grad_hidden * grad_value.to(grad_hidden.dtype),
            grad_head * grad_value,
            None,
            None,
            None,
        )


def score_integrand(
    hidden: Tensor,  # [N, D]
    head: nn.Module,
    weights: Tensor,  # [N]
    integrand: Integrand,
) -> Scored:
    """Any integrand of the logits, in chunks whose logits are made again in the backward pass."""
    value = hidden[:0].sum(dtype=torch.float32)  # 0, and part of the graph where nothing is scored
    nlls = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    corrects = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
    for part in chunks(len(hidden)):

        def piece(h: Tensor, part: slice = part) -> tuple[Tensor, Tensor]:
            logits = head(h)
            return integrand(logits.to(torch.promote_types(logits.dtype, torch.float32)), part)

        nll, correct = checkpoint(piece, hidden[part], use_reentrant=False)  # type: ignore[misc]
        value = value + (weights[part] * nll).sum()
        nlls[part], corrects[part] = nll.detach(), correct
    return Scored(value, nlls, corrects)


def score_hidden(
    hidden: Tensor,  # [N, D]
    head: Tensor,  # [V, D]
    targets: Tensor,  # [N]
    weights: Tensor,  # [N]
    excluded: tuple[int, ...] = (),
) -> Scored:
    """Cross-entropy of softmax(hidden @ head.T) in chunks, in the dtype that autocast asks for."""
    hidden = hidden.to(compute_dtype(hidden))
    if not torch.is_grad_enabled():
        head = head.detach()  # a parameter asks for its gradient even then
    with torch.autocast(hidden.device.type, enabled=False):
        return Scored(*_ChunkedCrossEntropy.apply(hidden, head, targets, weights, excluded))
