"""Readers of one token at a time: a cache changes what is computed, never what comes out."""

import pytest
import torch
from small_networks import network as small
from small_networks import reader as with_encoder
from torch.testing import assert_close

from sfumato.decoding.blocks import OneByOne
from sfumato.decoding.loops import generate
from sfumato.decoding.page import blank
from sfumato.decoding.unmask import LeftToRight
from sfumato.denoisers.blocks import CachedReader, NetworkReader, Reread
from sfumato.denoisers.full import Full, autoregressive
from sfumato.denoisers.guided import Guided, GuidedReader, sides
from sfumato.errors import ConfigError
from sfumato.models import DiffusionTransformer
from sfumato.noise.corruption import Masked
from sfumato.noise.schedules import Linear
from sfumato.rng import Rng
from sfumato.types import ABSENT

VOCAB, MASK, LENGTH, ROWS = 12, 3, 16, 3
READERS = [CachedReader, Reread]
CAUSAL = {"attention": "causal", "objective": "next_token", "max_position_embeddings": 40}


def network(**options) -> DiffusionTransformer:
    return small(**CAUSAL, **options)


def page(lead: int):
    rng = Rng.from_seed(0, ROWS)
    text = torch.randint(4, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    fixed = torch.arange(LENGTH).expand(ROWS, -1) < lead
    return blank(Masked(VOCAB, MASK), text, fixed, rng), rng


def pages(reader: NetworkReader | GuidedReader, lead: int) -> list[torch.Tensor]:
    canvas, rng = page(lead)
    return [one.tokens for one in OneByOne(reader=reader).pages(canvas, LeftToRight(Linear()), rng)]


def padded(*lengths: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Text of several lengths, padded on the left, and where its padding is."""
    generator, width = torch.Generator().manual_seed(seed), max(lengths)
    text = torch.randint(4, VOCAB, (len(lengths), width), generator=generator)
    return text, torch.arange(width) < width - torch.tensor(lengths)[:, None]


def counted(model: DiffusionTransformer) -> list[tuple[int, ...]]:
    """The shapes of what the network reads from now on."""
    shapes = []
    model.register_forward_pre_hook(lambda _, arguments: shapes.append(tuple(arguments[0].shape)))
    return shapes


BLANK, T = torch.full((ROWS, 1), MASK), torch.ones(ROWS)
NOTHING = torch.zeros(ROWS, dtype=torch.int64)
ALL, NONE = torch.ones(ROWS, 1, dtype=torch.bool), torch.zeros(ROWS, dtype=torch.bool)


def next_logits(reader: NetworkReader | GuidedReader, *more: torch.Tensor) -> torch.Tensor:
    """Logits [B, V] of the token after what is given, and after further tokens [B, 1]."""
    reader = reader.begin(BLANK[:, :0], NOTHING)
    logits, reader = reader.advance(BLANK, T[:, None], ALL, NONE)
    for tokens in more:
        reader = reader.settled(tokens, ~NONE)
        logits, reader = reader.advance(BLANK, T[:, None], ALL, NONE)
    return logits


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("timed", [False, True])
@pytest.mark.parametrize("lead", [0, 5])
def test_every_page_equals_that_of_the_plain_loop(kind, timed, lead):
    model, (canvas, rng) = network(time_conditioned=timed), page(lead)
    around = {"block": 1, "lookahead": False}
    stream = generate(autoregressive(model, MASK), canvas, LeftToRight(Linear()), rng, **around)
    plain = [one.tokens for one in stream]
    assert len(plain) == LENGTH - lead
    assert_close(pages(kind.of(model, MASK), lead), plain, rtol=0, atol=0)


@torch.no_grad()
def test_every_token_is_read_once():
    model = network()
    shapes = counted(model)
    pages(CachedReader.of(model, MASK), 5)
    assert shapes == [(ROWS, 5)] + [(ROWS, 1)] * (LENGTH - 5)


def test_a_network_says_how_it_reads():
    one = CachedReader.of(network(), MASK)
    assert (one.size, one.shift, one.settles) == (1, True, True)
    blocks = CachedReader.of(small(attention="block_causal", block_size=4, shift=True), MASK)
    assert (blocks.size, blocks.shift, blocks.settles) == (4, True, False)


@pytest.mark.parametrize("kind", READERS)
@torch.no_grad()
def test_prompts_of_different_lengths_go_on_as_if_each_were_alone(kind):
    model, (text, hidden) = network(), padded(9, 2, 15)
    more, nothing = padded(3, 1, 0, seed=1)
    own = kind.of(model, MASK).given(text, hidden)
    for reader, parts in ((own, (text,)), (own.given(more, nothing), (text, more))):
        for row, logits in enumerate(next_logits(reader)):
            alone, one = autoregressive(model, MASK), slice(row, row + 1)
            for part, gone in zip(parts, (hidden, nothing), strict=False):
                alone = alone.given(left=part[one, int(gone[row].sum()) :])
            assert_close(logits[None], alone(BLANK[one], T[one])[:, 0])


@pytest.mark.parametrize("kind", READERS)
@torch.no_grad()
def test_what_filled_a_row_is_not_taken_for_its_text(kind):
    """A row goes on with the very tokens that its padding had."""
    model, (text, hidden) = network(), padded(1, 5, 5)
    text[0, :4] = 9
    found = next_logits(kind.of(model, MASK).given(text, hidden), torch.full((ROWS, 1), 9))
    plain = autoregressive(model, MASK).given(left=torch.tensor([[int(text[0, 4]), 9]]))
    assert_close(found[:1], plain(BLANK[:1], T[:1])[:, 0])


def sources() -> torch.Tensor:
    source = padded(5, 5, 5, seed=7)[0]
    source[0, 3:] = ABSENT
    return source


MAKES = {"prefix": network, "encoder": lambda: with_encoder(**CAUSAL)}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@torch.no_grad()
def test_a_source_and_guidance_towards_it_are_those_of_the_plain_denoiser(make, kind):
    model, left, more = make(), padded(2, 2, 2, seed=3)[0], padded(1, 1, 1, seed=4)[0]
    plain = [one.given(left=left) for one in sides(Full.of(model, MASK), sources())]
    shown, unshown = (one.given(left) for one in sides(kind.of(model, MASK), sources()))
    assert_close(next_logits(shown), plain[0](BLANK, T)[:, 0])
    guided, both = Guided(*plain, 1.5), GuidedReader(shown, unshown, 1.5)
    assert_close(next_logits(both), guided(BLANK, T)[:, 0])
    assert_close(next_logits(both, more), guided.given(left=more)(BLANK, T)[:, 0])


@torch.no_grad()
def test_guided_writing_reads_every_token_once_for_each_side():
    model = network()
    shapes = counted(model)
    shown, unshown = sides(CachedReader.of(model, MASK), sources())
    pages(GuidedReader(shown, unshown, 1.0), 5)
    assert shapes == [(ROWS, 10), (ROWS, 5)] + [(ROWS, 1)] * 2 * (LENGTH - 5)


@pytest.mark.parametrize("kind", READERS)
@torch.no_grad()
def test_some_rows_are_read_as_before(kind):
    model, (text, hidden) = with_encoder(**CAUSAL), padded(4, 2, 3)
    reader = kind.of(model, MASK).conditioned(sources()).given(text, hidden)
    whole, rows = next_logits(reader), torch.tensor([2, 0])
    some = reader.select(rows).begin(BLANK[:2, :0], NOTHING[:2])
    logits, some = some.advance(BLANK[:2], T[:2, None], ALL[:2], NONE[:2])
    assert_close(logits, whole[rows])
    last, _ = some.select(torch.tensor([1])).advance(BLANK[:1], T[:1, None], ALL[:1], NONE[:1])
    assert_close(last, whole[:1])


@torch.no_grad()
def test_given_makes_a_new_reader_and_leaves_the_old_one_alone():
    reader = CachedReader.of(network(), MASK)
    before = next_logits(reader)
    next_logits(reader.given(padded(2, 2, 2)[0]))
    assert reader.left is None
    assert_close(next_logits(reader), before, rtol=0, atol=0)


def test_what_would_make_a_reader_wrong_is_refused():
    blocks = CachedReader.of(small(attention="block_causal", block_size=4), MASK)
    with pytest.raises(ConfigError, match="whole blocks of 4 tokens"):
        blocks.given(padded(4, 3, 4)[0], padded(4, 3, 4)[1])
    with pytest.raises(ConfigError, match="a reader starts with `begin`"):
        blocks.advance(BLANK, T[:, None], ALL, NONE)
