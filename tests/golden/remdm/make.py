"""One step of each ReMDM strategy by its authors' code: python tests/golden/remdm/make.py CHECKOUT

Kept: the law that `_ddpm_caching_update` of `Diffusion` in diffusion.py draws from, for given noisy
tokens, times and confidences at the time of decision.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from official import MASK, VOCAB, checkout, keep, logits, pretend, some_tokens, table

COMMIT = "f830d659fb98d9b2c79ff71bfa12d578312b688a"

checkout("kuleshov-group/remdm", COMMIT)
pretend("hydra", "hydra.utils", "lightning", "torchmetrics", "dataloader", "models", "utils")
sys.modules["lightning"].LightningModule = torch.nn.Module
import diffusion  # noqa: E402
import noise_schedule  # noqa: E402

NETWORK = table()
_, NOISY = some_tokens(6, seed=2)
GAP = 0.04
# confidence at the time of decision, with their sign; a masked position has none
CONFIDENCE = -torch.rand(NOISY.shape, generator=torch.Generator().manual_seed(3))
CONFIDENCE[NOISY == MASK] = -torch.inf


def model(strategy: str, eta: float) -> diffusion.Diffusion:
    """Their class with what its method needs, and the toy network."""
    new = diffusion.Diffusion.__new__(diffusion.Diffusion)
    torch.nn.Module.__init__(new)
    new.config = SimpleNamespace(
        noise=SimpleNamespace(type="loglinear"),
        sampling=SimpleNamespace(
            sampler=strategy, nucleus_p=1.0, eta=eta, t_on=0.55, t_off=0.05, alpha_on=0.9
        ),
    )
    new.noise = noise_schedule.get_noise(new.config)
    new.parameterization, new.mask_index, new.neg_infinity = "subs", MASK, -1000000.0
    new.time_conditioning = True
    new.backbone = lambda tokens, sigma: logits(NETWORK, tokens)
    return new


drawn = []


def record(law):
    drawn.append(law)
    return law.argmax(-1)


CASES = {
    "remdm-cap": (0.05, (0.9, 0.5, 0.06)),
    "remdm-rescale": (0.3, (0.9, 0.5, 0.06)),
    "remdm-conf": (0.0, (0.9, 0.5, 0.06)),
    "remdm-loop": (0.02, (0.8, 0.3, 0.05)),
}
diffusion._sample_categorical = record
kept = {"table": NETWORK, "noisy": NOISY, "confidence": CONFIDENCE, "gap": torch.tensor(GAP)}
with torch.no_grad():
    for strategy, (eta, times) in CASES.items():
        for time in times:
            drawn.clear()
            t = torch.full((len(NOISY),), time, dtype=torch.float64)
            conf = CONFIDENCE.clone()
            model(strategy, eta)._ddpm_caching_update(NOISY, t, GAP, conf=conf)
            law = drawn[0] / drawn[0].sum(-1, keepdim=True)
            if strategy == "remdm-loop" and not 0.05 < time <= 0.55:  # theirs copies them later
                law = torch.where((NOISY == MASK)[..., None], law, torch.eye(VOCAB)[NOISY])
            kept[f"{strategy}.{time}"] = law.float()
keep(__file__, COMMIT, kept)
