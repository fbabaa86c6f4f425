"""Whether a change made anything slower: two checkouts of the package, side by side.

    git worktree add ../before HEAD~20
    python benchmarks/versions.py ../before . --rounds 15

Each checkout has a process of its own, on one thread. They take turns, case by case, in an order
that changes from round to round, so that what else the machine does meets both. Printed are the
medians of CPU time a pass, or a step, and the median of the rounds' ratios: 1.02 is 2 % slower.
"""

import argparse
import copy
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

from racing import ONE_THREAD, REGEX, SCHEMA

PROMPT = "Once upon a time"
LAW = {"temperature": 1.0, "top_p": None}
IN_GRAMMAR = {"length": 64, "num_steps": 32, "step": "remask_cap", "block": None}


def cases(checkout: Path, folder: Path) -> dict[str, Callable[[], int]]:
    """What is timed: calls that return how many passes or steps they took."""
    import torch

    from sfumato import DiffusionLM
    from sfumato.models import DiffusionTransformer

    lm = DiffusionLM.from_pretrained("stories", device="cpu")
    whole = DiffusionLM.from_pretrained("stories-infill", device="cpu")

    config = copy.deepcopy(lm.model.config)
    config.attention, config.objective, config.block_size = "causal", "next_token", None
    config.shift = False
    torch.manual_seed(0)
    causal = DiffusionLM(DiffusionTransformer(config).eval(), lm.tokenizer)

    def write(model: DiffusionLM, texts: str | list[str] = PROMPT, **options) -> Callable[[], int]:
        return lambda: model.generate(texts, seed=1, **options).num_steps

    return {
        "own options": write(lm, length=64),
        "threshold": write(lm, length=64, step="threshold", step_options={"level": 0.9}),
        "probability": write(lm, length=64, step="probability", **LAW),
        "margin": write(lm, length=64, step="margin", **LAW),
        "entropy": write(lm, length=64, step="entropy", **LAW),
        "8 texts": write(lm, [PROMPT] * 8, length=32),
        "one by one": write(causal, length=64),
        "8 texts one by one": write(causal, [PROMPT] * 8, length=32),
        "whole canvas": write(whole, length=48, num_steps=24),
        "no grammar": write(whole, **IN_GRAMMAR),
        "regex": write(whole, regex=REGEX, **IN_GRAMMAR),
        "JSON schema": write(whole, json_schema=SCHEMA, **IN_GRAMMAR),
        "score": lambda: len(lm.score(PROMPT, num_samples=4, seed=0)) and 4,
        **training(checkout, folder),
    }


def training(checkout: Path, folder: Path) -> dict[str, Callable[[], int]]:
    """Steps of small runs; each call trains a few more of them."""
    sys.path.insert(0, str(checkout / "tests"))
    from small_runs import prepare_words

    from sfumato import train as package
    from sfumato.train import load_run

    events = getattr(package, "training", None) or package.train
    words = prepare_words(folder / "words")
    model = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    plan = {"max_steps": 10**6, "warmup_steps": 2, "batch_size": 16, "precision": "fp32"}
    runs = {
        "train": [],
        "train blocks": ["objective.name=block", "model.block_size=8"],
        "train dropout": ["model.dropout=0.1"],
        "train uniform": ["corruption.name=uniform", "objective.name=bound"],
    }

    def stepping(number: int, changes: list[str]) -> Callable[[], int]:
        steps = None

        def step() -> int:
            nonlocal steps
            if steps is None:
                keys = {"output": str(folder / f"run{number}"), "model": model, "train": plan}
                keys |= {"data": {"folder": str(words), "length": 128}}
                keys |= {"evaluate": {"eval_steps": 0}, "log": {"logging_steps": 10**6}}
                steps = iter(events(load_run(keys, changes)))
            taken = 0
            while taken < 3:
                taken += type(next(steps)).__name__ == "Stepped"
            return taken

        return step

    return {name: stepping(i, changes) for i, (name, changes) in enumerate(runs.items())}


def serve(checkout: Path) -> None:
    """Time one call of a case for every line of standard input."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed is no answer
    with tempfile.TemporaryDirectory() as folder:
        known = cases(checkout, Path(folder))
        print(",".join(known), file=answers, flush=True)
        for line in sys.stdin:
            begin = time.process_time()
            count = known[line.strip()]()
            print(1e3 * (time.process_time() - begin) / count, file=answers, flush=True)


class Side:
    """A checkout's process."""

    def __init__(self, checkout: Path):
        env = os.environ | ONE_THREAD | {"PYTHONPATH": str(checkout / "src")}
        command = [sys.executable, __file__, "--serve", str(checkout)]
        self.process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.cases = self._answer().strip().split(",")

    def time(self, case: str) -> float:
        """Milliseconds of CPU a pass or a step."""
        assert self.process.stdin is not None
        print(case, file=self.process.stdin, flush=True)
        return float(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a checkout's process ended; see its message above")
        return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--only", nargs="+", help="some of the cases")
    options = parser.parse_args()
    before, after = Side(options.before.resolve()), Side(options.after.resolve())
    print("| case | ms before | ms after | ratio |\n|---|---:|---:|---:|")
    for case in options.only or before.cases:
        pairs = []
        for number in range(-1, options.rounds):  # the first is a warm-up
            turn = {side: side.time(case) for side in (before, after)[:: 1 - 2 * (number % 2)]}
            pairs += [(turn[before], turn[after])] if number >= 0 else []
        old, new = zip(*pairs, strict=True)
        ratio = median(y / x for x, y in pairs)
        print(f"| {case} | {median(old):.2f} | {median(new):.2f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]))
    else:
        main()
