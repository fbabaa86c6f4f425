"""What a grammar costs: compiling it, and every step of writing within it, beside no grammar.

    python benchmarks/grammar.py writing
    python benchmarks/grammar.py compiling [FOLDER OF A TOKENIZER ...]

`writing`: the shipped model, one thread, CPU time, medians of alternating rounds: one text of 64
and of 200 new tokens after "Once upon a time", 32 steps. Of two rules, because one that draws its
positions asks the network's head for these alone, and within a grammar for all.

`compiling`: every schema of tests/common_schemas.json and some regular expressions, from the text
to the automaton over bytes, and from there over the vocabulary of `stories` and of each tokenizer
that is named, ready to write with; CPU seconds, the quickest of three.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from racing import REGEX, SCHEMA

from sfumato.data.token_bytes import token_bytes
from sfumato.decoding.constrained import Span, constrain
from sfumato.decoding.unmask import LeftToRight
from sfumato.errors import ConfigError
from sfumato.grammar.grammar import Grammar
from sfumato.grammar.json_schema import schema_automaton
from sfumato.grammar.patterns import read_pattern
from sfumato.grammar.regular import automaton
from sfumato.lm.model import DiffusionLM
from sfumato.noise.schedules import Linear

ROUNDS, STEPS = 5, 32
GRAMMARS: Mapping[str, Mapping[str, Any]] = {
    "none": {},
    "choices": {"choices": ["yes", "no", "perhaps"]},
    "regex": {"regex": REGEX},
    "JSON schema": {"json_schema": SCHEMA},
}

REGEXES = (
    "[a-z ]+",
    r"(\+\d{1,3} )?\d{3}-\d{4}",
    ".{0,500}",
    ".{0,3000}",
    "(.*a.{10})",
    "(.*a.{12})",
)


def quickest(make: Callable[[], Any]) -> tuple[float, Any]:
    times, made = [], None
    for _ in range(3):
        begin = time.process_time()
        made = make()
        times.append(time.process_time() - begin)
    return min(times), made


def of_schema(schema: Any) -> Grammar:
    grammar = Grammar(schema_automaton(schema))
    assert len(grammar.moves[0])
    return grammar


def of_regex(pattern: str) -> Grammar:
    grammar = Grammar(automaton(read_pattern(pattern)))
    assert len(grammar.moves[0])
    return grammar


def ready(words: tuple[bytes | None, ...], grammar: Grammar) -> int:
    """Its edges, over tokens, of which id 2 ends a text."""
    found = Grammar(grammar.characters)  # so that nothing is kept but the automaton over bytes
    found.__dict__["moves"] = grammar.moves
    over = found.over(words, end=2)
    constrain(LeftToRight(Linear()), over, [Span(0, 0, 256)])
    return len(over.edges.sets)


def compiling(folders: list[str]) -> None:
    from transformers import AutoTokenizer

    lm = DiffusionLM.from_pretrained("stories")
    vocabularies = {"stories": tuple(token_bytes(lm.tokenizer, lm.model.config.vocab_size))}
    for folder in folders:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        vocabularies[Path(folder).name] = tuple(token_bytes(tokenizer, len(tokenizer)))
    names = [f"{name}, {len(words):,} tokens" for name, words in vocabularies.items()]
    print(f"| grammar | states | to the automaton | {' | '.join(names)} |")
    print("|---|" + "---:|" * (2 + len(names)))
    common = Path(__file__).parent.parent / "tests" / "common_schemas.json"
    schemas = json.loads(common.read_text(encoding="utf-8"))
    makers = {name: lambda own=own: of_schema(own) for name, own in schemas.items()}
    makers |= {f"`{own}`": lambda own=own: of_regex(own) for own in REGEXES}
    for name, make in makers.items():
        try:
            seconds, grammar = quickest(make)
        except ConfigError:
            print(f"| {name} | refused |")
            continue
        found = [quickest(lambda w=w, g=grammar: ready(w, g))[0] for w in vocabularies.values()]
        times = " | ".join(f"{one:.2f}" for one in (seconds, *found))
        print(f"| {name} | {len(grammar.moves[0]):,} | {times} |", flush=True)


def writing(lm: DiffusionLM) -> None:
    print("| new tokens | rule | grammar | CPU ms a step |\n|---:|---|---|---:|")
    for length in (64, 200):
        for step in ("remask_cap", "threshold"):
            times: dict[str, list[float]] = {name: [] for name in GRAMMARS}
            for number in range(ROUNDS + 1):  # the first warms up
                for name, grammar in GRAMMARS.items():
                    request = lm.start(
                        "Once upon a time",
                        length=length,
                        step=step,
                        num_steps=STEPS,
                        seed=number,
                        **grammar,
                    )
                    begin = time.process_time()
                    *_, last = lm.run(request)
                    if number:
                        times[name].append((time.process_time() - begin) / last.step)
            for name, found in times.items():
                print(f"| {length} | {step} | {name} | {1e3 * median(found):.1f} |")


def main(what: str, *folders: str) -> None:
    torch.set_num_threads(1)
    if what == "compiling":
        compiling(list(folders))
    else:
        writing(DiffusionLM.from_pretrained("stories-infill"))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
