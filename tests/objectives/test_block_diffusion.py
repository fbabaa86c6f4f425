"""Block diffusion: identities, and the two streams against one block at a time."""

import itertools
import math

import pytest
import torch
from reference_models import network
from torch.testing import assert_close

from sfumato.denoisers.full import Full
from sfumato.errors import ConfigError
from sfumato.likelihood.bounds import exact_k
from sfumato.likelihood.exact import any_order
from sfumato.models.attention import HIDDEN, BlockCausal
from sfumato.noise.corruption import Masked
from sfumato.objectives.blocks import BlockDiffusion, cut
from sfumato.objectives.curriculum import Curriculum
from sfumato.objectives.masked import MaskedDiffusion
from sfumato.objectives.selection import ExactK
from sfumato.objectives.times import Systematic
from sfumato.objectives.weights import ClippedWeight
from sfumato.rng import Rng
from sfumato.types import Batch

VOCAB, MASK, ROWS, LENGTH = 7, 3, 3, 12
RUN = Rng.from_seed(0)


def a_batch(segments: list[list[int]] | None = None, seed: int = 1) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, VOCAB, (ROWS, LENGTH), generator=draw)
    kinds = torch.zeros_like(tokens) if segments is None else torch.tensor(segments)
    return Batch(tokens, kinds != HIDDEN, kinds, torch.arange(ROWS) + 5)


DOCUMENTS = a_batch([[0] * 12, [0] * 5 + [1] * 7, [0] * 4 + [1] * 5 + [HIDDEN] * 3])


def masked(rows: int = ROWS, **options) -> MaskedDiffusion:
    return MaskedDiffusion(MASK, Systematic(rows), **options)


def loss_of(objective, model, batch):
    model.zero_grad()
    loss = objective(Full(model, MASK, shift=model.config.shift), batch, RUN)
    loss.value.backward()
    return loss, [weight.grad.clone() for weight in model.parameters()]


@pytest.mark.parametrize("complementary", [False, True])
def test_of_the_size_of_the_row_it_is_masked_diffusion(complementary):
    model, batch = network(), a_batch()
    plain = masked(complementary=complementary, weight=ClippedWeight(3.0))
    loss, grads = loss_of(BlockDiffusion(LENGTH, plain), model, batch)
    wanted, wanted_grads = loss_of(plain, model, batch)
    assert_close(vars(loss), vars(wanted), rtol=0, atol=0)
    assert_close(grads, wanted_grads)


def test_of_size_1_it_is_a_law_over_texts():
    """Exact likelihoods of all texts of three tokens add up to 1."""
    model = network(attention="block_causal", block_size=1)
    texts = torch.tensor(list(itertools.product([0, 1, 2, 4, 5, 6], repeat=3)))
    batch = Batch(texts, texts >= 0, torch.zeros_like(texts), torch.arange(len(texts)))
    objective = BlockDiffusion(1, masked())
    with torch.no_grad():
        loss = objective(Full(model, MASK), batch, RUN)
        assert float((-loss.nll.double().sum(1)).exp().sum()) == pytest.approx(1, abs=1e-5)
        again = objective(Full(model, MASK), batch, Rng.from_seed(9))
    assert_close(again.nll, loss.nll, rtol=0, atol=0)  # nothing is left to chance


def one_block_at_a_time(model, batch: Batch, size: int, noisy: torch.Tensor, t: torch.Tensor):
    """-log p of masked tokens, each block read by itself after its document's clean text."""
    nll = torch.zeros(noisy.shape)
    for row, kinds in enumerate(batch.segments.tolist()):
        for _, group in itertools.groupby(range(LENGTH), key=kinds.__getitem__):
            places = list(group)
            if kinds[places[0]] == HIDDEN:
                continue
            for start in range(0, len(places), size):
                block = places[start : start + size]
                if not noisy[row, block].any():
                    continue
                clean = batch.tokens[row, places[:start]]
                tokens = batch.tokens[row, block].masked_fill(noisy[row, block], MASK)
                times = torch.cat((torch.zeros(start), t[row, block]))[None]
                shown = torch.cat((clean, tokens))
                if model.config.shift:
                    shown = torch.cat((torch.tensor([MASK]), shown[:-1]))
                logits = model(shown[None], t=times, attend=BlockCausal(size)).logits[0, start:]
                logits[:, MASK] = -torch.inf
                logp = logits.log_softmax(-1).gather(-1, batch.tokens[row, block][:, None])[:, 0]
                nll[row, block] = torch.where(noisy[row, block], -logp, 0.0)
    return nll


@pytest.mark.parametrize("own", [{}, {"time_conditioned": True}, {"shift": True}], ids=str)
@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_two_streams_equal_one_block_at_a_time(size, own):
    model = network(attention="block_causal", block_size=size, **own)
    objective = BlockDiffusion(size, masked(ROWS * math.ceil(LENGTH / size)))
    loss, grads = loss_of(objective, model, DOCUMENTS)

    blocks, at = cut(DOCUMENTS, size)
    _, noise = objective.masked.noise(blocks, RUN)
    inside, full = at >= 0, torch.zeros(3, ROWS * LENGTH)
    for kept, values in zip(full, (noise.noisy, noise.bound, noise.t[:, None]), strict=True):
        kept[at[inside]] = values.expand(at.shape)[inside].float()
    noisy, weight, t = full.view(3, ROWS, LENGTH)
    model.zero_grad()
    nll = weight * one_block_at_a_time(model, DOCUMENTS, size, noisy.bool(), t)
    (nll.sum() / DOCUMENTS.trainable.sum()).backward()
    assert_close(loss.nll, nll.detach())
    wanted = [weight.grad for weight in model.parameters()]
    assert_close(grads, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [False, True])
def test_later_blocks_and_other_documents_change_nothing(shift):
    size, model = 4, network(attention="block_causal", block_size=4, shift=shift)
    objective = BlockDiffusion(size, masked())
    before = objective(Full(model, MASK, shift=shift), DOCUMENTS, RUN).nll
    tokens = DOCUMENTS.tokens.clone()
    tokens[0, 8:] = 4 + (tokens[0, 8:] - 3) % 3  # the last block of the first row
    tokens[1, 5:] = 4 + (tokens[1, 5:] - 3) % 3  # the second document of the second
    changed = Batch(tokens, *list(vars(DOCUMENTS).values())[1:])
    after = objective(Full(model, MASK, shift=shift), changed, RUN).nll
    assert_close(after[0, :8], before[0, :8], rtol=0, atol=0)
    assert_close(after[1, :5], before[1, :5], rtol=0, atol=0)
    assert_close(after[2], before[2], rtol=0, atol=0)
    assert not torch.equal(after[0, 8:], before[0, 8:])
    assert not torch.equal(after[1, 5:], before[1, 5:])


def test_a_row_does_not_depend_on_the_rows_beside_it():
    model = network(attention="block_causal", block_size=4)
    objective = BlockDiffusion(4, masked(30))
    whole = objective(Full(model, MASK), DOCUMENTS, RUN).nll
    for row in range(ROWS):
        alone = Batch(*(part[row : row + 1] for part in vars(DOCUMENTS).values()))
        assert_close(objective(Full(model, MASK), alone, RUN).nll[0], whole[row])


def test_blocks_are_cut_from_the_start_of_each_document():
    blocks, at = cut(DOCUMENTS, 4)
    found = [[int(i) for i in row if i >= 0] for row in at]
    row2 = [[12, 13, 14, 15], [16], [17, 18, 19, 20], [21, 22, 23]]
    row3 = [[24, 25, 26, 27], [28, 29, 30, 31], [32]]
    assert found == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], *row2, *row3]
    assert blocks.slots.tolist() == [15, 16, 17, 18, 19, 20, 21, 21, 22, 23]
    assert torch.equal(blocks.trainable, at >= 0)
    assert torch.equal(blocks.tokens[at >= 0], DOCUMENTS.tokens[DOCUMENTS.trainable])


def test_times_are_spread_over_rows_and_blocks():
    batch, size = a_batch(), 4
    batch = Batch(batch.tokens, batch.trainable, batch.segments, torch.arange(ROWS))
    blocks, _ = cut(batch, size)
    times = Systematic(ROWS * 3)(blocks.slots, RUN).sort().values
    assert_close(times.diff(), torch.full((8,), 1 / 9, dtype=torch.float64))


def test_clipped_rates_keep_to_their_interval():
    batch = a_batch()
    objective = MaskedDiffusion(MASK, Systematic(300), ExactK(low=0.4, high=0.8))
    blocks, _ = cut(batch, LENGTH)
    _, noise = objective.noise(blocks, RUN)
    counts = noise.noisy.sum(1)
    assert counts.min() > 0.4 * LENGTH
    assert counts.max() <= 0.8 * LENGTH + 1


def test_a_curriculum_takes_its_objectives_in_turn():
    model, batch = network(), a_batch()
    first, last = BlockDiffusion(1, masked()), masked()
    both = Curriculum(((6, first),), last)
    early = Batch(*(part[:1] for part in vars(batch).values()))
    late = Batch(*(part[2:] for part in vars(batch).values()))
    for part, wanted in ((early, first), (late, last)):
        got = both(Full(model, MASK), part, RUN)
        # a stage measures another way of reading than the model's in the end
        expected = vars(wanted(Full(model, MASK), part, RUN)) | {"bounds": part is late}
        assert_close(vars(got), expected, rtol=0, atol=0)


def test_a_block_has_at_least_one_token():
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        BlockDiffusion(0, masked())


@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_order_within_blocks_is_exact(size):
    """The bound is the mean over orders within blocks: at size 1 there is one, and it is a law."""
    model = network(attention="block_causal", block_size=size)
    denoiser, batch = Full(model, MASK), a_batch()
    bound = exact_k(denoiser, Masked(VOCAB, MASK), batch, RUN, samples=60)
    orders = any_order(denoiser, Masked(VOCAB, MASK), batch, RUN, samples=30)
    error = bound.noise.square() + orders.noise.square()
    assert bool(((bound.nats - orders.nats).abs() < 5 * error.sqrt() + 1e-4).all())
    if size == 1:
        assert_close(bound.nats, orders.nats, rtol=1e-5, atol=1e-5)
    wrong = MaskedDiffusion(MASK, Systematic(ROWS))(denoiser, batch, RUN)  # noise before a block
    assert not torch.allclose(wrong.nll.double().sum(1), bound.nats, rtol=0.02)
