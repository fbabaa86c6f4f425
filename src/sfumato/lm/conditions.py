"""What a request is conditioned on: which source belongs to which row, and who reads it."""

from collections.abc import Iterable, Mapping, Sequence, Set, Sized
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sfumato.arguments import COUNT, MOST, shown
from sfumato.decoding.request import Request
from sfumato.denoisers.full import Cached, Full
from sfumato.denoisers.guided import Guided, towards_prompt, towards_source
from sfumato.errors import ConfigError, DataError
from sfumato.types import ABSENT

if TYPE_CHECKING:
    from sfumato.data.tokenizer import SpecialIds

Texts = str | Sequence[str]


def listed(name: str, given: Texts) -> list[str]:
    """Texts that a user gives, one or several; raises for what is neither."""
    if isinstance(given, str):
        return [given]
    several = isinstance(given, Sized) and isinstance(given, Iterable)
    if not several or isinstance(given, Mapping | Set | bytes | bytearray | memoryview):
        raise DataError(f"a {name} must be text, or a list of texts; got {shown(given)}")
    try:
        texts = list(given)
    except TypeError:  # an array without dimensions
        raise DataError(f"a {name} must be text, or a list of texts; got {shown(given)}") from None
    for number, one in enumerate(texts, 1):
        if not isinstance(one, str):
            raise DataError(f"{name} {number} must be text, got {shown(one)}")
    return texts


def repeated(texts: Texts, source: Texts | None, num_samples: int) -> tuple[list[str], list[str]]:
    """Every text as often as it is wanted, and the source of each; none: no sources at all.

    One text goes with many sources, and one source with many texts.
    """
    wanted, num_samples = listed("text", texts), COUNT.check("num_samples", num_samples)
    if not wanted:
        raise ConfigError("no text: give one, or '' to write from nothing")
    sources = [] if source is None else listed("source", source)
    if source is not None and not sources:
        raise ConfigError("no source: give one, or leave it out to write without")
    if any(not one.strip() for one in sources):
        raise DataError("a source is empty; give each at least one character, or leave it out")
    if sources and len(sources) != len(wanted):
        if 1 not in (len(sources), len(wanted)):
            raise ConfigError(
                f"{len(wanted)} texts and {len(sources)} sources; give as many of both, or one"
            )
        count = max(len(wanted), len(sources))
        wanted, sources = (each * (count // len(each)) for each in (wanted, sources))
    if len(wanted) * num_samples > MOST:
        raise ConfigError(
            f"{len(wanted)} texts, {num_samples} times each, are more than {MOST}; ask for fewer"
        )

    def spread(each: list[str]) -> list[str]:
        return [one for one in each for _ in range(num_samples)]

    return spread(wanted), spread(sources)


def source_rows(encoded: Sequence[Sequence[int]], special: "SpecialIds") -> Tensor:
    """Tokens of sources as prepared data have them, bos to eos: [B, S], padded on the left."""
    opening = [] if special.bos is None else [special.bos]
    whole = [[*opening, *ids, special.eos] for ids in encoded]
    width = max(map(len, whole))
    return torch.tensor([[ABSENT] * (width - len(ids)) + ids for ids in whole])


def check_conditions(
    request: Request, autoregressive: bool, in_blocks: bool, positions: int | None
) -> None:
    """Raise if a source cannot be read, or there is nothing to be guided by.

    `positions`: those of a model without an encoder, to which a source is text before the rest.
    """
    if request.source is not None and positions is not None and not in_blocks:
        source, canvas = request.source.shape[1], request.canvas.tokens.shape[1]
        prompt = 0 if request.left is None else request.left.shape[1]
        if source + prompt + canvas > positions:
            raise ConfigError(
                f"{source} tokens of the source, {prompt + canvas} of prompt and text do not fit "
                f"into the model's {positions} positions; use a length of at most "
                f"{max(1, positions - source - prompt)}, or a model with an encoder"
            )
    if in_blocks and (request.source is not None or request.options.guidance):
        raise ConfigError(
            "a model of blocks reads no source, and cannot be guided; leave out source and guidance"
        )
    if request.options.approx_cache and (request.source is not None or request.options.guidance):
        raise ConfigError("approx_cache keeps nothing of a source or of guidance; leave it out")
    if not request.options.guidance or request.source is not None:
        return
    if autoregressive:
        raise ConfigError(
            "this model writes from left to right and has never seen a hidden prompt, so that it "
            "can be guided by a source only; leave out guidance"
        )
    given = (isinstance(part, str) and part.strip() for row in request.rows for part in row)
    if not any(given):
        raise ConfigError("guidance needs a prompt or a source to be guided by; leave it out")


def check_room(prompt: int, new: int, limit: int) -> None:
    """Raise for so many tokens of prompt and new ones if a model has not the positions."""
    if limit - prompt < new:
        raise ConfigError(
            f"{prompt} tokens of prompt and {new} new ones do not fit into "
            f"the model's {limit} positions; shorten the prompt or the length"
        )


def check_sees_gaps(autoregressive: bool, block_size: int | None) -> None:
    """Raise for a model that cannot see what follows a gap."""
    if autoregressive:
        raise ConfigError(
            "this model writes from left to right and cannot see what follows a gap; "
            "infilling needs a diffusion model"
        )
    if block_size:
        raise ConfigError(
            f"this model writes blocks of {block_size} tokens and cannot see what follows "
            "one; infilling needs a model of full attention, such as stories-infill"
        )


def check_gaps_fit(lengths: Sequence[int], canvas: int, padded: bool) -> None:
    """Raise for texts, of so many tokens with their gaps, that a canvas does not hold."""
    if max(lengths) > canvas:
        raise ConfigError(
            f"the text has {max(lengths)} tokens with its gaps, more than the canvas of {canvas}; "
            "shorten it or use a smaller gap_length"
        )
    if not padded and min(lengths) < max(lengths):
        raise ConfigError(
            "this model has no padding, so texts of one call must have equally many tokens; "
            "fill them one by one"
        )


@torch.no_grad()
def reading(
    request: Request, denoiser: Full | Cached, special: tuple[int, ...]
) -> Full | Cached | Guided:
    """The denoiser that has read a request's source, once, and the text before its canvas."""
    scale, left = request.options.guidance, request.left
    if scale and request.source is None:
        text = [
            None if tokens is None else ~torch.isin(tokens, torch.tensor(special).to(tokens))
            for tokens in (request.canvas.tokens, left)
        ]
        assert text[0] is not None, "a canvas has tokens"
        left_prompt = (
            None if text[1] is None or request.hidden is None else text[1] & ~request.hidden
        )
        hidden = request.canvas.fixed & text[0]
        return towards_prompt(denoiser, scale, hidden, left, request.hidden, left_prompt)
    shown: Full | Cached | Guided = denoiser
    if request.source is not None:
        guided = towards_source(denoiser, request.source, scale)
        shown = guided if scale else guided.denoiser
    return shown if left is None else shown.given(left=left, left_hidden=request.hidden)
