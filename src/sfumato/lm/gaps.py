"""How many tokens a gap of a text gets, where nobody knows.

A model whose rows are padded is one law over pages, and so over texts of every length: what is
given, with gaps of 3 tokens in it, and the same with gaps of 7, are two events of that law, and
their probabilities compare. A gap is summed over by leaving it masked, so nothing is written to
find its length: log p of what is given is a sum of the model's own predictions, one token after
another (`log_probability`). With a perfect denoiser, lengths drawn by these probabilities, and
tokens drawn after them, are a draw from the law given the text.

Where there is no padding token, the end token fills the rest of a row. A gap at the very end of a
text is then followed by an end that every shorter text has there as well: see `judge`.

Three things are left out to save time. The length of a gap is judged by the `REACH` tokens after
it, so it is the posterior given these and all that is left of the gap. Of several gaps, from left
to right, the `KEPT` most probable ways so far are gone on with. And of the page's end, where all is
open, only `MARGIN` positions are shown: more change what a network says by little (docs/log.md).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sfumato.arguments import Count, as_python, check_fields, shown
from sfumato.decoding.logits import draw_tokens
from sfumato.errors import ConfigError
from sfumato.grammar.automaton import SPACED, Automaton
from sfumato.lm.prompts import Gapped
from sfumato.noise.corruption import Corruption
from sfumato.rng import Rng
from sfumato.types import Canvas, Denoiser, Filter

REACH = 8  # tokens after a gap that its length is judged by
KEPT = 4  # ways to fill the gaps so far that are gone on with
MOST = 64  # lengths that are tried for a gap, at most
MARGIN = 32  # open positions behind the longest way: the page looks as if it went on
ROWS = 64  # that go through the network together
AUTO = (1, 16)


@dataclass(frozen=True)
class GapLength:
    """How many tokens every gap of a text may have."""

    low: Count
    high: Count

    def __post_init__(self):
        check_fields(self, low="gap_length", high="gap_length")
        if self.high < self.low:
            raise ConfigError(
                f"gap_length from {self.low} to {self.high} has no length in it; give the "
                "smaller one first"
            )
        if self.high - self.low >= MOST:
            raise ConfigError(
                f"gap_length from {self.low} to {self.high} are {self.high - self.low + 1} "
                f"lengths to try, more than {MOST}; give a narrower range"
            )

    @classmethod
    def of(cls, given: "int | str | tuple[int, int]") -> "GapLength":
        """From a number, "8", a range (2, 12), "2-12", or "auto"."""
        auto = isinstance(given, str) and given == "auto"
        wanted: object = AUTO if auto else as_python(given)
        if isinstance(wanted, str) and len(wanted) < 20:
            low, dash, high = wanted.partition("-")
            ends = (low, high if dash else low)
            wanted = [int(end) if end.isdecimal() and end.isascii() else None for end in ends]
        elif isinstance(wanted, int):
            wanted = (wanted, wanted)
        if isinstance(wanted, tuple | list) and len(wanted) == 2:
            first, last = wanted
            if type(first) is int and type(last) is int:
                return cls(first, last)
        raise ConfigError(
            "gap_length must be a number of tokens, a range such as 2-12, or auto; got "
            f"{shown(given)}"
        )

    @property
    def known(self) -> bool:
        return self.low == self.high

    def check(self, padded: bool, corruption: Corruption) -> None:
        """Raise if a model cannot tell lengths apart."""
        if self.known:
            return
        if not padded:
            raise ConfigError(
                "this model has no padding: it knows how probable a text is among those of its own "
                "length, and cannot compare lengths; give gap_length as a number"
            )
        if not corruption.absorbing:
            raise ConfigError(
                "the length of a gap is found by leaving it masked, and this model was trained on "
                f"{type(corruption).__name__.lower()} noise; give gap_length as a number"
            )

    def possible(self, automaton: Automaton | None, state: int) -> tuple[int, ...]:
        """The lengths for which a grammar has a text, from a state on; without one, all."""
        lengths = range(self.low, self.high + 1)
        if automaton is None:
            return tuple(lengths)
        ahead = automaton.completable(self.high)
        found = tuple(n for n in lengths if ahead[n, state])
        if not found:
            raise ConfigError(
                f"no text of the grammar has from {self.low} to {self.high} tokens; use a "
                "gap_length with others, or allow other texts"
            )
        return found


@dataclass(frozen=True)
class Ways:
    """Ways to choose the lengths of a text's gaps, and how probable the text is with each."""

    lengths: tuple[tuple[int, ...], ...]
    nats: Tensor  # [K] float64, log p of what is given; the same tokens for all

    def draw(self, temperature: float, u: Tensor) -> tuple[int, ...]:
        """One of them, by its posterior, for u [1] in (0, 1); at temperature 0 the best."""
        if temperature == 0:
            return self.lengths[int(self.nats.argmax())]
        return self.lengths[int(draw_tokens(self.nats[None] / temperature, u))]


def gap_lengths(
    texts: Sequence[Gapped],  # of each row
    sources: Sequence[str],  # of each row
    wanted: GapLength,
    automaton: Automaton | None,
    reading: Callable[[str, int], Denoiser],  # of a source, and so many rows
    corruption: Corruption,
    *,
    room: int,  # tokens of a text
    end: int | None = None,  # if it fills the rest of a row, too
    temperature: float,
    rng: Rng,
) -> list[tuple[int, ...]]:
    """Lengths of each row's gaps; where they are not known, drawn by the model's posterior.

    Rows of the same text are judged once, and every row draws for itself.
    """
    if wanted.known:
        return [(wanted.low,) * text.gaps for text in texts]
    rows = list(zip(texts, sources, strict=True))
    found: dict[tuple[Gapped, str], Ways] = {}
    for text, source in dict.fromkeys(rows):
        possible = [wanted.possible(automaton, SPACED * spaced) for spaced in text.spaced]
        read = partial(reading, source)
        found[text, source] = judge(
            read, corruption, text.ids, possible, room, end=end, device=rng.keys.device
        )
    return [found[row].draw(temperature, u) for row, u in zip(rows, rng.uniform(1), strict=True)]


def judge(
    reading: Callable[[int], Denoiser],  # a denoiser of so many rows
    corruption: Corruption,
    given: Sequence[Sequence[int]],  # tokens before, between and behind the gaps
    possible: Sequence[Sequence[int]],  # lengths of each gap
    room: int,  # tokens of the whole, at most
    *,
    end: int | None = None,
    device: torch.device | str = "cpu",
    reach: int = REACH,
    kept: int = KEPT,
) -> Ways:
    """Ways to choose the gaps of one text, judged gap after gap from the left.

    `end`: the token that ends a text, if it fills the rest of a row as well, there being no padding
    token. An end right behind a gap then says only that the text is over there, not that it went on
    up to there; so the gap's last token is asked, too, whether it is text.
    """
    if any(not part for part in given[1:]):
        raise ConfigError(
            "two gaps with nothing but a space between them are one to a model that has to find "
            "their lengths; join them, or give gap_length as a number"
        )
    left, least = room - sum(map(len, given)), sum(map(min, possible))
    if least > left:
        raise ConfigError(
            f"the text has {room - left + least} tokens with the shortest gaps that the grammar "
            f"allows, more than the canvas of {room}; shorten it"
        )
    ways = Ways(((),), torch.zeros(1, dtype=torch.float64))
    for number, lengths in enumerate(possible):
        later = sum(map(min, possible[number + 1 :]))
        owner, tried = [], []
        for place, so_far in enumerate(ways.lengths):
            fitting = [n for n in lengths if sum(so_far) + n + later <= left]
            owner += [place] * len(fitting)
            tried += [(*so_far, n) for n in fitting]
        nats = ways.nats[owner]
        if len(lengths) > 1 or len(ways.lengths) > 1:
            rows = [_row(given, way, reach) for way in tried]
            whole = [part.to(device) for part in _canvases(rows, corruption.mask_id, room)]
            parts = zip(*(each.split(ROWS) for each in whole), strict=True)
            last = end is not None and given[number + 1][0] == end
            found = [
                log_probability(reading(len(p[0])), corruption, *p, before=end if last else None)
                for p in parts
            ]
            nats = nats + torch.cat(found).cpu()
        best = nats.argsort(descending=True, stable=True)
        if number < len(possible) - 1:
            best = best[:kept]
        best = best.sort().values
        ways = Ways(tuple(tried[n] for n in best), nats[best])
    return ways


_Row = tuple[list[int], int]  # tokens, -1 in gaps; where those begin that are asked for


def _row(given: Sequence[Sequence[int]], lengths: Sequence[int], reach: int) -> _Row:
    """What is known up to the last gap, the gap, and some of what follows it."""
    ids = list(given[0])
    for number, length in enumerate(lengths, 1):
        ids += [*[-1] * length, *given[number]]
    begin = len(ids) - len(given[len(lengths)])
    return ids[: begin + reach], begin


def _canvases(rows: Sequence[_Row], mask_id: int, room: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, which of them are shown, and which are asked for; [B, L] each."""
    width = min(room, max(len(ids) for ids, _ in rows) + MARGIN)
    tokens = torch.full((len(rows), width), mask_id)
    shown = torch.zeros(tokens.shape, dtype=torch.bool)
    asked = shown.clone()
    for number, (ids, begin) in enumerate(rows):
        row = torch.tensor(ids)
        tokens[number, : len(ids)] = row.masked_fill(row < 0, mask_id)
        shown[number, :begin] = row[:begin] >= 0
        asked[number, begin : len(ids)] = True
    return tokens, shown, asked


@torch.no_grad()
def log_probability(
    denoiser: Denoiser,
    corruption: Corruption,
    tokens: Tensor,
    shown: Tensor,
    asked: Tensor,
    *,
    before: int | None = None,
    filters: Sequence[Filter] = (),
) -> Tensor:
    """log p of the tokens `asked` given those `shown`, whatever the others are: nats [B], float64.

    tokens, shown, asked [B, L]. From left to right, a forward for each; the others stay masked.
    `before`: and of another token than this one in front of the first that is asked.
    """
    nats = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    front = torch.zeros_like(asked)
    if before is not None:
        front[:, :-1] = asked[:, 1:] & (asked[:, 1:].cumsum(1) == 1)
    for _ in range(int(asked.sum(1).max())):
        here = asked & (asked.cumsum(1) == 1)
        logp = law_at(denoiser, corruption, tokens, shown, here, filters)
        nats[here.any(1)] += logp.gather(1, tokens[here][:, None])[:, 0]
        shown, asked = shown | here, asked & ~here
    if before is not None:
        logp = law_at(denoiser, corruption, tokens, shown, front, filters)
        logp[:, before] = -torch.inf
        nats[front.any(1)] += logp.logsumexp(-1)
    return nats


def law_at(
    denoiser: Denoiser,
    corruption: Corruption,
    tokens: Tensor,
    shown: Tensor,
    here: Tensor,
    filters: Sequence[Filter] = (),
) -> Tensor:
    """log p of every token at the positions `here` [B, L], given those `shown` [B, L] and none
    other: [N, V] float64."""
    seen = tokens.masked_fill(~shown, corruption.mask_id)
    noise = 1 - shown.double().mean(1)
    logits = denoiser(seen, corruption.schedule.time(1 - noise).float(), here)
    for change in filters:
        logits = change(logits, Canvas(seen, ~shown, shown), here)
    return logits.double().log_softmax(-1)
