"""GIDD's noise, bound and step by its authors' code: python tests/golden/gidd/make.py CHECKOUT

Kept: `HybridDiffusion.probs_at_t` of gidd/diffusion_process.py, the ELBO a position of
`GiddLoss.loss` of gidd/loss.py, and the law that `GiddSampler.DenoisingStep` of gidd/sampling.py
draws from. Theirs has t for our noise rate of the linear schedule.
"""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from official import MASK, VOCAB, checkout, keep, logits, some_tokens, table

COMMIT = "f67acc961cc858cc69e8e6d91e7eb67a0a79151c"

folder = checkout("dvruette/gidd", COMMIT)
package = ModuleType("gidd")  # without its __init__, which wants the whole pipeline
package.__path__ = [str(folder / "gidd")]
sys.modules["gidd"] = package
import gidd.sampling  # noqa: E402
from gidd.diffusion_process import HybridDiffusion  # noqa: E402
from gidd.loss import GiddLoss  # noqa: E402


class Tokenizer(SimpleNamespace):
    mask_token_id = MASK

    def __len__(self):
        return VOCAB


NETWORK = table().double()
CLEAN, NOISY = some_tokens(6, seed=6)
TIMES = torch.tensor([0.05, 0.2, 0.4, 0.6, 0.8, 0.97], dtype=torch.float64)
GAP = 0.04
NOISY[::2, 1], NOISY[1::2, 3] = (CLEAN[::2, 1] + 2) % MASK, CLEAN[1::2, 3]  # replaced, and kept

drawn = []


def record(law):
    drawn.append(law)
    return law.argmax(-1)


gidd.sampling.sample_categorical = record
weighting = SimpleNamespace(loss_weighting="none", min_loss_weight=0.0, max_loss_weight=1.0)
kept = {"table": NETWORK.float(), "clean": CLEAN, "noisy": NOISY, "times": TIMES}
kept["gap"] = torch.tensor(GAP)
with torch.no_grad():
    for share in (0.1, 0.4):
        noise = HybridDiffusion(Tokenizer(), p_uniform=share).double()
        network = lambda tokens, t: logits(NETWORK, tokens)  # noqa: E731
        onehot = torch.eye(VOCAB, dtype=torch.float64).expand(len(TIMES), VOCAB, VOCAB)
        kept[f"{share}.forward"] = noise.probs_at_t(onehot, TIMES)
        loss = GiddLoss(SimpleNamespace(loss=weighting), Tokenizer(), noise)
        _, elbo, _ = loss.loss(network(NOISY, TIMES), CLEAN, torch.ones_like(CLEAN), NOISY, TIMES)
        kept[f"{share}.bound"] = elbo
        drawn.clear()
        step = gidd.sampling.GiddSampler.DenoisingStep(network, noise, Tokenizer())
        for row, t in zip(NOISY, TIMES, strict=True):  # theirs has one time for all rows
            step(row[None], t[None], t[None] - GAP)
        kept[f"{share}.law"] = torch.cat(drawn)
keep(__file__, COMMIT, kept)
