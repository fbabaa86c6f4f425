"""Single parts of a step beside the obvious way to write them: one thread, alternating, medians.

    python benchmarks/parts.py

Milliseconds of CPU time at width 384, 6 heads, 16 rows of 256, vocabulary 8,192, bfloat16 where
training uses it. Each pair computes the same; tests compare the results.
"""

import sys
import time
from collections.abc import Callable, Mapping
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.decoding.logits import draw_tokens
from sfumato.models import DiffusionTransformer, transformer
from sfumato.models.config import TransformerConfig
from sfumato.models.kv_cache import Reading, Store
from sfumato.models.layers import Block, rotary
from sfumato.models.output_loss import score_hidden
from sfumato.models.packed import Packed
from sfumato.train.optim import Muon, Pieces

ROUNDS = 15
WIDTH, HEADS, ROWS, LENGTH, VOCAB = 384, 6, 16, 256, 8192
BF16 = torch.bfloat16


def attention(kind: str) -> Callable[[], object]:
    """Forward and backward of what a compiled block does over all positions."""
    config = TransformerConfig(hidden_size=WIDTH, num_attention_heads=HEADS)
    block = Block(config)
    places = torch.arange(LENGTH).expand(ROWS, -1)
    cos, sin = rotary(places, config.head_width, config.rope_theta)
    document = places // 200
    bias = torch.zeros(ROWS, 1, LENGTH, LENGTH, dtype=BF16)
    bias = bias.masked_fill((document[:, :, None] != document[:, None])[:, None], -torch.inf)
    x = torch.randn(ROWS * LENGTH, WIDTH, requires_grad=True)
    attend = {
        "written out": transformer.attention,
        "torch's kernel": F.scaled_dot_product_attention,
    }[kind]

    def mix(x: Tensor) -> Tensor:
        q, k, v = block.attention.turn(block.project(x), cos, sin)
        return attend(q, k, v, bias).transpose(1, 2).reshape(x.shape)

    compiled = torch.compile(mix)

    def run() -> None:
        with torch.autocast("cpu", BF16):
            out = compiled(x)
        out.backward(torch.ones_like(out))

    return run


def head(chunked: bool) -> Callable[[], object]:
    """Cross-entropy of 2,000 positions, forward and backward."""
    hidden = torch.randn(2000, WIDTH, requires_grad=True)
    weight = (torch.randn(VOCAB, WIDTH) * WIDTH**-0.5).requires_grad_()
    targets, ones = torch.randint(VOCAB, (2000,)), torch.ones(2000)

    def run() -> None:
        with torch.autocast("cpu", BF16):
            if chunked:
                loss = score_hidden(hidden, weight, targets, ones).value
            else:
                loss = F.cross_entropy((hidden @ weight.T).float(), targets, reduction="sum")
        loss.backward()

    return run


def draws(grouped: bool) -> Callable[[], object]:
    """One token each for 1,024 rows of logits, in float64 precision."""
    logits, u = torch.randn(1024, VOCAB), torch.rand(1024, dtype=torch.float64)

    def plain() -> Tensor:
        sums = logits.double().softmax(-1).cumsum(-1)
        return torch.searchsorted(sums, u[:, None], right=True)

    return (lambda: draw_tokens(logits, u)) if grouped else plain


def muon(cut: bool) -> Callable[[], object]:
    """One optimizer step of one layer's attention projection, [3 x 384, 384]."""
    weight = torch.nn.Parameter(torch.randn(3 * WIDTH, WIDTH))
    weight.grad = torch.randn_like(weight)
    pieces = Pieces(3 * HEADS, 0) if cut else Pieces()
    return Muon([{"params": [weight], "pieces": pieces}], lr=0.01, dtype=BF16).step


def one_block(dtype: torch.dtype, packed: bool) -> Callable[[], object]:
    """A pass over 8 positions after 128 in the cache, in the shape of `stories`."""
    config = TransformerConfig.of_size(
        "tiny", vocab_size=4096, num_hidden_layers=8, attention="block_causal", block_size=8
    )
    model = DiffusionTransformer(config).eval()
    network = Packed(model, dtype) if packed else model.to(dtype)
    store, start = Store.empty(1, 256, torch.device("cpu")), torch.tensor([0])
    text, block = torch.randint(0, 4096, (1, 128)), torch.randint(0, 4096, (1, 8))

    @torch.no_grad()
    def run(tokens: Tensor = block, after: int = 128) -> None:
        network(tokens, past=Reading(store, start + after), where=torch.ones_like(tokens).bool())

    run(text, 0)
    return run


PARTS: dict[str, Mapping[str, Callable[[], object]]] = {
    "attention": {kind: attention(kind) for kind in ("torch's kernel", "written out")},
    "head": {"all logits at once": head(False), "in chunks": head(True)},
    "draws": {"cumulative sum": draws(False), "by groups": draws(True)},
    "a block in float32": {
        "model": one_block(torch.float32, False),
        "packed": one_block(torch.float32, True),
    },
    "a block in bfloat16": {"model": one_block(BF16, False), "packed": one_block(BF16, True)},
    "Muon": {"whole matrix": muon(False), "by heads": muon(True)},
}


def main() -> None:
    torch.set_num_threads(1)
    print("| part | how | CPU ms |\n|---|---|---:|")
    for part, ways in PARTS.items():
        times: dict[str, list[float]] = {how: [] for how in ways}
        for number in range(ROUNDS + 3):  # the first three compile and warm up
            for how, run in ways.items():
                start = time.process_time()
                run()
                if number >= 3:
                    times[how].append(time.process_time() - start)
        for how, seconds in times.items():
            print(f"| {part} | {how} | {1e3 * median(seconds):.1f} |")


if __name__ == "__main__":
    sys.exit(main())
