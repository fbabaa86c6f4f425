"""Decoding speed of a trained model of blocks: 256 new tokens.

    python benchmarks/decoding_speed.py --batch 1 --json decoding_1.json
    python benchmarks/decoding_speed.py --batch 1 --model FOLDER

The model writes by its own defaults, which `sfumato calibrate` chose; beside it are, in networks of
the same dimensions:

- `seed`: the first "diffusion-llm" decoder, re-expressed: the full canvas in 100 steps, float32,
  logits of all positions and a draw at each of them in every step;
- `llama`: Hugging Face's `generate()` with its cache;
- `one-by-one`: the same weights, one token a pass from left to right, with the exact cache;
- `autoregressive`: this package's cached autoregression over a causal network;
- both and the model also with `torch_compile`, compiled before the time is taken.

No text ends before its 256 tokens: tokens that end it are suppressed. Quality is not measured here:
`sfumato calibrate --judge` draws it beside the speed.
"""

import json
import sys
from collections import deque
from pathlib import Path
from typing import Any

from generation_speed import Forwards, autoregression
from racing import Clock, Race, Shape, main, modernbert, parameters

SEED_STEPS, TEMPERATURE = 100, 0.8


def shape_of(model: str, batch: int) -> Shape:
    """The dimensions of a model folder."""
    config = json.loads((folder_of(model) / "config.json").read_text())
    return Shape(
        vocab_size=config["vocab_size"],
        length=256,
        batch=batch,
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        feed_forward=config["intermediate_size"],
    )


def folder_of(model: str) -> Path:
    if model != "stories":
        return Path(model).resolve()
    return Path(__file__).resolve().parent.parent / "src/sfumato/shipped/stories"


def seed(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """Its reverse process: every position is drawn in every step, and each mask kept by chance."""
    import math

    import torch

    model = modernbert(shape).eval()
    forwards = Forwards(model.model)

    @torch.no_grad()
    def generate(steps: int) -> torch.Tensor:
        forwards.count = 0
        tokens = torch.full((shape.batch, shape.length), shape.mask_id)
        for step in range(steps, 0, -1):
            logits = model(tokens).logits / TEMPERATURE
            logits[..., shape.mask_id] = -torch.inf
            drawn = torch.multinomial(logits.softmax(-1).view(-1, shape.vocab_size), 1)
            rate, after = (1 - math.cos(math.pi / 2 * x / steps) for x in (step, step - 1))
            reveal = torch.rand(tokens.shape) >= after / rate
            tokens = torch.where((tokens == shape.mask_id) & reveal, drawn.view_as(tokens), tokens)
        return tokens

    generate(2)
    clock.lap()
    for _ in range(laps):
        tokens = generate(SEED_STEPS)
        clock.lap()
    left = int(tokens.eq(shape.mask_id).sum())
    return {"parameters": parameters(model), "forwards": forwards.count, "masks_left": left}


SAMPLING = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0}


def llama(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """Autoregression in float32."""
    return autoregression(shape, clock, laps, half=False, **SAMPLING)


def llama_bfloat16(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """Autoregression in bfloat16."""
    return autoregression(shape, clock, laps, half=True, **SAMPLING)


def written(lm: Any, shape: Shape, clock: Clock, laps: int, **changes: Any) -> dict[str, Any]:
    """Laps of a pipeline."""
    asked = {
        "num_samples": shape.batch,
        "length": shape.length,
        "suppress": tuple(sorted(lm.reader.ends)),
        **changes,
    }
    # the fewest tokens that a page of whole blocks can have left over: room for the start token
    asked["length"] -= 0 if lm.block_size else 1

    def write(length: int, seed: int) -> Any:
        pages = lm.stream("", seed=seed, **{**asked, "length": length})
        return lm.finish(deque(pages, maxlen=1)[0])

    write(32, 0)
    clock.lap()
    alone = changes.get("torch_compile", False) and shape.batch == 1
    network = lm.network.compute(lm.options.precision, alone)
    for number in range(laps):
        before = network.passes
        made = write(asked["length"], 1 + number)
        clock.lap()
    tokens = sum(map(len, made.tokens))
    return {
        "parameters": parameters(lm.model),
        "forwards": network.passes - before,
        "tokens_per_forward": tokens / shape.batch / (network.passes - before),
        "text": made.texts[0],
    }


def race_of(model: str) -> dict[str, Any]:
    """Our own contestants, for a model."""

    def load() -> Any:
        from sfumato import DiffusionLM

        return DiffusionLM.from_pretrained(model if model == "stories" else folder_of(model))

    def fast(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
        return written(load(), shape, clock, laps)

    def fast_compiled(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
        return written(load(), shape, clock, laps, torch_compile=True)

    def one_by_one(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
        return written(load(), shape, clock, laps, step="left_to_right", num_steps=None)

    def one_by_one_compiled(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
        own = {"step": "left_to_right", "num_steps": None, "torch_compile": True}
        return written(load(), shape, clock, laps, **own)

    def causal(shape: Shape, clock: Clock, laps: int, **changes: Any) -> dict[str, Any]:
        import torch

        from sfumato import DiffusionLM
        from sfumato.decoding.options import GenerationOptions
        from sfumato.models import DiffusionTransformer, TransformerConfig

        lm = load()
        about = lm.model.config.to_dict()
        about |= {"attention": "causal", "block_size": None, "objective": "next_token"}
        torch.manual_seed(0)
        network = DiffusionTransformer(TransformerConfig(**about)).eval()
        options = GenerationOptions(layout=lm.options.layout, temperature=TEMPERATURE)
        return written(DiffusionLM(network, lm.tokenizer, options), shape, clock, laps, **changes)

    def causal_compiled(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
        return causal(shape, clock, laps, torch_compile=True)

    return {
        "one-by-one": one_by_one,
        "one-by-one-compiled": one_by_one_compiled,
        "autoregressive": causal,
        "autoregressive-compiled": causal_compiled,
        "sfumato": fast,
        "sfumato-compiled": fast_compiled,
    }


def make_race(batch: int, model: str = "stories") -> Race:
    own = race_of(model)
    contestants = {"seed": seed, "llama": llama, "llama-bfloat16": llama_bfloat16, **own}
    return Race(
        title=f"Decoding, {batch} x 256 tokens",
        contestants=contestants,
        peers=frozenset(),
        shape=shape_of(model, batch),
        warm_up=1,
        laps=3,
    )


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", make_race, batch=1, model="stories"))
