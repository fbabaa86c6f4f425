"""CPU-seconds until a held-out bound is reached, on equal data in equal batches.

    sfumato data prepare STORIES DATA --length 256
    for one in seed loop-1e-3 loop-2e-3 loop-4e-3; do
        python benchmarks/time_to_bound.py DATA LOGS --contestant $one --minutes 60
    done
    python benchmarks/time_to_bound.py DATA LOGS

The last line prints the table. A contestant may be stopped at any time; started again, it goes on
from its last evaluation. One thread each. Evaluation is not counted, and is the same for all: the
exact-k bound in float32 on 256 held-out rows, k spread evenly, mask token excluded, in nats per
token (arXiv 2406.04329, eq. 6 in its exact-k form).

Contestants:
  seed      LayerNorm, learned positions, time added, dropout 0.1, GELU, untied head with bias,
            AdamW 3e-4, betas 0.9 and 0.98, weight decay 0.01, 1,000 steps of warm-up, then cosine
            over 50,000, cosine mask rate, unweighted loss, float32, full head: the recipe of the
            small "diffusion-llm", 17.34 M parameters at vocabulary 8192.
  loop-RATE a plain loop over this package's network, as a careful user tunes it by hand: AdamW at
            RATE, bfloat16 autocast, head at masked positions only. loop-RATE-clipped clips the
            bound's weight at 4.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, LENGTH = 16, 256
HELD_OUT_ROWS = 256


@dataclass(frozen=True)
class Text:
    """Packed text: tokens, and which document each position is of; both [N, L] int64."""

    tokens: Tensor
    segments: Tensor

    def take(self, index: Tensor) -> "Text":
        return Text(self.tokens[index], self.segments[index])


@dataclass(frozen=True)
class Data:
    train: Text
    held_out: Text
    vocab_size: int
    mask_id: int

    def batches(self, step: int) -> Iterator[Text]:
        """Batches from `step` on: epochs in an order of their own, equal for every contestant."""
        per_epoch = len(self.train.tokens) // BATCH
        while True:
            epoch, place = divmod(step, per_epoch)
            generator = torch.Generator().manual_seed(epoch)
            order = torch.randperm(len(self.train.tokens), generator=generator)
            yield self.train.take(order[place * BATCH : (place + 1) * BATCH])
            step += 1


def load(folder: Path) -> Data:
    """Prepared text in rows of LENGTH; the last, unfilled row of the training split is left out."""
    from sfumato.data import Prepared, Rows, special_ids

    def text(split: str, limit: int | None) -> Text:
        rows = Rows(folder, split, length=LENGTH)
        values = rows.batch(range(limit or rows.num_tokens // LENGTH))
        return Text(torch.from_numpy(values["tokens"]), torch.from_numpy(values["segments"]))

    tokenizer = Prepared.open(folder).tokenizer()
    held_out = text("validation", HELD_OUT_ROWS)
    return Data(text("train", None), held_out, len(tokenizer), special_ids(tokenizer).mask)


@dataclass(frozen=True)
class Learner:
    """What differs between contestants."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]  # learning rate at a step
    loss: Callable[[Text], Tensor]
    logits: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    # ^ tokens [B, L], segments [B, L], where [B, L], masked share [B] -> [N, V]


# --- the recipe to beat ---


class SeedTransformer(nn.Module):
    def __init__(self, vocab_size: int, length: int, width: int = 384, depth: int = 6):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(length, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        layer = nn.TransformerEncoderLayer(
            width, 6, 4 * width, 0.1, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            layer, depth, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, vocab_size)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor, t: Tensor) -> Tensor:
        """[B, L], [B] -> logits [B, L, V]."""
        half = self.positions.embedding_dim // 2
        angle = 1000 * t[:, None] * torch.exp(-math.log(10_000) / half * torch.arange(half))
        time = self.time(torch.cat((angle.sin(), angle.cos()), -1))
        places = self.positions(torch.arange(tokens.shape[1]))
        return self.head(self.blocks(self.tokens(tokens) + places + time[:, None]))


def seed(data: Data) -> Learner:
    model = SeedTransformer(data.vocab_size, data.train.tokens.shape[1])
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)

    def rate(step: int) -> float:
        if step < 1000:
            return 3e-4 * step / 1000
        return 3e-4 * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - 1000) / 49_000)))

    def loss(rows: Text) -> Tensor:
        t = torch.rand(len(rows.tokens))
        masked = torch.rand(rows.tokens.shape) < (1 - torch.cos(math.pi / 2 * t))[:, None]
        logits = model(rows.tokens.masked_fill(masked, data.mask_id), t)
        return F.cross_entropy(logits[masked], rows.tokens[masked])

    def logits(tokens: Tensor, segments: Tensor, where: Tensor, share: Tensor) -> Tensor:
        return model(tokens, 2 / math.pi * torch.acos(1 - share))[where]

    return Learner(model, optimizer, rate, loss, logits)


# --- the loop tuned by hand ---


def loop(data: Data, peak: float, clip: float) -> Learner:
    from sfumato.models.transformer import DiffusionTransformer, TransformerConfig

    config = TransformerConfig.of_size(
        "small",
        vocab_size=data.vocab_size,
        max_position_embeddings=data.train.tokens.shape[1],
        mask_token_id=data.mask_id,
    )
    model = DiffusionTransformer(config)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)

    def rate(step: int) -> float:
        return peak * min((step + 1) / 100, 1)

    def loss(rows: Text) -> Tensor:
        tokens = rows.tokens
        t = torch.rand(len(tokens), 1).clamp(min=1e-3).expand_as(tokens)
        masked = torch.rand(tokens.shape) < t
        noisy = tokens.masked_fill(masked, data.mask_id)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(noisy, segments=rows.segments, where=masked).logits
        nll = F.cross_entropy(logits.float(), tokens[masked], reduction="none")
        return (nll * (1 / t[masked]).clamp(max=clip)).sum() / tokens.numel()

    def logits(tokens: Tensor, segments: Tensor, where: Tensor, share: Tensor) -> Tensor:
        return model(tokens, segments=segments, where=where).logits

    return Learner(model, optimizer, rate, loss, logits)


def learner(name: str, data: Data) -> Learner:
    if name == "seed":
        return seed(data)
    kind, peak, *clipped = name.split("-")
    if kind != "loop" or clipped not in ([], ["clipped"]):
        raise SystemExit(f"unknown contestant {name}: seed, loop-RATE, loop-RATE-clipped")
    return loop(data, float(peak), 4.0 if clipped else math.inf)


# --- the measure, the clock, the log ---


@torch.no_grad()
def held_out_bound(learner: Learner, data: Data) -> float:
    """Nats per token: the mean over rows of (1 / k) sum of nll at k random masked positions."""
    rows, length = data.held_out.tokens.shape
    generator = torch.Generator().manual_seed(0)
    spread = (torch.randperm(rows, generator=generator) + 0.5) / rows
    k = (spread * length).floor().long() + 1
    rank = torch.rand(rows, length, generator=generator).argsort(1).argsort(1)
    where = rank < k[:, None]
    learner.model.eval()
    total = 0.0
    for index in torch.arange(rows).split(16):
        part, masked = data.held_out.take(index), where[index]
        noisy = part.tokens.masked_fill(masked, data.mask_id)
        logits = learner.logits(noisy, part.segments, masked, k[index] / length)
        logits = logits.float().index_fill(1, torch.tensor([data.mask_id]), -math.inf)
        nll = F.cross_entropy(logits, part.tokens[masked], reduction="none")
        total += float((nll / k[index, None].expand_as(masked)[masked]).sum())
    learner.model.train()
    return total / rows


def train(name: str, data: Data, folder: Path, minutes: float, every: float) -> None:
    """Train until `minutes` of CPU time are spent; evaluate and save every `every` CPU-seconds."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    one = learner(name, data)
    state, log = folder / f"{name}.pt", folder / f"{name}.jsonl"
    spent, step = 0.0, 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        one.model.load_state_dict(saved["model"])
        one.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
        spent, step = saved["spent"], saved["step"]
    due, recent = spent + every, 0.0
    for rows in data.batches(step):
        start = time.process_time()
        for group in one.optimizer.param_groups:
            group["lr"] = one.rate(step)
        one.optimizer.zero_grad()
        loss = one.loss(rows)
        loss.backward()
        nn.utils.clip_grad_norm_(one.model.parameters(), 1.0)
        one.optimizer.step()
        step += 1
        recent = loss.item() if step == 1 else 0.98 * recent + 0.02 * loss.item()
        spent += time.process_time() - start
        if spent < due:
            continue
        due += every
        record = {
            "cpu_seconds": round(spent, 2),
            "step": step,
            "tokens": step * rows.tokens.numel(),
            "loss": round(recent, 4),
            "bound": round(held_out_bound(one, data), 5),
        }
        saved = {
            "model": one.model.state_dict(),
            "optimizer": one.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "spent": spent,
            "step": step,
        }
        torch.save(saved, state.with_suffix(".new"))
        os.replace(state.with_suffix(".new"), state)
        with log.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(name, record, flush=True)
        if spent >= 60 * minutes:
            return


def seconds_to(curve: list[dict], bound: float) -> float:
    """CPU-seconds at which a log first reaches a bound, between evaluations linearly; or inf."""
    for before, after in zip([None, *curve], curve, strict=False):
        if after["bound"] > bound:
            continue
        if before is None:
            return after["cpu_seconds"]
        share = (before["bound"] - bound) / (before["bound"] - after["bound"])
        return before["cpu_seconds"] + share * (after["cpu_seconds"] - before["cpu_seconds"])
    return math.inf


def report(folder: Path) -> str:
    """Seconds of every log to the seed's last bound, and to each contestant's own last."""
    curves = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }
    levels = sorted({min(point["bound"] for point in curve) for curve in curves.values()})[::-1]
    lines = [
        "| contestant | CPU-s | tokens per CPU-s | last bound | "
        + " | ".join(f"CPU-s to {level:.3f}" for level in levels)
        + " |",
        "|---|" + "---:|" * (3 + len(levels)),
    ]
    for name, curve in curves.items():
        last = curve[-1]
        times = [seconds_to(curve, level) for level in levels]
        cells = " | ".join("-" if math.isinf(one) else f"{one:.0f}" for one in times)
        speed = last["tokens"] / last["cpu_seconds"]
        lines.append(
            f"| {name} | {last['cpu_seconds']:.0f} | {speed:.0f} | {last['bound']:.3f} | {cells} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of prepared text")
    parser.add_argument("logs", type=Path, help="folder of logs and states")
    parser.add_argument("--contestant", metavar="NAME")
    parser.add_argument("--minutes", type=float, default=60, help="CPU-minutes of training")
    parser.add_argument("--every", type=float, default=60, help="CPU-seconds between evaluations")
    options = parser.parse_args()
    if options.contestant is None:
        print(report(options.logs))
        return
    options.logs.mkdir(parents=True, exist_ok=True)
    data = load(options.data)
    train(options.contestant, data, options.logs, options.minutes, options.every)


if __name__ == "__main__":
    sys.exit(main())
