"""Losses and one step of MDLM by its authors' code: python tests/golden/mdlm/make.py CHECKOUT

Kept of `Diffusion` in diffusion.py, for given noisy tokens: `_forward_pass_diffusion` (the masked
loss a position, log-linear and cosine noise in continuous time, and T = 8 steps), and the law that
`_ddpm_update` draws from.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from official import MASK, checkout, keep, logits, pretend, some_tokens, table

COMMIT = "c112c526d193436838c98d81455ee51f90309470"

checkout("kuleshov-group/mdlm", COMMIT)
pretend("hydra", "hydra.utils", "lightning", "torchmetrics", "dataloader", "models", "utils")
sys.modules["lightning"].LightningModule = torch.nn.Module
import diffusion  # noqa: E402
import noise_schedule  # noqa: E402

NETWORK = table()
CLEAN, NOISY = some_tokens(6, seed=1)
TIMES = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 0.97])


def model(noise: str, steps: int = 0) -> diffusion.Diffusion:
    """Their class with what its methods need, and the toy network; noisy tokens are given."""
    new = diffusion.Diffusion.__new__(diffusion.Diffusion)
    torch.nn.Module.__init__(new)
    new.config = SimpleNamespace(noise=SimpleNamespace(type=noise))
    new.noise = noise_schedule.get_noise(new.config)
    new.parameterization, new.mask_index, new.neg_infinity = "subs", MASK, -1000000.0
    new.time_conditioning = new.change_of_variables = new.importance_sampling = False
    new.T = steps
    new.backbone = lambda tokens, sigma: logits(NETWORK, tokens)
    new._sample_t = lambda rows, device: TIMES
    new.q_xt = lambda x, move_chance: NOISY
    return new


drawn = []


def record(law):
    drawn.append(law)
    return law.argmax(-1)


diffusion._sample_categorical = record
with torch.no_grad():
    kept = {"table": NETWORK, "clean": CLEAN, "noisy": NOISY, "times": TIMES}
    for noise in ("loglinear", "cosine"):
        kept[f"{noise}.loss"] = model(noise)._forward_pass_diffusion(CLEAN)
    kept["discrete.loss"] = model("loglinear", steps=8)._forward_pass_diffusion(CLEAN)
    model("loglinear")._ddpm_update(NOISY, TIMES[:, None], 0.04)
    kept["step.law"] = drawn[0] / drawn[0].sum(-1, keepdim=True)
keep(__file__, COMMIT, kept)
