"""What a grammar costs: compiling it, and every step of writing within it, beside no grammar.

    python benchmarks/grammar.py

The shipped model, one thread, CPU time, medians of alternating rounds: one text of 64 and of 200
new tokens after "Once upon a time", 32 steps. Of two rules, because one that draws its positions
asks the network's head for these alone, and within a grammar for all. A grammar is compiled once a
request: its time is also given for a vocabulary eight times as large.
"""

import sys
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch

from sfumato.data.tokenizer import token_bytes
from sfumato.grammar import Grammar
from sfumato.pipeline import DiffusionLM

ROUNDS, STEPS = 5, 32
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
GRAMMARS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "choices": {"choices": ["yes", "no", "perhaps"]},
    "regex": {"regex": r"([A-Z][a-z]+ (and [A-Z][a-z]+ )?went home\. ?)+"},
    "JSON schema": {"json_schema": SCHEMA},
}


def seconds(run: Callable[[], object]) -> float:
    begin = time.process_time()
    run()
    return time.process_time() - begin


def compiling(lm: DiffusionLM) -> None:
    words = token_bytes(lm.tokenizer, lm.model.config.vocab_size)
    makers = {
        "choices": lambda: Grammar.choices(GRAMMARS["choices"]["choices"]),
        "regex": lambda: Grammar.regex(GRAMMARS["regex"]["regex"]),
        "JSON schema": lambda: Grammar.json_schema(SCHEMA),
    }
    print("| grammar | vocabulary | states | classes | edges | compile, ms |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, make in makers.items():
        for many in (words, words * 8):
            times = [
                seconds(lambda many=many, make=make: make().over(many, end=2).edges)
                for _ in range(ROUNDS)
            ]
            automaton = make().over(many, end=2)
            sizes = automaton.num_states, automaton.num_classes, len(automaton.edges.sets)
            shown = " | ".join(f"{size:,}" for size in (len(many), *sizes))
            print(f"| {name} | {shown} | {1e3 * median(times):.0f} |")


def writing(lm: DiffusionLM) -> None:
    print("| new tokens | rule | grammar | CPU ms a step |\n|---:|---|---|---:|")
    for length in (64, 200):
        for step in ("remask_cap", "threshold"):
            times: dict[str, list[float]] = {name: [] for name in GRAMMARS}
            for number in range(ROUNDS + 1):  # the first warms up
                for name, grammar in GRAMMARS.items():
                    task = lm.start(
                        "Once upon a time",
                        length=length,
                        step=step,
                        num_steps=STEPS,
                        seed=number,
                        **grammar,
                    )
                    begin = time.process_time()
                    *_, last = lm.run(task)
                    if number:
                        times[name].append((time.process_time() - begin) / last.step)
            for name, found in times.items():
                print(f"| {length} | {step} | {name} | {1e3 * median(found):.1f} |")


def main() -> None:
    torch.set_num_threads(1)
    lm = DiffusionLM.from_pretrained("stories-infill")
    compiling(lm)
    print()
    writing(lm)


if __name__ == "__main__":
    sys.exit(main())
