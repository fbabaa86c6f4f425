"""Training throughput at one shape: plain Hugging Face loops, pip trainers, this package.

    python benchmarks/training_speed.py --json training_speed.json \
        --telos telos/bin/python --slm388 slm388/bin/python --dantinox dantinox/bin/python

A peer without an interpreter is skipped, and said so. Each has its own environment:

    python -m venv telos    && telos/bin/pip    install telos-ml==1.2.0 torch==2.13.0
    python -m venv slm388   && slm388/bin/pip   install slm388-torchdiff==0.1.74 torch==2.13.0
    python -m venv dantinox && dantinox/bin/pip install dantinox==0.4.14

A lap is one optimizer step on 16 x 256 tokens. All corrupt half of the tokens on average, clip the
gradient and step AdamW (slm388 and sfumato: Muon and AdamW; sfumato_adamw: AdamW alone). Tokens are
random numbers, as many different ones as there can be; sfumato, which projects each token once in
its first layer, would be a little faster on text.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

from racing import Clock, Race, Shape, main, modernbert, parameters

WARM_UP = 3


def hand_loop(shape: Shape, clock: Clock, laps: int, *, tuned: bool) -> dict[str, Any]:
    """LLaDA's loss (arXiv 2502.09992, eq. 3) as a user writes it over ModernBERT.

    Tuned: bfloat16 autocast, and the vocabulary head at masked positions only.
    """
    import torch
    from torch.nn.functional import cross_entropy

    model = modernbert(shape).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(WARM_UP + laps):
        tokens = torch.randint(3, shape.mask_id, (shape.batch, shape.length))
        t = torch.rand(shape.batch, 1).clamp(min=1e-3).expand_as(tokens)
        masked = torch.rand(tokens.shape) < t
        noisy = tokens.masked_fill(masked, shape.mask_id)
        with torch.autocast("cpu", torch.bfloat16, enabled=tuned):
            if tuned:
                hidden = model.model(noisy).last_hidden_state[masked]
                logits = model.decoder(model.head(hidden))
            else:
                logits = model(noisy).logits[masked]
        nll = cross_entropy(logits.float(), tokens[masked], reduction="none")
        loss = (nll / t[masked]).sum() / tokens.numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        clock.lap()
    return {"parameters": parameters(model)}


def plain(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """ModernBERT loop in float32 with the full head."""
    return hand_loop(shape, clock, laps, tuned=False)


def tuned(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """ModernBERT loop in bfloat16 with the head at masked positions only."""
    return hand_loop(shape, clock, laps, tuned=True)


def telos(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """telos-ml: its PyTorch trainer, masked diffusion, float32 (it has no bfloat16 on CPU)."""
    from telos.models import TelosConfig, TelosTransformer
    from telos.training.trainer_pytorch import UnifiedPyTorchTrainer

    size = {"vocab_size": shape.vocab_size, "d_model": shape.width, "seq_len": shape.length}
    model = TelosTransformer(TelosConfig(n_layers=shape.layers, n_heads=shape.heads, **size))
    settings = {
        "model": size,
        "training": {"batch_size": shape.batch, "max_steps": WARM_UP + laps, "precision": "fp32"},
        "data": {"synthetic": True},
    }
    trainer = UnifiedPyTorchTrainer("mdlm", model, settings, "cpu")
    trainer.optimizer.register_step_post_hook(lambda *_: clock.lap())
    trainer.train()
    return {"parameters": parameters(model)}


def slm388(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """slm388-torchdiff: its train_step (bfloat16 autocast always), one block, whole canvas."""
    import torch
    from torchdiff.model import MDLMModel, MDLModelConfig
    from torchdiff.train import build_optimizer, train_step

    config = MDLModelConfig(
        d=shape.width,
        vocab_size=shape.vocab_size,
        num_heads=shape.heads,
        head_dim=shape.width // shape.heads,
        mlp_hidden_dim=shape.feed_forward,
        diff_blocks_num=1,
        layers_per_block=shape.layers,
        max_position_embeddings=shape.length,
        mask_token_id=shape.mask_id,
        canvas_size=0,
        attn_backend="sdpa",
    )
    model = MDLMModel(config)
    steps = WARM_UP + laps
    muon, adamw, _ = build_optimizer(model, {"total_steps": steps})
    for step in range(steps):
        tokens = torch.randint(3, shape.mask_id, (shape.batch, shape.length))
        device = torch.device("cpu")
        train_step(model, muon, adamw, tokens, step, 0, step, config, steps, device)
        clock.lap()
    return {"parameters": parameters(model)}


def dantinox(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """dantinox: its JAX trainer, discrete diffusion, float32; the first step compiles.

    Its feed-forward width is a whole multiple of the width, so 4x GELU stands for the gated 8/3.
    Its character tokenizer is given a text with as many characters as the vocabulary has tokens.
    """
    import random

    import dantinox as package
    from dantinox.training.callbacks import BaseCallback

    class Laps(BaseCallback):
        def on_step_end(self, *_: Any) -> None:
            clock.lap()

    characters = [chr(0x4E00 + i) for i in range(shape.vocab_size - 1)]  # its mask is one more
    count = (WARM_UP + laps) * shape.batch * shape.length
    random.seed(0)
    text = "".join(characters + random.choices(characters, k=count - len(characters)))
    model = package.ModelConfig(
        paradigm="discrete",
        dim=shape.width,
        n_heads=shape.heads,
        num_blocks=shape.layers,
        vocab_size=shape.vocab_size,
        max_context=shape.length,
        expansion=4,
        use_swiglu=False,
    )
    training = package.TrainingConfig(
        batch_size=shape.batch, epochs=1, val_frac=0.0, val_every=2, tokenizer_type="char"
    )
    paradigm = package.Paradigm(model)
    built = []
    build = paradigm.build_model
    paradigm.build_model = lambda rngs: built.append(build(rngs)) or built[0]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "text.txt")
        source.write_text(text, encoding="utf-8")
        package.Trainer(paradigm, training, [Laps()]).fit(str(source), run_dir=f"{folder}/run")
    return {"parameters": int(paradigm.num_parameters(built[0]))}


def sfumato(shape: Shape, clock: Clock, laps: int, *, optimizer: str = "muon") -> dict[str, Any]:
    """This package: its trainer, blocks compiled, on random words of a vocabulary of this size."""
    import random

    from sfumato.data import prepare
    from sfumato.train import load_run, training
    from sfumato.train.events import Started, Stepped

    random.seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(random.choices(letters, k=6)) for _ in range(shape.vocab_size)]
    folder = Path.cwd()
    Path("words.txt").write_text("\n".join(" ".join(words) for _ in range(20)))
    data = prepare(folder / "words.txt", folder / "data", vocab_size=shape.vocab_size, workers=1)
    assert data.facts["tokenizer"]["vocab_size"] == shape.vocab_size
    run = load_run(
        {
            "output": str(folder / "run"),
            "data": {"folder": str(folder / "data"), "length": shape.length},
            "model": {
                "hidden_size": shape.width,
                "num_hidden_layers": shape.layers,
                "num_attention_heads": shape.heads,
                "intermediate_size": shape.feed_forward,
            },
            "train": {
                "batch_size": shape.batch,
                "max_steps": WARM_UP + laps,
                "warmup_steps": 2,
                "optimizer": optimizer,
                "learning_rate": {"muon": 0.02, "adamw": 1e-3}[optimizer],
                "torch_compile": True,
            },
            "evaluate": {"eval_steps": 0},
        }
    )
    num_weights = 0
    for event in training(run):
        if isinstance(event, Started):
            num_weights = event.num_weights
        if isinstance(event, Stepped):
            clock.lap()
    return {"parameters": num_weights}


def sfumato_adamw(shape: Shape, clock: Clock, laps: int) -> dict[str, Any]:
    """This package with the optimizer of the plain loops."""
    return sfumato(shape, clock, laps, optimizer="adamw")


def make_race(batch: int) -> Race:
    contestants = {
        "plain": plain,
        "tuned": tuned,
        "telos": telos,
        "slm388": slm388,
        "dantinox": dantinox,
        "sfumato": sfumato,
        "sfumato_adamw": sfumato_adamw,
    }
    return Race(
        title=f"Training, batch {batch} x 256 tokens a lap",
        contestants=contestants,
        peers=frozenset({"telos", "slm388", "dantinox"}),
        shape=Shape(batch=batch),
        warm_up=WARM_UP,
        laps=6,
    )


if __name__ == "__main__":
    sys.exit(main(__doc__ or "", make_race, batch=16))
