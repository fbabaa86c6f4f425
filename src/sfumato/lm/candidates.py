"""The best distinct ways to fill the gaps of a text, each with its log-probability; and that of
fills that were written.

From a request to `fills.best_fills`, and from what that finds to text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from sfumato.arguments import COUNT
from sfumato.decoding.filters import Allowed, Suppress
from sfumato.decoding.request import Request
from sfumato.errors import ConfigError
from sfumato.lm.fills import Fill, Filling, Layout, best_fills
from sfumato.lm.gaps import GapLength, Ways, judge, log_probability
from sfumato.lm.pages import Generation, Page, template
from sfumato.lm.prompts import Gapped
from sfumato.types import Canvas, Filter

if TYPE_CHECKING:
    from sfumato.lm.model import DiffusionLM

_OWN = frozenset({"suppress", "seed", "canvas"})  # options that have a say in candidates


def candidates(
    lm: "DiffusionLM",
    texts: Sequence[str],
    sources: Sequence[str],
    count: int,
    gap_length: int | str | tuple[int, int],
    filters: Sequence[Filter],
    changes: Mapping[str, Any],
) -> Generation:
    """Up to `count` fills of each text, best first: a row of the result for each."""
    count = COUNT.check("candidates", count)
    for name in changes:
        if name not in _OWN:
            raise ConfigError(
                f"candidates are the likeliest fills by the model's own law, in which {name} has "
                "no say; leave it out"
            )
    wanted = GapLength.of(gap_length)
    source = list(sources) or None
    request = lm.start_infill(list(texts), source=source, gap_length=wanted.low, **changes)
    wanted.check(request.options.layout == "padded", lm.corruption)
    if not request.options.free or request.options.guidance:
        raise ConfigError("candidates know no grammar and no guidance; leave them out")
    made, searched = [], []
    with lm.inference():
        for number, text in enumerate(texts):
            own = sources[number] if sources else ""
            filled = _Text(lm, request, lm.prompts.gapped(text, True), wanted, own, tuple(filters))
            best, exact = best_fills(
                filled.filling, count, filled.spell, request.rng.select(torch.tensor([number]))
            )
            made.append((filled.page(best), [fill.nats for fill in best]))
            searched += ["all" if exact else "drawn"] * len(best)
    parts = [lm.finish(page) for page, _ in made]
    together = {
        name: tuple(value for part in parts for value in getattr(part, name))
        for name in ("texts", "full_texts", "fills", "tokens", "finish_reasons")
    }
    nats = tuple(value for _, values in made for value in values)
    return replace(parts[0], **together, log_probs=nats, searched=tuple(searched))


def fill_log_probs(
    lm: "DiffusionLM", page: Page, filters: Sequence[Filter] = ()
) -> tuple[float, ...]:
    """log p of the fills of each row of a finished page, in nats: by the law of `candidates`, given
    how long the gaps are. A forward for each token that was written."""
    request, canvas = page.request, page.canvas
    if bool(canvas.noisy.any()):
        raise ConfigError("log_probs are those of finished pages, and this one has noise left")
    denoiser = lm.denoiser
    if request.source is not None:
        denoiser = denoiser.conditioned(request.source)
    spaced = (each for each in request.filters if isinstance(each, Allowed))
    own = (*spaced, Suppress((*sorted(lm.never), *request.options.suppress)))
    shown = request.canvas.fixed
    with lm.inference():
        nats = log_probability(
            denoiser, lm.corruption, canvas.tokens, shown, ~shown, filters=(*own, *filters)
        )
    return tuple(nats.tolist())


class _Text:
    """One text of a request, with what its gaps may be."""

    def __init__(
        self,
        lm: "DiffusionLM",
        request: Request,
        gapped: Gapped,
        wanted: GapLength,
        source: str,
        filters: tuple[Filter, ...],
    ):
        room, filler = request.canvas.tokens.shape[1], lm.special.filler
        ways = Ways(((wanted.low,) * gapped.gaps,), torch.zeros(1, dtype=torch.float64))
        read: Callable[[int], Any] = partial(lm.read_for, source)
        if not wanted.known:
            possible = [tuple(range(wanted.low, wanted.high + 1))] * gapped.gaps
            end = lm.special.eos if filler == lm.special.eos else None
            ways = judge(read, lm.corruption, gapped.ids, possible, room, end=end, device=lm.device)
        self.lm, self.request = lm, request
        self.laid = [gapped.laid(lengths) for lengths in ways.lengths]
        layouts = []
        for (_, ids, spaced), nats in zip(
            self.laid, ways.nats.log_softmax(0).tolist(), strict=True
        ):
            tokens = template([ids], room, filler)[0][0]
            begins = torch.zeros(room, dtype=torch.bool)
            begins[list(spaced)] = True
            places = tuple((tokens < 0).nonzero()[:, 0].tolist())
            own = (tokens.to(lm.device), places, begins.to(lm.device), nats)
            layouts.append(Layout(*own))
        never = Suppress((*sorted(lm.never), *request.options.suppress))
        with_space = lm.prompts.spaced.to(lm.device)
        self.filling = Filling(tuple(layouts), read, lm.corruption, (never, *filters), with_space)

    def page(self, fills: Sequence[Fill]) -> Page:
        """The finished page of some fills, a row each."""
        own = [self.filling.layouts[fill.layout] for fill in fills]
        tokens = torch.stack([layout.tokens for layout in own])
        for row, (layout, fill) in enumerate(zip(own, fills, strict=True)):
            tokens[row, list(layout.places)] = torch.tensor(fill.tokens).to(tokens)
        fixed = torch.stack([layout.tokens >= 0 for layout in own])
        begun = Canvas(tokens.masked_fill(~fixed, self.lm.special.mask), ~fixed, fixed)
        rows = tuple(self.laid[fill.layout][0] for fill in fills)
        request = replace(self.request, rows=rows, canvas=begun, source=None)
        return Page.blank(request).after(replace(begun, tokens=tokens, noisy=fixed & ~fixed))

    def spell(self, fills: Sequence[Fill]) -> Sequence[object]:
        """How fills read: the text of every gap."""
        return self.lm.finish(self.page(fills)).fills if fills else []
