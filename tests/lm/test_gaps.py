"""Gaps of unknown length: against laws of texts of many lengths, and in real text."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import pytest
import torch
from tiny_lm import CANVAS, HYBRID, SENTENCES, tiny_lm
from torch import Tensor
from torch.nn.functional import one_hot
from torch.testing import assert_close
from worlds import World

from sfumato.decoding.loops import generate
from sfumato.decoding.page import blank
from sfumato.decoding.unmask import RandomOrder
from sfumato.errors import ConfigError
from sfumato.lm.gaps import GapLength, Ways, judge
from sfumato.lm.prompts import GAP
from sfumato.noise.corruption import Masked
from sfumato.noise.schedules import Linear
from sfumato.rng import Rng

LENGTH = 6
A, B, END, PAD, HIDDEN = 0, 1, 2, 3, 4
CORRUPTION = Masked(5, HIDDEN, Linear())


@dataclass(frozen=True)
class Law:
    """A law over texts of 1 to 5 letters on rows of 6: the end behind each, and filling behind it;
    and its perfect denoiser."""

    filler: int
    texts: Tensor  # [S, L]
    chances: Tensor  # [S] float64

    @classmethod
    def random(cls, filler: int) -> "Law":
        texts = [
            [*letters, END, *[filler] * (LENGTH - count - 1)]
            for count in range(1, LENGTH)
            for letters in product((A, B), repeat=count)
        ]
        draw = torch.Generator().manual_seed(3)
        scores = 1.5 * torch.randn(len(texts), generator=draw, dtype=torch.float64)
        return cls(filler, torch.tensor(texts), scores.softmax(0))

    def __call__(self, tokens, t, where=None, *, segments=None):
        seen = tokens[:, None]  # [B, 1, L] against [S, L]
        like = ((seen == self.texts[:, : tokens.shape[1]]) | (seen == HIDDEN)).all(-1).double()
        each = one_hot(self.texts[:, : tokens.shape[1]], 5).double()
        logits = torch.einsum("bs,slv->blv", like * self.chances, each).log()
        return logits if where is None else logits[where]

    def like(self, given: Sequence[Sequence[int]], lengths: Sequence[int]) -> Tensor:
        """Which texts have letters in such gaps, and what is given around them, [S] bool."""
        row = list(given[0])
        for length, part in zip(lengths, given[1:], strict=True):
            row += [*[-1] * length, *part]
        row += [self.filler] * (LENGTH - len(row))
        wanted = torch.tensor(row)
        return ((self.texts == wanted) | ((wanted < 0) & (self.texts < END))).all(1)


LAWS = {"padding": Law.random(PAD), "no padding token": Law.random(END)}
CASES = (  # gaps at the start, in the middle, at the end; one or several
    ([[A], [B, END]], [(1, 2, 3)]),
    ([[], [B, END]], [(1, 2, 3, 4)]),
    ([[A], [END]], [(1, 2, 3, 4)]),
    ([[], [END]], [(1, 2, 3, 4, 5)]),
    ([[], [END]], [(1, 3)]),
    ([[], [B], [END]], [(1, 2, 3), (1, 2, 3)]),
    ([[A], [B], [A, END]], [(1, 2), (1, 2)]),
    ([[], [B], [A], [END]], [(1, 2), (1, 2), (1, 2)]),
)


def judged(law: Law, given, possible, **options) -> Ways:
    """By the model, which knows of no padding where the law has none."""
    end = END if law.filler == END else None
    return judge(lambda rows: law, CORRUPTION, given, possible, LENGTH, end=end, **options)


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize(("given", "possible"), CASES, ids=str)
def test_with_a_perfect_denoiser_lengths_have_their_posterior(law, given, possible):
    ways = judged(law, given, possible, kept=99)
    fitting = [each for each in product(*possible) if sum(each) + sum(map(len, given)) <= LENGTH]
    assert list(ways.lengths) == fitting
    exact = torch.stack([law.chances[law.like(given, each)].sum() for each in fitting])
    assert_close(ways.nats.softmax(0), exact / exact.sum())
    assert len(fitting) < 2 or float(exact.max() / exact.min()) > 1.5  # it says something


def test_lengths_and_then_tokens_are_a_draw_from_the_law_given_the_text():
    law, given, count = LAWS["padding"], [[], [B], [END]], 3000
    ways = judged(law, given, [(1, 2, 3), (1, 2, 3)], kept=99)
    rng = Rng.from_seed(1, count)
    drawn = [ways.draw(1.0, u) for u in rng.fold(2).uniform(1)]
    rows = []
    for one, two in drawn:
        row = [*[-1] * one, B, *[-1] * two, END]
        rows.append([*row, *[PAD] * (LENGTH - len(row))])
    tokens = torch.tensor(rows)
    page = blank(CORRUPTION, tokens, tokens >= 0, rng.fold(0))
    for later in generate(law, page, RandomOrder(Linear()), rng.fold(1)):
        page = later
    # the same text may come from several pairs of lengths, and counts as often
    wanted = torch.zeros(len(law.chances), dtype=torch.float64)
    for lengths in ways.lengths:
        wanted += law.chances * law.like(given, lengths)
    wanted /= wanted.sum()
    powers = 5 ** torch.arange(LENGTH - 1, -1, -1)
    codes, found = (law.texts * powers).sum(1), (page.tokens * powers).sum(1)
    shares = (codes[:, None] == found).double().mean(1)
    assert_close(float(shares.sum()), 1.0)
    distance = float((shares - wanted).abs().sum() / 2)
    assert distance < 1.6 * World(law.texts, wanted).noise_floor(count)


def test_draws_follow_the_temperature():
    ways = Ways(((1,), (2,), (3,)), torch.tensor([0.1, 0.7, 0.2]).double().log())
    us = (torch.arange(1000).double() + 0.5)[:, None] / 1000
    for temperature in (1.0, 0.5):
        weights = torch.tensor([0.1, 0.7, 0.2]) ** (1 / temperature)
        drawn = torch.tensor([ways.draw(temperature, u)[0] for u in us])
        shares = torch.bincount(drawn, minlength=4)[1:] / 1000
        assert_close(shares, weights / weights.sum(), atol=2e-3, rtol=0)
    assert {ways.draw(0, u) for u in us} == {(2,)}


@dataclass
class Counting:
    """A denoiser that counts what it reads."""

    denoiser: Any
    rows: list[int] = field(default_factory=list)

    def __call__(self, tokens, t, where=None):
        self.rows.append(len(tokens))
        return self.denoiser(tokens, t, where)


def test_the_work_does_not_grow_with_the_product_of_lengths():
    given = [[], [B], [END]]
    for possible, kept, rows in (
        ([(1, 2), (1, 2)], 1, [2, 2]),
        ([(1, 2), (1, 2)], 2, [2, 4]),
        ([(1, 2, 3, 4), (2, 3)], 9, [2, 3]),  # there is room for the second, too
    ):
        counting: Any = Counting(LAWS["padding"])
        ways = judge(lambda _, read=counting: read, CORRUPTION, given, possible, LENGTH, kept=kept)
        assert counting.rows == rows
        assert len(ways.lengths) == rows[-1]


def test_what_is_judged_by_few_tokens_is_the_posterior_given_these():
    law, given = LAWS["padding"], [[A], [B, A, END]]
    ways = judged(law, given, [(1, 2)], reach=1)
    exact = [law.chances[(law.texts[:, 0] == A) & (law.texts[:, 1 + n] == B)].sum() for n in (1, 2)]
    assert_close(ways.nats.softmax(0), torch.stack(exact) / sum(exact))


# --- in text ---


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


def test_a_taught_model_finds_the_lengths_of_what_it_has_learnt(taught_lm):
    texts = [f"The fox {GAP} bear.", f"A caf\u00e9 had{GAP} on its roof."]
    texts += [f"Once{GAP} time {GAP} a fox."]
    written = taught_lm.infill(texts, gap_length="auto", step="margin", temperature=0)
    assert written.full_texts == (SENTENCES[1], SENTENCES[3], SENTENCES[0])
    assert len({len(tokens) for tokens in written.tokens}) > 1
    assert written.fills[1] == (" a \u2603",)


TEXTS = (
    f"<|bos|> caf\u00e9 {GAP} \u00f1{GAP}_\u2603 ",
    f"{GAP}a",
    f"\u2603{GAP}",
    f"  {GAP}  b  {GAP}\u00e9",
    f"a\n{GAP} \n",
    GAP,
)


@pytest.mark.parametrize("text", TEXTS, ids=repr)
def test_what_is_around_gaps_of_unknown_length_stays_to_the_byte(lm, text):
    shown = text.replace(f"{GAP}_", GAP).split(GAP)
    written = lm.infill(text, gap_length=(1, 3), num_samples=6, seed=0)
    lengths = set()
    for full, fills, tokens in zip(written.full_texts, written.fills, written.tokens, strict=True):
        expected = shown[0]
        for fill, part in zip(fills, shown[1:], strict=True):
            expected = expected.removesuffix(" ") if fill.startswith(" ") else expected
            expected += fill + part
        assert full == expected
        assert not set(tokens) & set(lm.special.all)
        lengths.add(len(tokens))
    assert lengths <= set(range(len(shown) - 1, 3 * (len(shown) - 1) + 1))
    assert len(lengths) > 1  # each sample draws its own


def test_a_row_gets_its_lengths_whatever_its_neighbours_are(lm):
    texts = [f"The {GAP}.", f"Once upon a {GAP} there {GAP} a", f"The {GAP}."]
    together = lm.infill(texts, gap_length=(1, 4), seed=4)
    assert lm.infill(texts[:1], gap_length=(1, 4), seed=4).tokens == together.tokens[:1]
    again = lm.infill(texts, gap_length="1-4", seed=4)
    assert again.full_texts == together.full_texts
    shorter = lm.infill([texts[0]] * 9, gap_length=(1, 4), seed=4)
    assert len({len(tokens) for tokens in shorter.tokens}) > 1


@pytest.mark.parametrize("padding", [True, False])
def test_a_model_says_whether_its_end_token_fills_rows(padding, monkeypatch):
    lm, told = tiny_lm(), []
    if not padding:
        lm.special = replace(lm.special, pad=None)
    monkeypatch.setattr(
        "sfumato.lm.gaps.judge", lambda *args, **own: told.append(own["end"]) or judge(*args, **own)
    )
    made = lm.infill(f"The {GAP}", gap_length=(1, 4), num_samples=6, seed=0)
    assert told == [None if padding else lm.special.eos]
    assert all(1 <= len(tokens) <= 4 for tokens in made.tokens)


def test_gaps_never_outgrow_the_canvas(lm):
    text = f"The fox met a big grey bear.{GAP} and {GAP}"
    room = CANVAS - lm.prompts.gapped(text, True).count
    written = lm.infill([text] * 8, gap_length=(1, 16), seed=0, temperature=9.0)
    lengths = {len(tokens) for tokens in written.tokens}
    assert max(lengths) <= room
    assert len(lengths) > 2


def test_a_gap_within_a_grammar_gets_a_length_that_it_allows(taught_lm):
    text = f"The {GAP} met a big grey bear."
    written = taught_lm.infill(
        text, gap_length="auto", choices=["fox", "bear", "red ball"], num_samples=5, seed=0
    )
    fills = {fills[0].removeprefix(" ") for fills in written.fills}
    assert fills <= {"fox", "bear", "red ball"}
    greedy = taught_lm.infill(text, gap_length="auto", choices=["fox", "bear"], temperature=0)
    assert greedy.text == SENTENCES[1]
    with pytest.raises(ConfigError, match="no text of the grammar has from 1 to 2 tokens"):
        taught_lm.infill(text, gap_length=(1, 2), regex="Q{30}")
    with pytest.raises(ConfigError, match="with the shortest gaps that the grammar allows"):
        taught_lm.infill(text, gap_length=(1, 40), regex="Q{30}")


@pytest.mark.parametrize(
    ("given", "low", "high"),
    [(4, 4, 4), ("4", 4, 4), ((2, 5), 2, 5), ([2, 5], 2, 5), ("2-5", 2, 5), ("auto", 1, 16)],
)
def test_a_length_is_a_number_or_a_range(given, low, high):
    assert GapLength.of(given) == GapLength(low, high)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (0, "gap_length must be at least 1, got 0"),
        ((3, 2), "gap_length from 3 to 2 has no length in it"),
        ((1, 65), "65 lengths to try, more than 64"),
        *[
            (wrong, "must be a number of tokens, a range such as 2-12, or auto")
            for wrong in ("", "few", "-3", "2-", "2-3-4", True, 2.0, (1, 2, 3), (1.0, 2), None)
        ],
    ],
)
def test_a_length_that_is_none_is_refused(lm, given, message):
    with pytest.raises(ConfigError, match=message):
        lm.infill(f"a {GAP}", gap_length=given)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"layout": "packed"}, "no padding: it knows how probable a text is among those of its"),
        ({"corruption": HYBRID}, "trained on hybrid noise; give gap_length as a number"),
    ],
)
def test_a_model_that_cannot_compare_lengths_says_so(made, message):
    with pytest.raises(ConfigError, match=message):
        tiny_lm(**made).infill(f"a {GAP}", gap_length="auto")


def test_a_text_without_room_or_without_anything_between_gaps_is_refused(lm):
    with pytest.raises(ConfigError, match="tokens with its gaps, more than the canvas of 24"):
        lm.infill("The fox. " * 20 + GAP, gap_length="auto")
    with pytest.raises(ConfigError, match="nothing but a space between them are one"):
        lm.infill(f"The {GAP} {GAP}.", gap_length="auto")
    assert lm.infill(f"The {GAP} {GAP}.", gap_length=2).texts
