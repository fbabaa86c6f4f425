"""Blocks with a cache: every page equals the uncached one, and no row depends on another."""

import pytest
import torch
from reference_models import network
from torch.testing import assert_close

from sfumato.decoding.blocks import Blocks
from sfumato.decoding.filters import Allowed, Repetition, Suppress, Temperature, TopK
from sfumato.decoding.loops import generate
from sfumato.decoding.page import blank
from sfumato.decoding.rules import STEPS
from sfumato.denoisers.blocks import CachedReader, Reread
from sfumato.denoisers.full import Full
from sfumato.errors import ConfigError
from sfumato.noise.corruption import Masked
from sfumato.rng import Rng
from sfumato.types import Canvas

VOCAB, MASK, PAD, END, SIZE = 11, 3, 0, 2, 4
MASKED = Masked(VOCAB, MASK)
NEVER = Suppress((PAD, END))
STEP = STEPS["ancestral"](MASKED, {})


def model_of(positions: int = 64, **options):
    return network(
        VOCAB,
        attention="block_causal",
        block_size=SIZE,
        max_position_embeddings=positions,
        **options,
    )


def a_page(prompts: list[int], new: list[int], rng: Rng) -> Canvas:
    """Rows of so many given tokens and so many noisy ones."""
    width = max(map(sum, zip(prompts, new, strict=True)))
    draw = torch.Generator().manual_seed(1)
    text = torch.randint(4, VOCAB, (len(prompts), width), generator=draw)
    place = torch.arange(width)
    noisy = torch.stack([(place >= p) & (place < p + n) for p, n in zip(prompts, new, strict=True)])
    fixed = ~noisy
    return blank(MASKED, torch.where(noisy | (place < 99), text, PAD), fixed, rng)


def pages_of(reader, prompts, new, *, step=STEP, rows=None, **options) -> list[torch.Tensor]:
    rng = Rng.from_seed(0, len(prompts))
    page = a_page(prompts, new, rng)
    if rows is not None:
        rng = rng.select(torch.tensor(rows))
        page = Canvas(page.tokens[rows], page.noisy[rows], page.fixed[rows])
    decoder = Blocks(reader=reader, ends=(END,), filler=PAD)
    options = {"filters": [NEVER], **options}
    return [page.tokens for page in decoder.pages(page, step, rng, **options)]


# not from nothing: among masks alone all positions tie, and rounding decides
PROMPTS, NEW = [1, 3, 4, 9], [13, 8, 4, 11]


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("name", STEPS)
def test_every_page_with_a_cache_equals_the_page_without(name, shift):
    model, step = model_of(shift=shift), STEPS[name](MASKED, {})
    if shift and name.startswith("wino"):
        with pytest.raises(ConfigError, match="no position can be left out"):
            pages_of(CachedReader.of(model, MASK), PROMPTS, NEW, step=step)
        return
    cached = pages_of(CachedReader.of(model, MASK), PROMPTS, NEW, step=step)
    plain = pages_of(Reread.of(model, MASK), PROMPTS, NEW, step=step)
    assert len(cached) >= 13  # one for each token of the longest row
    assert_close(cached, plain, rtol=0, atol=0)
    assert not bool((cached[-1] == MASK).any())


def test_time_is_told_block_by_block():
    model = model_of(time_conditioned=True)
    cached = pages_of(CachedReader.of(model, MASK), PROMPTS, NEW, num_steps=9)
    plain = pages_of(Reread.of(model, MASK), PROMPTS, NEW, num_steps=9)
    assert_close(cached, plain, rtol=0, atol=0)


@pytest.mark.parametrize("shift", [False, True])
def test_aligned_rows_equal_the_ordinary_loop(shift):
    """`generate` with clean text on the left, and nothing on the right."""
    model, rng = model_of(shift=shift), Rng.from_seed(0, 3)
    page = a_page([4, 4, 4], [12, 12, 12], rng)
    wanted = generate(
        Full(model, MASK, shift=shift),
        page,
        STEP,
        rng,
        block=SIZE,
        lookahead=False,
        filters=[NEVER],
    )
    got = pages_of(CachedReader.of(model, MASK), [4, 4, 4], [12, 12, 12])
    assert_close(got[-1], [page.tokens for page in wanted][-1], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ancestral", "klass", "first_hitting", "remask_cap", "threshold"])
def test_a_row_does_not_depend_on_its_neighbours(name):
    model, step = model_of(), STEPS[name](MASKED, {})
    filters = [NEVER, Repetition(1.2), Temperature(0.7), TopK(6)]
    together = pages_of(CachedReader.of(model, MASK), PROMPTS, NEW, step=step, filters=filters)[-1]
    for row in range(4):
        reader = CachedReader.of(model, MASK)
        alone = pages_of(reader, PROMPTS, NEW, step=step, rows=[row], filters=filters)[-1]
        assert torch.equal(alone[0], together[row])


def test_filters_see_rows_and_columns_of_the_whole_page():
    at = torch.zeros(4, 20, dtype=torch.bool)
    at[1, 7] = at[3, 15] = True
    only = torch.arange(VOCAB) == 9
    filters = [NEVER, Allowed(at, only)]
    last = pages_of(CachedReader.of(model_of(), MASK), PROMPTS, NEW, filters=filters)[-1]
    assert last[1, 7] == last[3, 15] == 9


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("prompts", [[0, 5], [21, 2], [40, 4]])
def test_longer_text_than_the_model_slides(prompts, shift):
    """Positions beyond its 16 go on, and a block sees the last three before it."""
    model, new = model_of(positions=16, shift=shift), [30, 23]
    cached = pages_of(CachedReader.of(model, MASK), prompts, new)
    plain = pages_of(Reread.of(model, MASK), prompts, new)
    assert_close(cached, plain, rtol=0, atol=0)
    wide = pages_of(Reread.of(model_of(shift=shift), MASK), prompts, new)  # forgets nothing
    assert not torch.equal(wide[-1], plain[-1])


class Counting:
    """A reader that counts its passes and the rows in them."""

    def __init__(self, reader, counts):
        self.reader, self.counts = reader, counts
        self.size, self.settles = reader.size, reader.settles

    def begin(self, *args):
        return Counting(self.reader.begin(*args), self.counts)

    def select(self, rows):
        return Counting(self.reader.select(rows), self.counts)

    @property
    def room(self):
        return self.reader.room

    def advance(self, tokens, *args):
        self.counts.append(len(tokens))
        logits, reader = self.reader.advance(tokens, *args)
        return logits, Counting(reader, self.counts)


def test_a_row_that_has_ended_costs_nothing_more():
    """The end token is all that may stand at one position of the first row."""
    at = torch.zeros(2, 16, dtype=torch.bool)
    at[0, 5] = True
    stop = Allowed(at, torch.arange(VOCAB) == END)
    text = Suppress((PAD,))
    counts: list[int] = []
    reader = Counting(CachedReader.of(model_of(), MASK), counts)
    never_ends = Allowed(~at, torch.arange(VOCAB) > 3)
    pages = pages_of(reader, [0, 0], [16, 16], filters=[text, never_ends, stop])
    assert pages[-1][0, 5] == END
    assert bool((pages[-1][0, 6:] == PAD).all())
    assert not bool((pages[-1][1] == PAD).any())
    assert 4 < counts.index(1) <= 4 + 1 + 4  # within the second block
    assert counts[-1] == 1


def test_a_finished_block_is_read_with_the_next_one():
    """Where something would be forgotten for that, or rows are not as far, it takes a pass."""
    one = STEPS["left_to_right"](MASKED, {})
    for positions, prompts, wanted in ((64, [0], 12), (8, [0], 12 + 1), (64, [0, 2], 12 + 3)):
        counts: list[int] = []
        reader = Counting(CachedReader.of(model_of(positions), MASK), counts)
        pages = pages_of(reader, prompts, [12] * len(prompts), step=one)
        assert len(pages) == len(counts) == wanted


def test_a_reader_is_a_value():
    """What another reader has read since changes nothing of an older one's logits."""
    model, tokens = model_of(), torch.tensor([[5, 6, 7, 8]])
    t, where = torch.ones(1, 4), torch.ones(1, 4, dtype=torch.bool)
    keep = torch.tensor([True])
    reader = CachedReader.of(model, MASK).begin(torch.zeros(1, 0).long(), torch.tensor([0]))
    masks = torch.full_like(tokens, MASK)
    before, _ = reader.advance(masks, t, where, ~keep)
    _, later = reader.advance(tokens, t * 0, where, keep)
    after, _ = later.advance(masks, t, where, ~keep)
    again, _ = reader.advance(masks, t, where, ~keep)
    assert_close(again, before, rtol=0, atol=0)
    once_more, _ = later.advance(masks, t, where, ~keep)
    assert_close(once_more, after, rtol=0, atol=0)


def test_what_cannot_be_written_is_refused():
    model = model_of()
    with pytest.raises(ConfigError, match="num_steps 2 is less than the 4 blocks"):
        pages_of(CachedReader.of(model, MASK), [0], [14], num_steps=2)
    with pytest.raises(ConfigError, match="blocks of 65 positions, but the model was built for 64"):
        pages_of(CachedReader(model, MASK, 65), [0], [14])


def test_a_page_without_noise_comes_as_it_is():
    pages = pages_of(CachedReader.of(model_of(), MASK), [5], [0])
    assert len(pages) == 1
