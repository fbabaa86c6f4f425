"""Generation throughput from random weights: 256 tokens a row in 64 steps, and autoregression.

    python benchmarks/generation_speed.py --batch 8 --json generation_8.json \
        --dlmserve dlmserve/bin/python
    python benchmarks/generation_speed.py --batch 1 --json generation_1.json \
        --dlmserve dlmserve/bin/python

dlmserve is skipped, and said so, without an interpreter that has it:

    python -m venv dlmserve && dlmserve/bin/pip install dlmserve==0.1.1 torch==2.13.0

A lap is one whole generation from an empty page: no prompt (autoregression and dlmserve start from
one token), greedy, LLaDA's even quota of the most confident positions each step. The forwards of
the network are counted, and the masks left in the output are counted too; both are in the JSON.
Diffusion in 64 full steps computes 64 positions for each one that autoregression with a cache
computes, in blocks of 16 with an exact cache 4; the lines of `llama` say what that costs.
"""

import sys
from collections import deque
from itertools import islice
from typing import Any

from racing import Clock, Race, Shape, main, modernbert, parameters

STEPS = 64
BLOCK = 16  # of the model of blocks


class Forwards:
    """Counts calls of a network during the last lap."""

    def __init__(self, model: Any = None):
        self.count = 0
        if model is not None:
            model.register_forward_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1

    def around(self, network: Any) -> Any:
        """The same for a network that is no module of torch's."""
        forwards = self

        class Counted:
            def __getattr__(self, name: str) -> Any:
                return getattr(network, name)

            def __call__(self, *args: Any, **options: Any) -> Any:
                forwards.count += 1
                return network(*args, **options)

        return Counted()


def hand_loop(shape: Shape, clock: Clock, laps: int, *, tuned: bool) -> dict[str, Any]:
    """LLaDA's low-confidence remasking over ModernBERT, as a user writes it.

    Tuned: bfloat16 weights, and logits at masked positions only.
    """
    import torch

    model = modernbert(shape).eval()
    if tuned:
        model = model.to(torch.bfloat16)
    forwards = Forwards(model.model)

    @torch.no_grad()
    def generate(steps: int) -> torch.Tensor:
        forwards.count = 0
        tokens = torch.full((shape.batch, shape.length), shape.mask_id)
        for _ in range(steps):
            masked = tokens == shape.mask_id
            if tuned:
                hidden = model.model(tokens).last_hidden_state[masked]
                logits = model.decoder(model.head(hidden)).float()
            else:
                logits = model(tokens).logits
            logits[..., shape.mask_id] = -torch.inf
            confidence, choice = logits.softmax(-1).max(-1)
            if tuned:
                confidence = torch.zeros(masked.shape).masked_scatter(masked, confidence)
                choice = tokens.masked_scatter(masked, choice)
            best = confidence.masked_fill(~masked, -1).topk(shape.length // STEPS, dim=1).indices
            tokens = tokens.scatter(1, best, choice.gather(1, best))
        return tokens

    tokens = generate(2)
    clock.lap()
    for _ in range(laps):
        tokens = generate(STEPS)
        clock.lap()
    left = int(tokens.eq(shape.mask_id).sum())
    return {"parameters": parameters(model), "forwards": forwards.count, "masks_left": left}


def plain(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """ModernBERT in float32, logits of every position in every step."""
    return hand_loop(shape, clock, laps, tuned=False)


def tuned(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """ModernBERT in bfloat16, logits at masked positions only."""
    return hand_loop(shape, clock, laps, tuned=True)


def autoregression(
    shape: Shape, clock: Clock, laps: int, *, half: bool, **sampling: Any
) -> dict[str, Any]:
    """Hugging Face Llama of the same dimensions with its key/value cache, greedy by default."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.length + 1,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16 if half else torch.float32).eval()
    forwards = Forwards(model.model)
    prompt = torch.ones(shape.batch, 1, dtype=torch.int64)
    seen = torch.ones_like(prompt)

    def generate(length: int) -> None:
        forwards.count = 0
        options = {"max_new_tokens": length, "do_sample": False, "use_cache": True, **sampling}
        tokens = model.generate(prompt, attention_mask=seen, **options)
        assert tokens.shape == (shape.batch, 1 + length)

    generate(8)
    clock.lap()
    for _ in range(laps):
        generate(shape.length)
        clock.lap()
    return {"parameters": parameters(model), "forwards": forwards.count}


def llama(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """Autoregression in float32."""
    return autoregression(shape, clock, laps, half=False)


def llama_bfloat16(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """Autoregression in bfloat16."""
    return autoregression(shape, clock, laps, half=True)


def dlmserve(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """dlmserve's engine and scheduler over the hand loop's ModernBERT, in float32.

    The engine only loads LLaDA by name, so its loader is handed the model; its prompt is one token.
    """
    import torch
    from dlmserve import engine as package
    from dlmserve.models import LoadedModel
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    model = modernbert(shape).eval()
    forwards = Forwards(model.model)
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(shape.vocab_size)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0")
    cpu = torch.device("cpu")
    loaded = LoadedModel(model, tokenizer, device=cpu, dtype="bf16", mask_id=shape.mask_id)
    package.load_model = lambda **_: loaded
    engine = package.Engine(device="cpu", max_batch=shape.batch)

    def generate(steps: int) -> list[Any]:
        forwards.count = 0
        params = package.SamplingParams(num_denoising_steps=steps, gen_length=shape.length)
        return engine.generate(["w1"] * shape.batch, params, prerendered=True)

    outputs = generate(2)
    clock.lap()
    for _ in range(laps):
        outputs = generate(STEPS)
        clock.lap()
    left = sum(int(one.output_ids.eq(shape.mask_id).sum()) for one in outputs)
    return {"parameters": parameters(model), "forwards": forwards.count, "masks_left": left}


def network(shape: Shape, **options: Any) -> Any:
    """This package's network of the shape, as it is used for generation in bfloat16."""
    import torch

    from sfumato.models import DiffusionTransformer, TransformerConfig
    from sfumato.models.packed import Packed

    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        mask_token_id=shape.mask_id,
        **{"max_position_embeddings": shape.length, **options},
    )
    return Packed(DiffusionTransformer(config).eval(), torch.bfloat16)


def writing(shape: Shape, clock: Clock, laps: int, kind: str) -> dict[str, Any]:
    """Pages of our own: on the full canvas, in blocks with the exact or an approximate cache, or
    one token after another."""
    import torch

    from sfumato.decoding.blocks import Blocks, OneByOne
    from sfumato.decoding.filters import Temperature
    from sfumato.decoding.loops import generate
    from sfumato.decoding.page import blank
    from sfumato.decoding.unmask import LeftToRight, TopConfidence
    from sfumato.denoisers.approximate import ApproximateCache
    from sfumato.denoisers.blocks import CachedReader
    from sfumato.denoisers.full import Full
    from sfumato.noise.corruption import Masked
    from sfumato.noise.schedules import Linear
    from sfumato.rng import Rng
    from sfumato.types import Canvas

    seen = {"blocks": {"attention": "block_causal", "block_size": BLOCK}}
    causal = {"attention": "causal", "objective": "next_token"}
    seen["autoregression"] = {**causal, "max_position_embeddings": shape.length + 1}
    model = network(shape, **seen.get(kind, {}))
    forwards = Forwards()
    counted = forwards.around(model)
    corruption = Masked(shape.vocab_size, shape.mask_id, Linear())
    empty = torch.full((shape.batch, shape.length), shape.mask_id)
    rng = Rng.from_seed(0, shape.batch)
    canvas = blank(corruption, empty, torch.zeros_like(empty, dtype=torch.bool), rng)
    rule, filters = TopConfidence(corruption.schedule), (Temperature(0),)
    mask = shape.mask_id

    def pages() -> Any:
        shared = {"num_steps": STEPS, "filters": filters}
        if kind == "blocks":
            reader = CachedReader.of(counted, mask)
            return Blocks(reader=reader).pages(canvas, rule, rng, **shared)
        if kind == "approximate":
            kept = ApproximateCache(Full(counted, mask), "dual")
            return generate(kept, canvas, rule, rng, block=32, **shared)
        if kind == "autoregression":
            first = torch.ones((shape.batch, 1), dtype=torch.int64)
            reader, order = CachedReader.of(counted, mask).given(first), LeftToRight(Linear())
            return OneByOne(reader=reader).pages(canvas, order, rng, filters=filters)
        return generate(Full(counted, mask), canvas, rule, rng, **shared)

    def write(limit: int | None) -> Canvas:
        forwards.count = 0
        return deque(islice(pages(), limit), maxlen=1)[0]

    page = write(2)
    clock.lap()
    for _ in range(laps):
        page = write(None)
        clock.lap()
    left = int(page.tokens.eq(shape.mask_id).sum())
    return {
        "parameters": parameters(model.model),
        "forwards": forwards.count,
        "masks_left": left,
    }


def sfumato(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """The full canvas, exact."""
    return writing(shape, clock, laps, "canvas")


def sfumato_blocks(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """A model of blocks with its exact cache."""
    return writing(shape, clock, laps, "blocks")


def sfumato_approximate(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """A model of full attention with a dual cache around blocks of 32."""
    return writing(shape, clock, laps, "approximate")


def sfumato_autoregression(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """The causal model of the shape, one token after another."""
    return writing(shape, clock, laps, "autoregression")


def make_race(batch: int) -> Race:
    contestants = {
        "plain": plain,
        "tuned": tuned,
        "dlmserve": dlmserve,
        "llama": llama,
        "llama-bfloat16": llama_bfloat16,
        "sfumato": sfumato,
        "sfumato-blocks": sfumato_blocks,
        "sfumato-approximate": sfumato_approximate,
        "sfumato-autoregression": sfumato_autoregression,
    }
    return Race(
        title=f"Generation, {batch} x 256 tokens in {STEPS} steps",
        contestants=contestants,
        peers=frozenset({"dlmserve"}),
        shape=Shape(batch=batch),
        warm_up=1,
        laps=1,
    )


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", make_race, batch=8))
