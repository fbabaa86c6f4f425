"""CPU-seconds until a held-out bound is reached, on equal data in equal batches.

    sfumato data prepare STORIES DATA --vocab-size 8192
    python benchmarks/time_to_bound.py DATA LOGS --contestant seed
    for rate in 1e-3 2e-3 4e-3; do
        python benchmarks/time_to_bound.py DATA LOGS --contestant loop --rate $rate --minutes 30
    done
    python benchmarks/time_to_bound.py DATA LOGS --contestant sfumato --minutes 30
    python benchmarks/time_to_bound.py DATA LOGS

The last line prints the table. A contestant may be stopped at any time; started again, it goes on
from its last evaluation. One thread each, 16 rows of 256 tokens a step. Evaluation is not counted
and is the same for all: the exact-k bound in float32 on 256 held-out rows, k spread evenly over
1..256, mask token excluded, in nats per token.

seed     The recipe of the small "diffusion-llm": LayerNorm, learned positions, time added, dropout
         0.1, GELU, untied head with bias (17.34 M parameters at vocabulary 8192); AdamW 3e-4, betas
         0.9 and 0.98, weight decay 0.01, warm-up over 1,000 steps, then cosine over 49,000 to a
         tenth; cosine mask rate, unweighted loss, float32, full head.
loop     A plain loop over this package's network as a careful user tunes it by hand: AdamW at
         --rate, betas 0.9 and 0.95, bfloat16 autocast, head at masked positions only, the bound's
         weight 1 / t, or that clipped at --clip.
sfumato  This package's trainer, `RECIPE` below; compiling its blocks counts.
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
RECIPE = {
    "objective": {"weight": {"name": "clipped", "limit": 4.0}},
    "train": {
        "batch_size": BATCH,
        "max_steps": 100_000,
        "lr_scheduler_type": "constant",
        "learning_rate": 0.02,
        "adam_learning_rate": 3e-3,
        "warmup_steps": 20,
        "torch_compile": True,
    },
    "evaluate": {"eval_steps": 0},
}
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


# tokens [B, L], segments [B, L], where [B, L], masked share [B] -> [N, V]
Logits = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Learner:
    """What differs between contestants."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]  # learning rate at a step
    loss: Callable[[Text], Tensor]
    logits: Logits


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
    from sfumato.models import DiffusionTransformer, TransformerConfig

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

    return Learner(model, optimizer, rate, loss, logits_of(model))


def logits_of(model: nn.Module) -> Logits:
    """How this package's network is evaluated."""

    def logits(tokens: Tensor, segments: Tensor, where: Tensor, share: Tensor) -> Tensor:
        return model(tokens, segments=segments, where=where).logits

    return logits


# --- the measure, the clock, the log ---


@torch.no_grad()
def held_out_bound(model: nn.Module, logits: Logits, data: Data) -> float:
    """Nats per token: the mean over rows of (1 / k) sum of nll at k random masked positions."""
    rows, length = data.held_out.tokens.shape
    generator = torch.Generator().manual_seed(0)
    spread = (torch.randperm(rows, generator=generator) + 0.5) / rows
    k = (spread * length).floor().long() + 1
    rank = torch.rand(rows, length, generator=generator).argsort(1).argsort(1)
    where = rank < k[:, None]
    model.eval()
    total = 0.0
    for index in torch.arange(rows).split(16):
        part, masked = data.held_out.take(index), where[index]
        noisy = part.tokens.masked_fill(masked, data.mask_id)
        scores = logits(noisy, part.segments, masked, k[index] / length).float()
        scores = scores.index_fill(1, torch.tensor([data.mask_id]), -math.inf)
        nll = F.cross_entropy(scores, part.tokens[masked], reduction="none")
        total += float((nll / k[index, None].expand_as(masked)[masked]).sum())
    model.train()
    return total / rows


@dataclass
class Log:
    """JSON lines of one contestant: CPU-seconds and steps spent, and the bound reached."""

    path: Path

    def points(self) -> list[dict[str, float]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def add(self, spent: float, step: int, bound: float) -> None:
        tokens = step * BATCH * LENGTH
        point = {"cpu_seconds": spent, "step": step, "tokens": tokens, "bound": bound}
        with self.path.open("a") as file:
            file.write(json.dumps(point) + "\n")
        print(self.path.stem, point, flush=True)


def train_loop(one: Learner, data: Data, log: Log, minutes: float, every: int) -> None:
    """Train until `minutes` of CPU time are spent; evaluate and save every `every` steps."""
    state = log.path.with_suffix(".pt")
    spent, step = 0.0, 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        one.model.load_state_dict(saved["model"])
        one.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["rng"])
        spent, step = saved["spent"], saved["step"]
    for rows in data.batches(step):
        start = time.process_time()
        for group in one.optimizer.param_groups:
            group["lr"] = one.rate(step)
        one.optimizer.zero_grad()
        one.loss(rows).backward()
        nn.utils.clip_grad_norm_(one.model.parameters(), 1.0)
        one.optimizer.step()
        step += 1
        spent += time.process_time() - start
        if step % every:
            continue
        saved = {
            "model": one.model.state_dict(),
            "optimizer": one.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "spent": spent,
            "step": step,
        }
        torch.save(saved, state.with_suffix(".new"))
        os.replace(state.with_suffix(".new"), state)
        log.add(spent, step, held_out_bound(one.model, one.logits, data))
        if spent >= 60 * minutes:
            return


def train_sfumato(folder: Path, data: Data, log: Log, minutes: float, every: int) -> None:
    """The same through this package's trainer; its checkpoints are what is evaluated."""
    from sfumato.models.transformer import DiffusionTransformer
    from sfumato.train import load_run, training
    from sfumato.train.events import Saved, Started, Stepped

    place = {"output": str(log.path.with_suffix("")), "data": {"folder": str(folder)}}
    events = training(load_run(RECIPE | place, [f"train.save_steps={every}"]))
    spent, start = 0.0, time.process_time()
    for event in events:
        if isinstance(event, Started) and event.step:
            done = [point for point in log.points() if point["step"] == event.step]
            if not done:  # stopped between a checkpoint and its evaluation
                newest = log.path.with_suffix("") / f"checkpoints/step-{event.step:08d}"
                sys.exit(f"{log.path} has no step {event.step}; remove {newest} to go on before it")
            spent = done[-1]["cpu_seconds"]
        if isinstance(event, Stepped):
            spent += time.process_time() - start
        if isinstance(event, Saved):
            model = DiffusionTransformer.from_pretrained(event.path)
            log.add(spent, event.step, held_out_bound(model, logits_of(model), data))
            if spent >= 60 * minutes:
                return
        start = time.process_time()


# --- the table ---


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
    """CPU-seconds of every contestant to the lowest bound of each kind of contestant."""
    curves = {path.stem: Log(path).points() for path in sorted(folder.glob("*.jsonl"))}
    lowest: dict[str, float] = {}
    for name, curve in curves.items():
        kind, bound = name.split("-")[0], min(point["bound"] for point in curve)
        lowest[kind] = min(bound, lowest.get(kind, math.inf))
    levels = sorted(lowest.items(), key=lambda item: -item[1])
    heads = " | ".join(f"CPU-s to {bound:.3f} ({kind})" for kind, bound in levels)
    lines = [f"| contestant | CPU-s | tokens per CPU-s | last bound | {heads} |"]
    lines.append("|---|" + "---:|" * (3 + len(levels)))
    for name, curve in curves.items():
        last = curve[-1]
        times = [seconds_to(curve, bound) for _, bound in levels]
        cells = " | ".join("-" if math.isinf(one) else f"{one:.0f}" for one in times)
        spent, bound = last["cpu_seconds"], last["bound"]
        lines.append(
            f"| {name} | {spent:.0f} | {last['tokens'] / spent:.0f} | {bound:.3f} | {cells} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of prepared text")
    parser.add_argument("logs", type=Path, help="folder of logs and checkpoints")
    parser.add_argument("--contestant", choices=("seed", "loop", "sfumato"))
    parser.add_argument("--rate", type=float, default=2e-3, help="the loop's learning rate")
    parser.add_argument("--clip", type=float, default=math.inf, help="the loop's largest weight")
    parser.add_argument("--minutes", type=float, default=60, help="CPU-minutes of training")
    parser.add_argument("--every", type=int, default=50, help="steps between evaluations")
    options = parser.parse_args()
    if options.contestant is None:
        print(report(options.logs))
        return
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = load(options.data)
    name = options.contestant
    if name == "loop":
        name += f"-{options.rate:g}" + f"-clip{options.clip:g}" * math.isfinite(options.clip)
    options.logs.mkdir(parents=True, exist_ok=True)
    log = Log(options.logs / f"{name}.jsonl")
    if name == "sfumato":
        train_sfumato(options.data, data, log, options.minutes, options.every)
    else:
        one = seed(data) if name == "seed" else loop(data, options.rate, options.clip)
        train_loop(one, data, log, options.minutes, options.every)


if __name__ == "__main__":
    sys.exit(main())
