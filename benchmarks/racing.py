"""What the races share: the shape, the clock, the referee, the table, the plain Hugging Face model.

Rules, the same for every contestant: a process of its own, so that peak memory is its own; one
core and one thread; contestants alternate for several rounds and medians count; equal width,
layers, heads, feed-forward, vocabulary, length and batch, parameters printed; warm-up and
compilation are not timed; nothing is tuned for one side only. CPU-seconds of the process are
compared, because wall time depends on who else uses the machine.

A contestant is a function (shape, clock, laps) -> facts. It calls `clock.lap()` once after every
warm-up lap and after every timed lap. It imports what it needs inside, since a peer runs under an
interpreter of its own that may lack everything else; hence this file's own top needs only the
standard library.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "JAX_PLATFORMS": "cpu",
    "HF_HUB_OFFLINE": "1",
}

REGEX = r"([A-Z][a-z]+ (and [A-Z][a-z]+ )?went home\. ?)+"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer"},
        "likes": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        "kind": {"enum": ["cat", "dog"]},
        "weight": {"type": ["number", "null"]},
    },
    "required": ["name", "age"],
}


@dataclass(frozen=True)
class Shape:
    """Dimensions every contestant must have."""

    vocab_size: int = 8192  # with the mask token, which is the last id
    length: int = 256
    batch: int = 16
    width: int = 384
    layers: int = 6
    heads: int = 6
    feed_forward: int = 1024  # gated; 4 * width where a contestant only has the plain kind

    @property
    def mask_id(self) -> int:
        return self.vocab_size - 1


@dataclass
class Clock:
    """Laps of CPU time of this process and of wall time; the first `warm_up` are not counted."""

    warm_up: int
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def lap(self) -> None:
        self.cpu.append(time.process_time())
        self.wall.append(time.perf_counter())

    def seconds(self, stamps: list[float]) -> list[float]:
        counted = stamps[self.warm_up - 1 :]
        return [after - before for before, after in pairwise(counted)]


Contestant = Callable[[Shape, Clock, int], dict[str, Any]]


@dataclass(frozen=True)
class Race:
    """One claim: who runs, how long, and what is counted."""

    title: str
    contestants: Mapping[str, Contestant]
    peers: frozenset[str]  # contestants that need an interpreter of their own
    shape: Shape
    warm_up: int
    laps: int


def peak_megabytes() -> float:
    """Largest resident size of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def run_alone(race: Race, name: str) -> dict[str, Any]:
    """One round of one contestant, in this process."""
    if hasattr(os, "sched_setaffinity"):  # Linux: thread pools that ignore OMP_NUM_THREADS obey it
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    clock = Clock(race.warm_up)
    facts = race.contestants[name](race.shape, clock, race.laps)
    cpu, wall = clock.seconds(clock.cpu), clock.seconds(clock.wall)
    assert len(cpu) == race.laps, f"{name} made {len(cpu)} timed laps, not {race.laps}"
    return facts | {"cpu_seconds": cpu, "wall_seconds": wall, "peak_megabytes": peak_megabytes()}


def run_in_child(script: str, name: str, python: str, options: list[str]) -> dict[str, Any]:
    """One round of one contestant, in a fresh process and an empty folder; its last line counts."""
    command = [python, str(Path(script).resolve()), *options, "--contestant", name]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            command,
            cwd=folder,
            env=os.environ | ONE_THREAD,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"{name} failed: {' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def summarise(rounds: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    """Medians over all laps of all rounds; `tokens` of one lap."""
    cpu = [s for one in rounds for s in one["cpu_seconds"]]
    wall = [s for one in rounds for s in one["wall_seconds"]]
    timings = ("cpu_seconds", "wall_seconds", "peak_megabytes")
    return {
        "facts": {key: value for key, value in rounds[0].items() if key not in timings},
        "cpu_seconds_per_lap": median(cpu),
        "tokens_per_cpu_second": tokens / median(cpu),
        "tokens_per_cpu_second_best": tokens / min(cpu),
        "tokens_per_second_wall": tokens / median(wall),
        "peak_megabytes": median(one["peak_megabytes"] for one in rounds),
        "rounds": rounds,
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Markdown; the first contestant is the unit of the last column."""
    unit = next(iter(results.values()))["tokens_per_cpu_second"]
    lines = [
        "| contestant | parameters M | CPU-s a lap | tokens per CPU-s (median, best) "
        "| tokens/s wall | peak MB | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in results.items():
        speed = one["tokens_per_cpu_second"]
        lines.append(
            f"| {name} | {one['facts']['parameters'] / 1e6:.2f} | {one['cpu_seconds_per_lap']:.3f} "
            f"| {speed:.0f}, {one['tokens_per_cpu_second_best']:.0f} "
            f"| {one['tokens_per_second_wall']:.0f} | {one['peak_megabytes']:.0f} "
            f"| {speed / unit:.2f} |"
        )
    return "\n".join(lines)


def processor() -> str:
    """Name of the CPU, and whether it multiplies bfloat16 matrices in hardware."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor()
    text = path.read_text()
    name = text.split("model name", 1)[-1].split("\n", 1)[0].strip(" \t:")
    units = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in text]
    return f"{name} ({', '.join(units) or 'no bfloat16 unit'})"


def main(doc: str, make_race: Callable[..., Race], batch: int, **own: str) -> None:
    """Command line of a race: referee by default, a single contestant with --contestant.

    `own` options of a script and their defaults are handed to `make_race` after the batch.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contestants to run, in order")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure here")
    parser.add_argument("--contestant", metavar="NAME", help="run one, here, once; print JSON")
    for name, default in own.items():
        parser.add_argument(f"--{name}", default=default)
    for peer in sorted(make_race(batch, **own).peers):
        parser.add_argument(f"--{peer}", metavar="PYTHON", help=f"interpreter that has {peer}")
    options = parser.parse_args()
    own = {name: getattr(options, name) for name in own}
    race = make_race(options.batch, **own)
    if options.contestant:
        print(json.dumps(run_alone(race, options.contestant)))
        return

    pythons = {}
    for name in options.only or race.contestants:
        python = getattr(options, name) if name in race.peers else sys.executable
        if python is None:
            print(f"SKIPPED {name}: no interpreter given (--{name} PYTHON)", file=sys.stderr)
        else:
            pythons[name] = python
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in pythons}
    for number in range(options.rounds):
        for name, python in pythons.items():
            asked = {"batch": str(race.shape.batch), **own}
            words = [word for key, value in asked.items() for word in (f"--{key}", value)]
            one = run_in_child(sys.argv[0], name, python, words)
            rounds[name].append(one)
            print(
                f"round {number + 1} {name}: {sum(one['cpu_seconds']):.1f} CPU-s", file=sys.stderr
            )
    tokens = race.shape.batch * race.shape.length
    results = {name: summarise(done, tokens) for name, done in rounds.items()}
    print(f"{race.title}\n{processor()}, one thread, {options.rounds} rounds of {race.laps} laps\n")
    print(table(results))
    if options.json:
        about = {"race": race.title, "processor": processor(), "python": platform.python_version()}
        record = about | {"shape": asdict(race.shape), "results": results}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def modernbert(shape: Shape) -> Any:
    """Hugging Face ModernBERT of the shape, every layer seeing the whole text."""
    import torch
    from transformers import ModernBertConfig, ModernBertForMaskedLM

    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.length,
        global_attn_every_n_layers=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
    )
    return ModernBertForMaskedLM(config)


def parameters(model: Any) -> int:
    """Trained numbers of a torch module, shared ones once."""
    return sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
