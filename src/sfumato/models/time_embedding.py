"""The noise time as a vector, for networks that read it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ZeroLinear(nn.Linear):
    """Starts at zero: what it adds to the residual stream begins as nothing.

    A type of its own because transformers does not ask the modules around it to initialise it.
    """


class TimeEmbedding(nn.Module):
    """t in [0, 1] as a vector added to every position; sinusoids, then a small MLP."""

    def __init__(self, size: int):
        super().__init__()
        self.waves = size // 2
        self.up = nn.Linear(2 * self.waves, size)
        self.down = ZeroLinear(size, size)

    def forward(self, t: Tensor) -> Tensor:
        steps = torch.arange(self.waves, device=t.device, dtype=torch.float32)
        angle = 1000 * t.float()[:, None] * torch.exp(-math.log(10000) / self.waves * steps)
        waves = torch.cat((angle.sin(), angle.cos()), -1).to(self.up.weight.dtype)
        return self.down(F.silu(self.up(waves)))
