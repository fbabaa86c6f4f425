"""From what a user asks for to a `Request`: checked, and laid out on a canvas."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from sfumato.arguments import Kind
from sfumato.decoding.constrained import constrain
from sfumato.decoding.filters import Allowed
from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.page import blank
from sfumato.decoding.request import Request, RowPart, check_size
from sfumato.decoding.writing import check_gaps, check_request, settle
from sfumato.errors import ConfigError
from sfumato.lm.gaps import GapLength, gap_lengths
from sfumato.lm.pages import left_padded, spans, template
from sfumato.lm.texts import Texts, repeated
from sfumato.rng import Rng
from sfumato.types import Filter

if TYPE_CHECKING:
    from sfumato.lm.model import DiffusionLM

FILTERS = Kind(Annotated[tuple[Callable[..., Any], ...], Field(title="a tuple of filters")])


def continuation(
    lm: "DiffusionLM",
    prompt: Texts,
    source: Texts | None,
    num_samples: int,
    filters: Sequence[Filter],
    changes: Mapping[str, Any],
) -> Request:
    """New text after each prompt.

    A canvas of its own behind prompts of any length; for a model of blocks, and where the length is
    not known, all on one page.
    """
    options = _settled(lm, changes)
    prompts, sources = repeated(prompt, source, num_samples)
    check_size(len(prompts), options.length or 1, options.num_steps)
    stems = [lm.prompts.stem(each) for each in prompts]
    shown = stems if options.free else prompts
    given = [lm.prompts.opening(ids) for ids in lm.encode(stems)]
    spaced = [one != stem for one, stem in zip(prompts, stems, strict=True)]
    one_page = options.length is None or options.grow or lm.block_size
    laid = (_one_page if one_page else _behind)(lm, options, given, shown, spaced)
    # a text may end, and contains no other special token
    request = _request(lm, options, laid, lm.never - lm.reader.ends, filters, sources)
    if lm.calibration is not None:
        lm.calibration.warn(options, lm.options, request.canvas.noisy)
    check_request(lm.writer, request)
    return request


def infilling(
    lm: "DiffusionLM",
    text: Texts,
    source: Texts | None,
    gap_length: int | str | tuple[int, int],
    num_samples: int,
    filters: Sequence[Filter],
    changes: Mapping[str, Any],
) -> Request:
    """New text in the gaps of each text."""
    check_gaps(lm.writer, replace(lm.options, grow=None, grow_options={}))
    wanted, options = GapLength.of(gap_length), _settled(lm, changes)
    padded = options.layout == "padded"
    wanted.check(padded, lm.corruption)
    for name in ("length", "grow", "stop"):
        if getattr(options, name) != getattr(lm.options, name):
            raise ConfigError(f"infilling has no {name}: use gap_length, tokens for each gap")
    options = replace(options, grow=None, grow_options={}, stop=())  # those of the model
    texts, sources = repeated(text, source, num_samples)
    gapped = [lm.prompts.gapped(one, options.free) for one in texts]
    lengths = [one.count + wanted.low * one.gaps for one in gapped]
    canvas = options.canvas or 0
    _check_gaps_fit(lengths, canvas, padded)
    with lm.inference():
        chosen = gap_lengths(
            gapped,
            sources or [""] * len(gapped),
            wanted,
            lm.prompts.automaton(options, lm.never),
            lm.read_for,
            lm.corruption,
            room=canvas,
            end=lm.special.eos if lm.special.filler == lm.special.eos else None,
            temperature=options.temperature,
            rng=Rng.from_seed(options.seed or 0, len(gapped), device=lm.device).fold(2),
        )
    laid = [one.laid(each) for one, each in zip(gapped, chosen, strict=True)]
    width = canvas if padded else max(lengths)
    check_size(len(gapped), width, options.num_steps)
    tokens, _ = template([ids for _, ids, _ in laid], width, lm.special.filler)
    rows, spaced = [parts for parts, _, _ in laid], [places for _, _, places in laid]
    # a gap does not end the text: what follows it is given
    own = _Laid(rows, tokens, tokens >= 0, spaced)
    request = _request(lm, options, own, lm.never, filters, sources)
    check_request(lm.writer, request)
    return request


@dataclass(frozen=True)
class _Laid:
    """Tokens on a page, -1 or a mask where nothing is given."""

    rows: Sequence[tuple[RowPart, ...]]
    tokens: Tensor  # [B, L]
    fixed: Tensor  # [B, L] bool
    spaced: Sequence[Sequence[int]]  # of each row, where a token must begin with a space
    left: Tensor | None = None  # [B, P] prompts before the page
    hidden: Tensor | None = None  # [B, P] bool, their padding


def _settled(lm: "DiffusionLM", changes: Mapping[str, Any]) -> GenerationOptions:
    """The model's options with a user's, as they will be used."""
    config = lm.model.config
    options = lm.options.with_changes(**changes)
    options = settle(lm.writer, options.within(config.max_position_embeddings, config.vocab_size))
    seed = secrets.randbits(31) if options.seed is None else options.seed
    return replace(options, seed=seed)


def _one_page(
    lm: "DiffusionLM",
    options: GenerationOptions,
    given: Sequence[list[int]],
    shown: Sequence[str],
    spaced: Sequence[bool],  # of each row: new text begins with a space
) -> _Laid:
    """Prompts at the beginning of the rows."""
    most = lm.model.config.max_position_embeddings
    limit = most if options.length else options.canvas or most
    if not (lm.block_size and options.length):  # blocks slide over a text of any length
        _check_room(max(map(len, given)), options.length or options.grow or 1, limit)
    ends = [len(ids) + options.length if options.length else limit for ids in given]
    new = options.grow or options.length
    stops = [len(ids) + new if new else limit for ids in given]
    check_size(len(stops), max(ends), options.num_steps)
    tokens, fixed = template(given, max(stops), lm.special.mask)
    for row, stop in enumerate(stops):
        tokens[row, stop:], fixed[row, stop:] = lm.special.filler, True
    starts = [len(ids) for ids in given]
    places = [[start] * lead for start, lead in zip(starts, spaced, strict=True)]
    parts = zip(shown, starts, ends, strict=True)
    return _Laid([(text, slice(start, end)) for text, start, end in parts], tokens, fixed, places)


def _behind(
    lm: "DiffusionLM",
    options: GenerationOptions,
    given: Sequence[list[int]],
    shown: Sequence[str],
    spaced: Sequence[bool],  # of each row: new text begins with a space
) -> _Laid:
    """A page of new text alone; prompts are left of it, so that their lengths do not matter."""
    length, longest = options.length or 0, max(map(len, given))
    _check_room(longest, length, lm.model.config.max_position_embeddings)
    check_size(len(given), length + longest, options.num_steps)
    tokens, fixed = template([[] for _ in given], length, lm.special.mask)
    rows = [(text, slice(0, length)) for text in shown]
    laid = _Laid(rows, tokens, fixed, [[0] * lead for lead in spaced])
    if not longest:
        return laid
    left, hidden = left_padded(given, lm.special.filler)
    return replace(laid, left=left.to(lm.device), hidden=hidden.to(lm.device))


def _request(
    lm: "DiffusionLM",
    options: GenerationOptions,
    laid: _Laid,
    never: frozenset[int],
    filters: Sequence[Filter],
    sources: Sequence[str],  # of each row, or none at all
) -> Request:
    rng = Rng.from_seed(options.seed or 0, len(laid.rows), device=lm.device)
    tokens, fixed = laid.tokens.to(lm.device), laid.fixed.to(lm.device)
    led = {(row, place) for row, places in enumerate(laid.spaced) for place in places}
    own: tuple[Filter, ...] = ()
    if led:
        at = torch.zeros_like(fixed)
        for place in led:
            at[place] = True
        own = (Allowed(at, lm.prompts.spaced.to(lm.device)),)
    rule, extra = options.rule(lm.corruption), FILTERS.check("filters", filters)
    automaton = lm.prompts.automaton(options, never)
    if automaton is not None:
        rule = constrain(rule, automaton, spans(laid.rows, led))
    return Request(
        options=options,
        rows=tuple(laid.rows),
        canvas=blank(lm.corruption, tokens, fixed, rng.fold(0)),
        rng=rng.fold(1),
        step=rule,
        filters=(*own, *options.filters(tuple(sorted(never))), *extra),
        left=laid.left,
        hidden=laid.hidden,
        led=frozenset() if options.free else frozenset(led),
        source=lm.source_rows(sources) if sources else None,
    )


def _check_room(prompt: int, new: int, limit: int) -> None:
    """Raise for so many tokens of prompt and new ones if a model has not the positions."""
    if limit - prompt < new:
        raise ConfigError(
            f"{prompt} tokens of prompt and {new} new ones do not fit into "
            f"the model's {limit} positions; shorten the prompt or the length"
        )


def _check_gaps_fit(lengths: Sequence[int], canvas: int, padded: bool) -> None:
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
