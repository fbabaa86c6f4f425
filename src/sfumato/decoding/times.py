"""The times of a canvas' steps, from 1 to 0."""

import torch
from torch import Tensor

from sfumato.errors import ConfigError


def even_times(num_steps: int) -> Tensor:
    """1 = t_0 > t_1 > ... > t_n = 0, float64: the schedule decides what happens between them."""
    if num_steps < 1:
        raise ConfigError(f"num_steps must be at least 1, got {num_steps}")
    return torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)


def one_each(noisy: Tensor) -> Tensor:
    """Even times for each row [B, n + 1], one step for each of its noisy positions [B, L].

    A row with fewer of them reaches 0 earlier, whatever other rows are in the batch.
    """
    counts = noisy.sum(1, keepdim=True)
    passed = torch.arange(int(counts.max()) + 1, device=noisy.device, dtype=torch.float64)
    return (1 - passed / counts.clamp_min(1)).clamp_min(0)


def shared_times(num_steps: int, noisy: Tensor, number: int) -> Tensor:
    """Even times of block `number` for each row [B, n + 1]: num_steps is shared out over the row's
    own noisy blocks, noisy [B, blocks], the first ones getting what does not come out even."""
    blocks, before = noisy.sum(1, keepdim=True).clamp_min(1), noisy[:, :number].sum(1, keepdim=True)
    share = (num_steps // blocks + (before < num_steps % blocks)).clamp_min(1)
    passed = torch.arange(int(share.max()) + 1, device=noisy.device, dtype=torch.float64)
    return (1 - passed / share).clamp_min(0)
