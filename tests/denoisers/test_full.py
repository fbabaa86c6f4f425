import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import network
from torch.testing import assert_close
from worlds import MASK as WORLD_MASK
from worlds import World

from sfumato.denoisers.approximate import ApproximateCache
from sfumato.denoisers.full import Full, autoregressive
from sfumato.denoisers.guided import Guided
from sfumato.models.attention import HIDDEN, Causal
from sfumato.noise.corruption import Masked
from sfumato.testing import check_denoiser
from sfumato.types import ABSENT

VOCAB, MASK = 12, 4  # the mask token in the middle of the vocabulary


def text(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB - 1, (rows, length), generator=draw)
    return ids + (ids >= MASK)


def noisy(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed + 100)
    hidden = torch.rand(rows, length, generator=draw) < 0.5
    return text(rows, length, seed).masked_fill(hidden, MASK)


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    assert_close(one, other, rtol=1e-4, atol=1e-4)  # float32, sums in another order


T = torch.tensor([0.3, 0.6, 0.9])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention": "causal"},
        {"attention": "block_causal", "block_size": 2},
        {"time_conditioned": True},
    ],
    ids=str,
)
def test_a_network_keeps_the_contract(options):
    check_denoiser(Full(network(**options), MASK), vocab_size=VOCAB, mask_id=MASK)


def test_an_autoregressive_network_keeps_the_contract():
    check_denoiser(
        autoregressive(network(attention="causal"), MASK), vocab_size=VOCAB, mask_id=MASK
    )


def test_a_world_keeps_the_contract():
    for length in (3, 4):
        world = World.random(length)
        denoiser = world.denoiser(Masked(4, WORLD_MASK))
        check_denoiser(denoiser, vocab_size=4, mask_id=WORLD_MASK, length=length, packs=False)
        sure = world.certain(world.texts[5]).denoiser(Masked(4, WORLD_MASK))
        check_denoiser(
            sure,
            vocab_size=4,
            mask_id=WORLD_MASK,
            length=length,
            packs=False,
            recites=world.texts[5],
        )


# --- what is shown to the network ---


def test_given_text_is_seen_in_its_order_and_only_the_canvas_is_answered():
    model = network()
    denoiser = Full(model, MASK)
    a, b, c, d = (text(3, n, seed) for seed, n in enumerate((2, 3, 1, 2)))
    canvas = noisy(3, 4)
    around = denoiser.given(left=a).given(right=d).given(left=b, right=c)
    got = around(canvas, T)
    whole = denoiser(torch.cat((a, b, canvas, c, d), 1), T)
    assert got.shape == (3, 4, VOCAB)
    close(got, whole[:, 5:9])


def test_left_padding_changes_nothing():
    """Prompts of different lengths in one batch, each as if it were alone."""
    model = network(attention="block_causal", block_size=3)
    for denoiser in (Full(model, MASK), Full(network(), MASK), autoregressive(network(), MASK)):
        prompts = [text(1, n, n) for n in (5, 2, 0)]
        left = torch.cat(
            [torch.nn.functional.pad(p, (5 - p.shape[1], 0), value=9) for p in prompts]
        )
        hidden = torch.arange(5)[None] < torch.tensor([[0], [3], [5]])
        canvas, right = noisy(3, 4), text(3, 2, seed=9)
        together = denoiser.given(left=left, right=right, left_hidden=hidden)(canvas, T)
        for row, prompt in enumerate(prompts):
            part = slice(row, row + 1)
            alone = denoiser.given(left=prompt, right=right[part])(canvas[part], T[part])
            close(together[part], alone)


def test_left_padding_stays_hidden_when_more_text_follows():
    denoiser = Full(network(), MASK)
    prompt, more, canvas = text(3, 4), text(3, 2, 5), noisy(3, 3)
    hidden = torch.tensor([[True, True, False, False]]).expand(3, 4)
    padded = denoiser.given(left=prompt, left_hidden=hidden).given(left=more)
    close(padded(canvas, T), denoiser.given(left=torch.cat((prompt[:, 2:], more), 1))(canvas, T))


PARTS = st.lists(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=3),
    min_size=1,
    max_size=3,
)


def readings() -> list:
    causal = network(attention="causal")
    blocks = network(attention="block_causal", block_size=3)
    full = Full(network(), MASK)
    return [
        full,
        Full(blocks, MASK),
        autoregressive(causal, MASK),
        ApproximateCache(full, "dual"),
        Guided(full, full, 1.0),
    ]


@pytest.mark.parametrize("denoiser", readings(), ids=lambda d: type(d).__name__)
@given(PARTS)
@settings(max_examples=15, deadline=None, derandomize=True)
def test_text_given_in_any_parts_with_any_padding_is_as_without_padding(denoiser, parts):
    """parts: of every call of `given`, of every position, in which of three rows it is hidden."""
    canvas, padded, plain = noisy(3, 4), denoiser, [torch.zeros(1, 0).long() for _ in range(3)]
    for number, part in enumerate(parts):
        hidden, left = torch.tensor(part).T, text(3, len(part), number)
        padded = padded.given(left=left, left_hidden=hidden if hidden.any() else None)
        plain = [
            torch.cat((so_far, left[row : row + 1, ~hidden[row]]), 1)
            for row, so_far in enumerate(plain)
        ]
    together = padded(canvas, T)
    for row, before in enumerate(plain):
        one = slice(row, row + 1)
        close(together[one], denoiser.given(left=before)(canvas[one], T[one]))


def test_a_source_as_prefix_and_prompts_of_unequal_length_are_as_one_by_one():
    denoiser, canvas = Full(network(), MASK), noisy(2, 3)
    source = torch.tensor([[1, 2, 3], [ABSENT, 5, 6]])
    prompts, hidden = text(2, 2, 1), torch.tensor([[False, False], [True, False]])
    got = denoiser.conditioned(source).given(left=prompts, left_hidden=hidden)(canvas, T[:2])
    whole = ([1, 2, 3, *prompts[0].tolist()], [5, 6, int(prompts[1, 1])])
    for row, before in enumerate(whole):
        alone = denoiser.given(left=torch.tensor([before]))
        close(got[row : row + 1], alone(canvas[row : row + 1], T[row : row + 1]))


def test_rows_without_wanted_positions_cost_nothing():
    seen = []
    model = network()

    class Counts(torch.nn.Module):
        block_size, shift, reads_source = None, False, False

        def forward(self, ids, **options):
            seen.append(len(ids))
            return model(ids, **options)

    denoiser = Full(Counts(), MASK).given(left=text(3, 2), right=text(3, 1, 1))
    canvas = noisy(3, 4)
    where = torch.zeros(3, 4, dtype=torch.bool)
    where[0, 1] = where[2, :2] = True
    got = denoiser(canvas, T, where)
    assert seen == [2]
    close(got, denoiser(canvas, T)[where])
    where[:] = False
    assert denoiser(canvas, T, where).shape == (0, VOCAB)


def test_the_mask_token_has_probability_0_and_logits_are_float32():
    model = network().bfloat16()
    for denoiser in (Full(model, MASK), autoregressive(model, MASK)):
        logits = denoiser(noisy(3, 4), T).detach()
        assert logits.dtype == torch.float32
        assert bool((logits[..., MASK] == -torch.inf).all())
        assert float(logits.softmax(-1)[..., MASK].max()) == 0


@pytest.mark.parametrize("shift", [False, True])
def test_scores_are_the_cross_entropy_of_the_logits(shift):
    model = network()
    denoiser = Full(model, MASK).given(left=text(3, 2), right=text(3, 1, 1))
    denoiser = denoiser.autoregressive() if shift else denoiser
    canvas, clean = noisy(3, 5), text(3, 5)
    where = canvas == MASK
    weights = torch.rand(int(where.sum()), generator=torch.Generator().manual_seed(0))
    value, nll, correct = denoiser.score(canvas, T, where, clean[where], weights)
    logits = denoiser(canvas, T, where)
    wanted = torch.nn.functional.cross_entropy(logits, clean[where], reduction="none")
    close(nll, wanted.detach())
    close(value, (weights * wanted).sum())
    assert torch.equal(correct, logits.argmax(-1) == clean[where])


def test_packed_rows_are_scored_as_their_documents():
    denoiser = Full(network(), MASK)
    canvas, clean = noisy(3, 6), text(3, 6)
    where = canvas == MASK
    segments = torch.tensor([[0, 0, 1, 1, 1, 1]]).expand(3, 6)
    ones = torch.ones(int(where.sum()))
    _, nll, _ = denoiser.score(canvas, T, where, clean[where], ones, segments=segments)
    together = torch.zeros(3, 6)
    together[where] = nll
    for part in (slice(0, 2), slice(2, 6)):
        at = where[:, part]
        _, alone, _ = denoiser.score(
            canvas[:, part], T, at, clean[:, part][at], torch.ones(int(at.sum()))
        )
        close(together[:, part][at], alone)


# --- autoregression ---


def test_an_autoregressive_network_sees_what_is_before_and_nothing_else():
    model = network()
    denoiser = autoregressive(model, MASK)
    ids = text(1, 6)
    before = denoiser(ids, T[:1])
    for place in range(6):
        other = ids.clone()
        other[0, place] = (other[0, place] + 1) % VOCAB
        moved = (denoiser(other, T[:1]) - before).nan_to_num(0.0).abs().amax((0, 2)) > 1e-6
        assert moved.tolist() == [i > place for i in range(6)]


def test_every_document_starts_from_the_mask_token():
    model = network()
    denoiser = autoregressive(model, MASK)
    ids = text(2, 6)
    t = T[:2]
    segments = torch.tensor([[HIDDEN, 0, 0, 1, 1, 1]]).expand(2, 6)
    packed = denoiser(ids, t, segments=segments)
    close(packed[:, 1:3], denoiser(ids[:, 1:3], t))
    close(packed[:, 3:], denoiser(ids[:, 3:], t))
    with torch.no_grad():
        raw = model(torch.full((1, 1), MASK), attend=Causal()).logits[0, 0]
    first = denoiser(ids, t)[0, 0]
    kept = torch.arange(VOCAB) != MASK
    close(first[kept], raw[kept])


# --- leave one out ---


def brute_force(denoiser: Full, canvas: torch.Tensor) -> torch.Tensor:
    """[B, L, V]: each position masked in turn."""
    columns = []
    for place in range(canvas.shape[1]):
        without = canvas.clone()
        without[:, place] = MASK
        columns.append(denoiser(without, T)[:, place])
    return torch.stack(columns, 1)


@pytest.mark.parametrize("padded", [False, True])
def test_leave_one_out_equals_masking_each_position_in_turn(padded):
    """Exact in one layer."""
    denoiser = Full(network(num_hidden_layers=1), MASK)
    hidden = torch.tensor([[True, False]]).expand(3, 2) if padded else None
    denoiser = denoiser.given(left=text(3, 2), right=text(3, 1, 2), left_hidden=hidden)
    canvas = noisy(3, 5)
    where = torch.ones_like(canvas, dtype=torch.bool)
    where[1] = False
    where[2, 3] = False
    got = denoiser.leave_one_out(canvas, T, where)
    close(got, brute_force(denoiser, canvas)[where])


def test_leave_one_out_at_masked_positions_is_the_ordinary_prediction_at_any_depth():
    denoiser = Full(network(num_hidden_layers=3), MASK)
    canvas = noisy(3, 6)
    where = canvas == MASK
    close(denoiser.leave_one_out(canvas, T, where), denoiser(canvas, T, where))
    # and at decided ones only about: their neighbours have seen them
    decided = ~where
    far = denoiser.leave_one_out(canvas, T, decided) - brute_force(denoiser, canvas)[decided]
    assert float(far.detach().nan_to_num(0.0).abs().max()) > 1e-3


def test_leave_one_out_needs_no_more_positions_than_the_canvas_has():
    model = network(max_position_embeddings=6)
    canvas = noisy(3, 6)
    where = canvas == MASK
    assert Full(model, MASK).leave_one_out(canvas, T, where).shape == (int(where.sum()), VOCAB)
