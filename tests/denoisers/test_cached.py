"""A cache changes what is computed, never what comes out."""

import pytest
import torch
from torch.testing import assert_close

from sfumato.decoding.canvas import blank, generate
from sfumato.decoding.unmask import LeftToRight, RandomOrder
from sfumato.denoisers.full import Cached, autoregressive
from sfumato.errors import ConfigError
from sfumato.models import DiffusionTransformer, TransformerConfig
from sfumato.noise.corruption import Masked
from sfumato.noise.schedules import Linear
from sfumato.rng import Rng

VOCAB, MASK, LENGTH, ROWS = 11, 3, 16, 3


def network(positions: int = 64) -> DiffusionTransformer:
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention="causal",
        max_position_embeddings=positions,
    )
    model = DiffusionTransformer(config).eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)  # projections start at zero, and would hide errors
    return model


def pages(denoiser, step, block: int, lead: int) -> list[torch.Tensor]:
    rng = Rng.from_seed(0, ROWS)
    text = torch.randint(4, VOCAB, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    fixed = torch.arange(LENGTH).expand(ROWS, -1) < lead
    canvas = blank(Masked(VOCAB, MASK), text, fixed, rng)
    stream = generate(denoiser, canvas, step, rng, block=block, lookahead=False)
    return [page.tokens for page in stream]


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


BLANK, T = torch.full((ROWS, 1), MASK), torch.zeros(ROWS)


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("lead", [0, 5])
def test_cached_autoregression_equals_uncached(lead, block):
    model = network()
    step = LeftToRight(Linear()) if block == 1 else RandomOrder(Linear())
    plain = pages(autoregressive(model, MASK), step, block, lead)
    cached = pages(Cached(model, MASK), step, block, lead)
    assert len(plain) == LENGTH - lead
    assert_close(cached, plain, rtol=0, atol=0)


@torch.no_grad()
def test_every_token_is_read_once():
    model = network()
    shapes = counted(model)
    pages(Cached(model, MASK), LeftToRight(Linear()), 1, 5)
    assert shapes == [(ROWS, 6)] + [(ROWS, 1)] * (LENGTH - 6)


@torch.no_grad()
def test_prompts_of_different_lengths_go_on_as_if_each_were_alone():
    """Up to the last of the model's positions, and no token of any row is read twice."""
    model = network(positions=16)
    text, hidden = padded(9, 2, 15)
    shapes, together = counted(model), Cached(model, MASK).given(left=text, left_hidden=hidden)
    more, nothing = padded(3, 1, 0, seed=1)
    found = [together(BLANK, T), together.given(left=more, left_hidden=nothing)(BLANK, T)]
    assert shapes == [(3, 16), (3, 3)]
    for row in range(ROWS):
        alone, one = autoregressive(model, MASK), slice(row, row + 1)
        for logits, (part, gone) in zip(found, ((text, hidden), (more, nothing)), strict=True):
            alone = alone.given(left=part[one, gone[row].sum() :])
            assert_close(logits[one], alone(BLANK[one], T[one]))


@torch.no_grad()
def test_texts_that_part_share_a_memory_and_say_what_they_said():
    """Also where the one that goes on is not the last that was read, and keys after it are old."""
    model = network()
    stem = Cached(model, MASK).given(left=padded(4, 4, 4)[0])
    others = [stem.given(left=padded(n, n, n, seed=n)[0]) for n in (1, 3, 2)]
    tokens = padded(5, 5, 5, seed=9)[0]
    canvases = [tokens, tokens.clone(), tokens]
    canvases[1][:, 1] = MASK  # the same before and behind another token
    said = [[one(canvas, T) for canvas in canvases] for one in (stem, *others, stem, *others[::-1])]
    plain = autoregressive(model, MASK)
    for logits, one in zip(said, (stem, *others, stem, *others[::-1]), strict=True):
        full = plain.given(left=one.text)
        for found, canvas in zip(logits, canvases, strict=True):
            assert_close(found, full(canvas, T))


@torch.no_grad()
def test_what_filled_a_row_is_not_taken_for_its_text():
    """A row goes on with the very tokens that its padding had."""
    model, (text, hidden) = network(), padded(1, 5, 5)
    text[0, :4] = 9
    cached, plain = Cached(model, MASK), autoregressive(model, MASK).given(left=text[:1, 4:])
    cached = cached.given(left=text, left_hidden=hidden)
    cached(BLANK, T)
    for tokens in ([6], [9, 9]):
        more = torch.tensor([tokens] * ROWS)
        cached, plain = cached.given(left=more), plain.given(left=more[:1])
        assert_close(cached(BLANK, T)[:1], plain(BLANK[:1], T[:1]))


@torch.no_grad()
def test_given_makes_a_new_denoiser_and_leaves_the_old_one_alone():
    denoiser = Cached(network(), MASK)
    before = denoiser(BLANK, T)
    denoiser.given(left=padded(2, 2, 2)[0])(BLANK, T)
    assert denoiser.text is None
    assert_close(denoiser(BLANK, T), before, rtol=0, atol=0)
    assert_close(denoiser(BLANK[:2], T[:2]), before[:2])


def test_a_cache_refuses_what_would_make_it_wrong():
    denoiser = Cached(network(positions=8), MASK)
    with pytest.raises(ConfigError, match="lookahead=False"):
        denoiser.given(right=BLANK)
    with pytest.raises(ConfigError, match="one document a row"):
        denoiser(BLANK, T, segments=torch.zeros_like(BLANK))
    with pytest.raises(ConfigError, match="9 positions, but the model was built for"):
        denoiser.given(left=padded(8, 3, 3)[0])(BLANK, T)
    assert denoiser.given(left=BLANK[:, :0]) is denoiser
