"""The chunked head against cross-entropy written plainly."""

import pytest
import torch
from torch import Tensor, nn

from sfumato.models.output_loss import CHUNK, chunks, score_hidden, score_integrand
from sfumato.noise.corruption import Hybrid, Masked, Uniform

WIDTH, VOCAB, EXCLUDED = 8, 30, 4


def case(count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(count)
    hidden = torch.randn(count, WIDTH, requires_grad=True)
    head = torch.randn(VOCAB, WIDTH, requires_grad=True)
    targets = torch.randint(EXCLUDED + 1, VOCAB, (count,))
    return hidden, head, targets, torch.rand(count) * 4


def plain(hidden: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """[N] nats, the excluded token left out of the sum."""
    logits = (hidden @ head.T).index_fill(1, torch.tensor([EXCLUDED]), -torch.inf)
    return logits.logsumexp(1) - logits.gather(1, targets[:, None])[:, 0]


def gradients(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(3 * value, inputs)


def close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Up to the rounding of sums of a thousand float32 terms."""
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("count", [0, 1, CHUNK, 2 * CHUNK + 1])
def test_scores_and_gradients_are_those_of_the_plain_formula(count: int):
    hidden, head, targets, weights = case(count)
    scored = score_hidden(hidden, head, targets, weights, (EXCLUDED,))
    nll = plain(hidden, head, targets)
    torch.testing.assert_close(scored.nll, nll.detach())
    expected = gradients((weights * nll).sum(), hidden, head)
    close(gradients(scored.value, hidden, head), expected)
    logits = (hidden @ head.T).index_fill(1, torch.tensor([EXCLUDED]), -torch.inf)
    assert torch.equal(scored.correct, logits.argmax(1) == targets)


def test_scores_without_gradients_are_the_same():
    hidden, head, targets, weights = case(9)
    with torch.no_grad():
        scored = score_hidden(hidden, head, targets, weights, (EXCLUDED,))
    assert not scored.value.requires_grad
    torch.testing.assert_close(scored.nll, plain(hidden, head, targets).detach())


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32():
    hidden, head, targets, weights = case(700)
    with torch.autocast("cpu", torch.bfloat16):
        scored = score_hidden(hidden, head, targets, weights)
    rounded = hidden.bfloat16().float() @ head.bfloat16().float().T
    nll = rounded.logsumexp(1) - rounded.gather(1, targets[:, None])[:, 0]
    assert scored.nll.dtype == torch.float32
    torch.testing.assert_close(scored.nll, nll.detach(), atol=0.05, rtol=0)  # logits' rounding


def test_any_integrand_gives_the_same_as_cross_entropy():
    hidden, _, targets, weights = case(2 * CHUNK + 1)
    head = nn.Linear(WIDTH, VOCAB, bias=False)

    def integrand(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        logp = logits.log_softmax(-1)
        return -logp.gather(1, targets[part, None])[:, 0], logp.argmax(1) == targets[part]

    one = score_integrand(hidden, head, weights, integrand)
    two = score_hidden(hidden, head.weight, targets, weights)
    torch.testing.assert_close(one.nll, two.nll)
    assert torch.equal(one.correct, two.correct)
    close(gradients(one.value, hidden, head.weight), gradients(two.value, hidden, head.weight))


def test_gradients_of_cross_entropy_are_those_of_its_value_to_float64(monkeypatch):
    """Made by hand in the forward pass, so against finite differences, over several chunks."""
    monkeypatch.setattr("sfumato.models.output_loss.CHUNK", 4)
    hidden, head, targets, weights = (each.detach() for each in case(9))
    inputs = hidden.double().requires_grad_(), head.double().requires_grad_()

    def value(hidden: Tensor, head: Tensor) -> Tensor:
        return score_hidden(hidden, head, targets, weights.double(), (EXCLUDED,)).value

    assert torch.autograd.gradcheck(value, inputs, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("noise", [Masked, Uniform, Hybrid])
def test_gradients_of_bounds_are_those_of_their_value_to_float64(noise, monkeypatch):
    monkeypatch.setattr("sfumato.models.output_loss.CHUNK", 3)
    corruption = noise(6, EXCLUDED)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    head = torch.randn(6, 3, generator=draw, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(7, generator=draw, dtype=torch.float64)
    clean = torch.tensor([0, 1, 2, 3, 5, 0, 1])
    seen = torch.tensor([EXCLUDED, EXCLUDED, 2, 3, 5, 1, 5])  # masked, the same, another
    if noise is not Hybrid:  # of the other two, those that can occur
        seen = torch.where(torch.tensor(noise is Masked), EXCLUDED, seen % EXCLUDED)
    times = torch.linspace(0.1, 0.9, 7, dtype=torch.float64)

    def integrand(logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        logp = logits.index_fill(-1, torch.tensor([EXCLUDED]), -torch.inf).log_softmax(-1)
        each = corruption.bound(logp, clean[part], seen[part], times[part])
        return each, logp.argmax(-1) == clean[part]

    def value(hidden: Tensor, head: Tensor) -> Tensor:
        return score_integrand(hidden, lambda h: h @ head.T, weights, integrand).value

    assert torch.autograd.gradcheck(value, (hidden, head), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("count", [0, 1, CHUNK, CHUNK + 1, 5 * CHUNK - 3])
def test_chunks_cover_all_in_equal_parts(count: int):
    parts = [(part.start, part.stop) for part in chunks(count)]
    assert [i for start, stop in parts for i in range(start, stop)] == list(range(count))
    sizes = [stop - start for start, stop in parts]
    assert all(0 < size <= CHUNK for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1
