"""A canvas that grows: what moves, what stays, where it stops."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_lm import HYBRID, SENTENCES, UNIFORM, tiny_lm

from sfumato.cli.live import frame
from sfumato.decoding.growing import Growing, _Clerk
from sfumato.decoding.options import GenerationOptions, Growth
from sfumato.decoding.page import blank
from sfumato.decoding.rules import STEPS
from sfumato.decoding.unmask import LeftToRight
from sfumato.errors import ConfigError
from sfumato.models.attention import HIDDEN
from sfumato.noise.corruption import Masked
from sfumato.noise.schedules import Linear
from sfumato.rng import Rng
from sfumato.types import MOVED, Canvas

PROMPTS = ("The fox", "", "A caf\u00e9 had ", "Once upon a time there")
LETTER, END, PAD, MASK = 0, 1, 2, 3
FOREVER = {"grow": 3, "length": 13, "grow_options": {"enough": 1.0}}
IN_TEXT = {"grow": 3, "length": 13, "grow_options": {"enough": 0, "sure": 1, "doubt": 1, "by": 3}}


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


# --- the loop, on a model that says what it is told to ---


@dataclass(frozen=True)
class Scripted:
    """Sees an end in the last positions of pages that are wide enough, and doubts one position."""

    enough: int  # positions at which the end is seen
    doubtful: int = -1
    mask_id: int = MASK

    def __call__(self, tokens, t, where=None, *, segments=None):
        seen = torch.zeros_like(tokens) if segments is None else segments
        width = (seen != HIDDEN).sum(1)
        end = torch.where(width >= self.enough, 0.6, 0.01)[:, None].expand(tokens.shape)
        place = torch.arange(tokens.shape[1]).expand(tokens.shape)
        flat = (place == self.doubtful) & (width < self.enough)[:, None]
        share = torch.where(flat, 0.05, 1 - end)
        rest = torch.where(flat, 0.9 - end, 0.0)
        other = (1 - share - end - rest).clamp_min(0)
        return torch.stack((share, end, other, 0 * end, *[rest / 20] * 20), -1).log()[where]


def pages(denoiser, canvas, places, growth, **options):
    step = LeftToRight(Linear())
    rng = Rng.from_seed(0, len(canvas.tokens))
    shared = {name: options.pop(name) for name in ("num_steps", "filters") if name in options}
    given = {"ends": (END, PAD), "filler": PAD, **options}
    decoder = Growing(denoiser=denoiser, growth=growth, places=places, **given)
    return list(decoder.pages(canvas, step, rng, **shared))


def blank_rows(prompts: list[int], new: int) -> Canvas:
    fixed = torch.ones(len(prompts), max(prompts) + new, dtype=torch.bool)
    for row, count in enumerate(prompts):
        fixed[row, count : count + new] = False
    tokens = torch.where(fixed, LETTER, MASK)
    return blank(Masked(24, MASK, Linear()), tokens, fixed, Rng.from_seed(0, len(prompts)))


def test_a_blank_canvas_grows_until_an_end_is_seen_or_nothing_more_is_allowed():
    canvas = blank_rows([1, 4, 0], 4)
    places = [slice(1, 99), slice(4, 99), slice(0, 9)]
    seen = pages(Scripted(enough=14), canvas, places, Growth(), num_steps=20)
    widths = [(page.noisy.sum(1)).tolist() for page in seen[:2]]
    assert widths[0] == [12, 12, 9]  # by 8, or what is left
    assert widths[1][0] == 20  # one more: 13 positions are not yet enough
    assert widths[1][2] <= 9
    assert seen[-1].tokens.shape[1] == 21
    assert not seen[-1].noisy.any()


def test_a_position_of_which_nothing_is_known_becomes_several():
    canvas = blank_rows([0], 4)
    growth = Growth(by=3, enough=0)
    seen = pages(Scripted(enough=9, doubtful=2), canvas, [slice(0, 99)], growth)
    widths = [page.tokens.shape[1] for page in seen]
    assert widths == [6, 8, *[8] * 6]  # 2 more each time, until that position has its turn
    moved = seen[0].memory[MOVED]
    assert moved.tolist() == [[0, 1, 2, -1, -1, 3]]
    certain = pages(
        Scripted(enough=9, doubtful=2), canvas, [slice(0, 99)], Growth(sure=0, enough=0)
    )
    assert certain[-1].tokens.shape[1] == 4


def test_what_is_inserted_moves_all_that_a_page_has():
    draw = torch.Generator().manual_seed(0)
    width, at, count = torch.tensor([5, 3, 6]), torch.tensor([2, 0, 5]), torch.tensor([3, 0, 1])
    tokens = torch.randint(4, 9, (3, 6), generator=draw)
    noisy = torch.rand(3, 6, generator=draw) < 0.5
    noisy[torch.arange(3), at] = True
    inside = torch.arange(6) < width[:, None]
    noisy &= inside
    tokens = tokens.masked_fill(noisy | ~inside, MASK)
    memory = {"wide": torch.rand(3, 6, 2, generator=draw)}
    canvas = Canvas(tokens, noisy, ~inside, memory)
    says: Any = Scripted(0)
    writer = _Clerk(says, LeftToRight(Linear()), Growth(), width, (END,), PAD, ())
    new, wider = writer.stretched(canvas, width, at, count)
    assert wider.tolist() == [8, 3, 7]
    for row in range(3):
        places = [*range(width[row])]
        places[at[row] + 1 : at[row] + 1] = [int(at[row])] * int(count[row])
        assert new.tokens[row, : len(places)].tolist() == tokens[row, places].tolist()
        assert new.noisy[row, : len(places)].tolist() == noisy[row, places].tolist()
        assert torch.equal(new.memory["wide"][row, : len(places)], memory["wide"][row, places])
        rest = slice(len(places), None)
        assert new.fixed[row, rest].all()
        assert not new.noisy[row, rest].any()
        assert not new.fixed[row, : len(places)].any()
        old = [place for place in new.memory[MOVED][row].tolist() if place >= 0]
        assert old == [*range(width[row])]


# --- in text ---


@pytest.mark.parametrize("options", [FOREVER, IN_TEXT], ids=["blank", "in text"])
@pytest.mark.parametrize("step", STEPS)
def test_every_rule_writes_at_most_the_length(lm, step, options):
    ends = tuple(sorted(lm.reader.ends))
    pages = list(lm.stream(PROMPTS, step=step, seed=1, suppress=ends, **options))
    widths, page = [one.canvas.tokens.shape[1] for one in pages], pages[-1]
    written = lm.finish(page)
    counts = [len(tokens) for tokens in written.tokens]
    assert max(counts) == 13
    assert counts == [13] * 4 or options is IN_TEXT  # some rules decide before they doubt
    assert widths == sorted(widths)
    assert widths[0] < widths[-1]
    assert not page.canvas.noisy.any()
    for prompt, text, tokens in zip(PROMPTS, written.full_texts, written.tokens, strict=True):
        assert text.startswith(prompt)
        assert not set(tokens) & set(lm.special.all)


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("step", ["probability", "klass", "remask_confidence", "wino", "ancestral"])
def test_a_row_does_not_depend_on_its_neighbours(lm, step, block):
    lengths = set()
    for enough in (0.002, 0.004, 0.01):
        own = {"enough": enough, "sure": 2 * enough, "doubt": 0.1, "by": 3, "window": 8}
        options = {"step": step, "block": block, "grow": 4, "length": 20, "seed": 2}
        options |= {"repetition_penalty": 1.3, "grow_options": own}
        together = lm.generate(PROMPTS, **options)
        for rows in (1, 2):
            assert lm.generate(PROMPTS[:rows], **options).tokens == together.tokens[:rows]
        lengths |= {len(tokens) for tokens in together.tokens}
    assert len(lengths) > 1


@pytest.mark.parametrize("step", ["margin", "random"])
@pytest.mark.parametrize("block", [None, 5])
def test_what_is_decided_stays_in_its_order_and_keeps_its_step(lm, step, block):
    before = None
    grown = 0
    for page in lm.stream(PROMPTS, step=step, seed=0, block=block, **IN_TEXT):
        rows = []
        for row in range(len(PROMPTS)):
            decided = page.decided[row] > 0
            rows.append(
                list(zip(page.canvas.tokens[row, decided], page.decided[row, decided], strict=True))
            )
            assert ((page.decided[row] < 0) == page.canvas.noisy[row]).all()
        if before is not None:
            for old, new in zip(before[0], rows, strict=True):
                kept = [pair for pair in new if pair[1] < page.step]
                assert kept == old
            wider = page.canvas.tokens.shape[1] > before[1]
            grown += wider and any(before[0])
        before = rows, page.canvas.tokens.shape[1]
        lm.show(page)
        frame(lm.reader, page, Console(width=60, height=20))
    assert grown  # also behind text that was there


def test_a_finished_block_is_not_opened_again(lm):
    options = {"step": "remask_cap", "step_options": {"eta": 0.5}, "block": 6, "num_steps": 40}
    ends = tuple(sorted(lm.reader.ends))
    pages = list(lm.stream("", grow=17, length=17, seed=0, suppress=ends, **options))
    later = [page for page in pages if not page.canvas.noisy[0, 6:12].all()]
    assert len(later) > 5
    assert all(torch.equal(p.canvas.tokens[0, :6], later[0].canvas.tokens[0, :6]) for p in later)
    assert not any(page.canvas.noisy[0, :6].any() for page in later)


def test_num_steps_are_for_the_length(lm):
    ends = tuple(sorted(lm.reader.ends))
    options = {**FOREVER, "length": 24, "suppress": ends, "seed": 0, "step": "margin"}
    added = -(-(24 - 3) // 8)
    assert lm.generate("The", **options).num_steps == 24 + added
    assert lm.generate("The", num_steps=6, **options).num_steps == 6 + added
    assert lm.generate("The", num_steps=6, block=8, **options).num_steps <= 6 + added + 4
    with pytest.raises(ConfigError, match="num_steps 2 is less than up to 4 blocks of 8"):
        lm.generate("The", num_steps=2, block=8, **options)


def test_a_text_that_has_ended_costs_no_more_blocks(taught_lm):
    options = {"grow": 20, "length": 20, "block": 4, "step": "margin", "temperature": 0}
    written = taught_lm.generate("The bear lost", **options)
    assert written.text in SENTENCES
    assert written.num_steps < 20
    assert not last_page(taught_lm, "The bear lost", options).canvas.noisy.any()


def last_page(lm, prompt, options):
    *_, page = lm.stream(prompt, **options)
    return page


def test_a_space_before_new_text_is_left_to_its_first_token(lm):
    written = lm.generate(["The fox ", "a"] * 3, seed=0, temperature=3.0, **IN_TEXT)
    for text, full in zip(written.texts[::2], written.full_texts[::2], strict=True):
        assert text.startswith(" ")
        assert full.startswith("The fox ")


@pytest.mark.parametrize(
    ("made", "changes", "message"),
    [
        ({"objective": "next_token"}, {}, "from left to right and ends where the text does"),
        (
            {"attention": "block_causal", "block_size": 4},
            {},
            "leave grow out",
        ),
        ({"corruption": UNIFORM}, {}, "trained on uniform noise; leave grow out"),
        ({"corruption": HYBRID}, {}, "trained on hybrid noise; leave grow out"),
        ({"layout": "packed"}, {}, "no padding and does not see where"),
        ({}, {"approx_cache": "dual", "block": 4}, "approx_cache keeps places that would move"),
        ({}, {"choices": ("a", "b")}, "a grammar is for a length that is known"),
        ({}, {"guidance": 1.0}, "guidance hides places that would move"),
        ({}, {"lookahead": False}, "lookahead=False hides where the text ends"),
        ({}, {"length": 3}, "grow 4 begins with more tokens than length 3"),
        ({}, {"grow": 40}, "prompt and 40 new ones do not fit into the model's 24 positions"),
        ({}, {"grow": 0}, "grow must be at least 1, got 0"),
        ({}, {"grow": None, "grow_options": {"by": 3}}, "grow_options without grow"),
        ({}, {"grow_options": {"enuogh": 1}}, "no grow option 'enuogh'; did you mean enough"),
        ({}, {"grow_options": {"doubt": 2}}, r"'doubt' must be in \[0, 1\], got 2"),
        ({}, {"grow_options": {"by": 1}}, "'by' must be at least 2, got 1"),
        ({}, {"grow_options": {"window": 1.5}}, "'window' must be a whole number, got 1.5"),
        ({}, {"grow_options": {"by": True}}, "grow option 'by' must be a number, got True"),
    ],
)
def test_what_cannot_grow_is_refused(made, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny_lm(**made).generate("The", **{"grow": 4, **changes})


def test_infilling_has_nothing_to_grow(lm):
    with pytest.raises(ConfigError, match="infilling has no grow: use gap_length"):
        lm.infill("a ____", grow=4)
    assert GenerationOptions(grow=4).growth() == Growth()
