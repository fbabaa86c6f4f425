"""The options of generation as keyword arguments, for editors and type checkers.

`Changes` has every field of `GenerationOptions`, and what other packages call some of them; a test
compares the two. What a value may be is told beside the fields.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypedDict

# what other packages call the same thing
ALIASES = {
    "max_new_tokens": "length",
    "gen_length": "length",
    "steps": "num_steps",
    "max_denoising_steps": "num_steps",
    "block_length": "block",
    "remasking": "step",
    "alg": "step",
    "cfg_scale": "guidance",
}


class Changes(TypedDict, total=False):
    """What `generate` and its like take beside their own arguments."""

    length: int | None
    grow: int | None
    grow_options: Mapping[str, float]
    canvas: int | None
    layout: Literal["packed", "padded"]
    num_steps: int | None
    step: str | Callable[..., Any] | None
    step_options: Mapping[str, float]
    block: int | None
    lookahead: bool
    guidance: float
    approx_cache: Literal["prefix", "dual"] | None
    approx_refresh: int | None
    temperature: float
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    suppress: Sequence[int]
    regex: str | None
    json_schema: Mapping[str, Any] | bool | str | None
    choices: Sequence[str] | None
    grammar_states: int
    particles: int
    stop: str | Sequence[str]
    seed: int | None
    precision: Literal["auto", "fp32", "bf16"]
    torch_compile: bool
    # words of other packages
    max_new_tokens: int | None
    gen_length: int | None
    steps: int | None
    max_denoising_steps: int | None
    block_length: int | None
    remasking: str | Callable[..., Any] | None
    alg: str | Callable[..., Any] | None
    cfg_scale: float
