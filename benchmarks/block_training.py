"""The two streams of `block` beside `masked` in training, by block size and length of a row.

    python benchmarks/block_training.py --rounds 2 --json block_training.json

A lap is one step on as many tokens whatever the length of a row (8 x 256, 4 x 512, 2 x 1,024), with
this package's objective, optimizers and precision, blocks of the network not compiled. So peak
memory that stays where it is from 256 to 1,024 grows linearly in the length of a row, and what it
is above `masked` is the second stream. Every contestant also looks at all tensors of one step:
none is as large as a mask of (2L)^2 over both streams.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from racing import Clock, Race, Shape, main, parameters

WARM_UP = 1


def learn(
    shape: Shape, clock: Clock, laps: int, *, length: int, size: int | None
) -> dict[str, Any]:
    """Steps on rows of `length`, in blocks of `size` or, without, whole."""
    import torch

    from sfumato.denoisers.full import Full
    from sfumato.devices import fast_dtype
    from sfumato.models import DiffusionTransformer, TransformerConfig
    from sfumato.objectives.blocks import BlockDiffusion
    from sfumato.objectives.masked import MaskedDiffusion
    from sfumato.objectives.times import Systematic
    from sfumato.rng import Rng
    from sfumato.train.config import TrainOptions
    from sfumato.train.optim import build_optimizers
    from sfumato.types import Batch

    shape = replace(shape, length=length, batch=shape.batch * shape.length // length)
    config = TransformerConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.feed_forward,
        max_position_embeddings=length,
        attention="block_causal" if size else "full",
        block_size=size,
    )
    torch.manual_seed(0)
    model = DiffusionTransformer(config).train()
    dtype = fast_dtype(torch.device("cpu"))
    optimizers = build_optimizers(model, TrainOptions(), dtype)
    blocks = -(-length // size) if size else 1
    masked = MaskedDiffusion(shape.mask_id, Systematic(shape.batch * blocks))
    objective = BlockDiffusion(size, masked) if size else masked

    def step(number: int) -> None:
        tokens = torch.randint(3, shape.mask_id, (shape.batch, length))
        batch = Batch(
            tokens,
            torch.ones_like(tokens, dtype=torch.bool),
            torch.zeros_like(tokens),
            torch.arange(shape.batch) + number * shape.batch,
        )
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = objective(Full(model, shape.mask_id), batch, Rng.from_seed(0))
        loss.value.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    for number in range(WARM_UP + laps):
        step(number)
        clock.lap()
    widest = widest_pair(lambda: step(WARM_UP + laps))
    assert widest < (2 * length) ** 2, f"a tensor over {widest} pairs of positions"
    return {"parameters": parameters(model), "pairs": widest}


def widest_pair(run: Callable[[], None]) -> int:
    """The most pairs of positions that one tensor is about: its last two dimensions, of three or
    more (weights and logits have two)."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    most = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            nonlocal most
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor) and tensor.dim() >= 3:
                    most = max(most, tensor.shape[-1] * tensor.shape[-2])
            return out

    with Watch():
        run()
    return most


def make_race(batch: int) -> Race:
    contestants = {"masked": partial(learn, length=256, size=None)}
    for size in (1, 4, 16, 64, 256):
        contestants[f"block_{size}"] = partial(learn, length=256, size=size)
    for length in (512, 1024):
        contestants[f"masked_of_{length}"] = partial(learn, length=length, size=None)
        contestants[f"block_16_of_{length}"] = partial(learn, length=length, size=16)
    return Race(
        title=f"Training in blocks, {batch * 256} tokens a lap",
        contestants=contestants,
        peers=frozenset(),
        shape=Shape(batch=batch),
        warm_up=WARM_UP,
        laps=2,
    )


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", make_race, batch=8))
