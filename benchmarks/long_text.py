"""What a model of blocks costs as its text grows, and when its blocks come.

    python benchmarks/long_text.py stories --plot long_text.png

One process and one thread. Lengths alternate, medians count. Three things are printed: CPU time per
token from 256 to 4,096 tokens of output; the time to the first block, and between blocks; and eight
requests written together against one after the other. Their texts are the same in float32; in
bfloat16 a product of other rows rounds otherwise now and then, and a draw falls differently.
"""

import argparse
import os
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from statistics import median, quantiles
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

LENGTHS = (256, 512, 1024, 2048, 4096)


def write(lm: Any, length: int, rows: int = 1, **changes: Any) -> Any:
    """All of `length` tokens: nothing ends them."""
    ends = tuple(sorted(lm.reader.ends))
    prompt = changes.pop("prompt", "Once upon a time")
    return lm.generate(prompt, num_samples=rows, length=length, suppress=ends, **changes)


def growth(lm: Any, rounds: int) -> dict[int, float]:
    """CPU milliseconds per token."""
    spent: dict[int, list[float]] = {length: [] for length in LENGTHS}
    for number in range(rounds):
        for length in LENGTHS:
            begin = time.process_time()
            write(lm, length, seed=number)
            spent[length].append((time.process_time() - begin) / length * 1e3)
    return {length: median(times) for length, times in spent.items()}


def latency(lm: Any, rounds: int) -> tuple[float, float, float]:
    """Milliseconds to the first whole block, and the 50th and 95th percentile between blocks."""
    first, between = [], []
    size = lm.block_size
    for number in range(rounds):
        ends = tuple(sorted(lm.reader.ends))
        begin = last = time.perf_counter()
        done = 0
        for page in lm.stream("Once upon a time", length=256, seed=number, suppress=ends):
            whole = int((~page.canvas.noisy[0]).long().cumprod(0).sum()) // size
            now = time.perf_counter()
            if not page.step:
                done = whole
            elif whole > done:
                (between if last > begin else first).append((now - last) * 1e3)
                done, last = whole, now
    cuts = quantiles(between, n=20)
    return median(first), median(between), cuts[18]


def together(lm: Any, rounds: int, precision: str) -> tuple[float, float]:
    """CPU seconds for eight texts: one after the other, and in one batch."""
    import torch

    from sfumato.rng import Rng

    names = ("Tom", "Lily", "Ben", "Sue", "Max", "Mia", "Tim", "Amy")
    prompts = [f"{name} had a" for name in names]
    ends = tuple(sorted(lm.reader.ends))
    asked = {"length": 128, "suppress": ends, "precision": precision}
    alone, batch = [], []
    for number in range(rounds):
        draws = Rng.from_seed(number, len(prompts)).fold(1)  # those of the rows of the batch
        begin, texts = time.process_time(), []
        for row, prompt in enumerate(prompts):
            request = lm.start(prompt, seed=number, **asked)
            request = replace(request, rng=draws.select(torch.tensor([row])))
            texts.append(lm.finish(deque(lm.run(request), maxlen=1)[0]).texts[0])
        middle = time.process_time()
        same = lm.generate(prompts, seed=number, **asked).texts
        alone.append(middle - begin)
        batch.append(time.process_time() - middle)
        differ = sum(one != other for one, other in zip(texts, same, strict=True))
        print(f"{precision}, seed {number}: {differ} of {len(prompts)} texts differ")
    return median(alone), median(batch)


def plot(cost: dict[int, float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot(list(cost), list(cost.values()), marker="o")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(cost), [f"{length:,}" for length in cost])
    axes.set_ylim(0, 1.3 * max(cost.values()))
    axes.set_xlabel("tokens of output")
    axes.set_ylabel("CPU ms a token")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()

    import torch

    from sfumato import DiffusionLM

    torch.set_num_threads(1)
    lm = DiffusionLM.from_pretrained(options.model)
    if not lm.block_size:
        raise SystemExit("long text needs a model of blocks")
    write(lm, 64, seed=0)
    cost = growth(lm, options.rounds)
    print("| tokens of output | " + " | ".join(f"{length:,}" for length in cost) + " |")
    print("|---|" + "---:|" * len(cost))
    print("| CPU ms a token | " + " | ".join(f"{ms:.2f}" for ms in cost.values()) + " |\n")
    first, usual, slow = latency(lm, options.rounds * 3)
    print(f"first block after {first:.0f} ms, then one every {usual:.0f} ms, p95 {slow:.0f} ms\n")
    for precision in ("fp32", "bf16"):
        alone, batch = together(lm, options.rounds, precision)
        times = f"{alone:.2f} CPU-s one after the other, {batch:.2f} together"
        print(f"eight requests: {times}: {alone / batch:.1f} times the throughput")
    if options.plot:
        plot(cost, options.plot)


if __name__ == "__main__":
    main()
