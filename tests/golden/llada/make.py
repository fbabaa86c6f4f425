"""LLaDA's decoding and likelihood by its authors' code: python tests/golden/llada/make.py CHECKOUT

Kept: `get_num_transfer_tokens` and `generate` (temperature 0, low confidence, with and without
blocks) of generate.py, and `get_log_likelihood` of get_log_likelihood.py with the masks it drew.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from official import LENGTH, MASK, checkout, keep, logits, some_tokens, table

COMMIT = "b7e6c3565f194352da44b38dd12b6970597309f3"

checkout("ML-GSAI/LLaDA", COMMIT)
import generate  # noqa: E402
import get_log_likelihood  # noqa: E402

NETWORKS = torch.stack([table(seed) for seed in range(4)])
CLEAN, _ = some_tokens(4, seed=4)


class Network(SimpleNamespace):
    device = torch.device("cpu")

    def __call__(self, tokens, attention_mask=None):
        return SimpleNamespace(logits=logits(self.table, tokens))


kept = {"tables": NETWORKS, "clean": CLEAN}
counts = torch.arange(17)[:, None] > torch.arange(16)
for steps in (1, 3, 7, 16):
    kept[f"split.{steps}"] = generate.get_num_transfer_tokens(counts, steps)
for prompt, steps, block in ((1, 4, 4), (1, 2, 4), (1, 2, 2), (1, 4, 2), (0, 3, 5), (3, 2, 1)):
    written = [
        generate.generate(
            Network(table=each), CLEAN[:, :prompt], steps=steps, gen_length=LENGTH - prompt,
            block_length=block, temperature=0.0, mask_id=MASK,
        )
        for each in NETWORKS
    ]  # fmt: skip
    kept[f"written.{prompt}.{steps}.{block}"] = torch.stack(written)

seen = []
theirs = get_log_likelihood.forward_process


def record(*given):
    noisy, share = theirs(*given)
    seen.append(noisy)
    return noisy, share


torch.manual_seed(5)
get_log_likelihood.forward_process = record
for row in range(len(CLEAN)):
    seen.clear()
    kept[f"nats.{row}"] = -torch.tensor(
        get_log_likelihood.get_log_likelihood(
            Network(table=NETWORKS[0]), CLEAN[row, :1], CLEAN[row, 1:],
            mc_num=8, batch_size=4, mask_id=MASK,
        )
    )  # fmt: skip
    kept[f"noisy.{row}"] = torch.cat(seen)
keep(__file__, COMMIT, kept)
