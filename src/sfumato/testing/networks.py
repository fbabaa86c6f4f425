"""The contract of a network: `models.network.Network`."""

from typing import Any

import torch
from torch import Tensor

from sfumato.models.attention import HIDDEN, Attend, Bidirectional, BlockCausal, Causal
from sfumato.models.kv_cache import Reading, Store
from sfumato.testing.claims import close, expect

LENGTH = 9
PATTERNS: tuple[Attend, ...] = (Bidirectional(), Causal(), BlockCausal(3))


def check_network(
    network: Any,
    *,
    learns: bool = True,
    local: bool = False,
    caches: bool = True,
    tolerance: float = 2e-4,
) -> None:
    """Raise AssertionError with one sentence if a network breaks the contract.

    `learns`: it takes labels; `local`: some of its layers see a window only; `caches`: it reads on
    from keys and values. It is called in float32, in evaluation mode, on a few short rows.
    """
    draw = torch.Generator().manual_seed(0)
    most = int(network.config.vocab_size)
    tokens = torch.randint(0, most, (2, LENGTH), generator=draw)
    with torch.no_grad():
        for attend in (None, *PATTERNS):
            _check_sight(network, tokens, attend, local, tolerance)
        _check_where(network, tokens, tolerance)
        _check_documents(network, tokens, tolerance)
        if caches:
            for attend in PATTERNS[1:]:
                _check_past(network, tokens, attend, tolerance)
    if learns:
        _check_scores(network, tokens, draw, tolerance)


def _logits(network: Any, tokens: Tensor, **given: Any) -> Tensor:
    t = torch.full((len(tokens),), 0.5)
    return network(tokens, t=t, **given).logits.float()


def _check_sight(
    network: Any, tokens: Tensor, attend: Attend | None, local: bool, tolerance: float
) -> None:
    """Output i moves exactly with what its pattern lets it see."""
    pattern, place = attend or network.attend, torch.arange(LENGTH)[None]
    seen = pattern.allowed(place, place)
    seen = torch.ones(LENGTH, LENGTH, dtype=torch.bool) if seen is None else seen[0]
    plain = _logits(network, tokens[:1], attend=attend)
    others = tokens[:1].repeat(LENGTH, 1)  # in row j token j is another one
    others += torch.eye(LENGTH, dtype=others.dtype)
    others %= int(network.config.vocab_size)
    change = (_logits(network, others, attend=attend) - plain).abs().amax(-1).T  # [output, token]
    for what, odd, truth in (
        ("moves with", (change > tolerance) & ~seen, "hides from"),
        ("does not move with", (change == 0) & seen & (not local), "shows to"),
    ):
        output, token = next(iter(odd.nonzero().tolist()), (0, 0))
        expect(
            not bool(odd.any()),
            f"under {pattern} output {output} {what} token {token}, which the pattern {truth} it",
        )


def _check_where(network: Any, tokens: Tensor, tolerance: float) -> None:
    """`where` is the same as gathering."""
    where = torch.zeros_like(tokens, dtype=torch.bool)
    where[0, 2] = where[1, 1] = where[1, 7] = True
    whole, some = _logits(network, tokens), _logits(network, tokens, where=where)
    expect(some.shape == (3, whole.shape[-1]), f"at 3 positions it returns {tuple(some.shape)}")
    close(some, whole[where], tolerance, "logits at `where` are not those of all positions")


def _check_documents(network: Any, tokens: Tensor, tolerance: float) -> None:
    """Padding and other documents never leak."""
    alone = _logits(network, tokens[:, :4])
    segments = torch.zeros_like(tokens)
    segments[:, 4:] = 1
    packed = _logits(network, tokens, segments=segments)
    close(packed[:, :4], alone, tolerance, "a document sees the one behind it")
    second = _logits(network, tokens[:, 4:])
    close(packed[:, 4:], second, tolerance, "a document is not read as if it were alone")
    padded = torch.cat((tokens[:, 5:], tokens[:, :4]), 1)
    segments = torch.zeros_like(padded)
    segments[:, :4] = HIDDEN
    found = _logits(network, padded, segments=segments)
    close(found[:, 4:], alone, tolerance, "hidden positions on the left change what is read")
    expect(bool(found.isfinite().all()), "hidden positions give numbers that are none")


def _check_past(network: Any, tokens: Tensor, attend: Attend, tolerance: float) -> None:
    """A pass over the rest of a text, after keys and values of its beginning, equals the whole."""
    whole, cut = _logits(network, tokens, attend=attend), 6
    t = torch.full((len(tokens),), 0.5)
    read = network(tokens[:, :cut], t=t, attend=attend).key_values
    rest = _logits(network, tokens[:, cut:], attend=attend, past=read)
    close(
        rest,
        whole[:, cut:],
        tolerance,
        f"{attend}: a pass after keys and values is not the whole",
    )
    store = Store.empty(len(tokens), 12, tokens.device)
    for start in range(0, LENGTH, 3):
        lengths = torch.full((len(tokens),), start)
        part = tokens[:, start : start + 3]
        found = _logits(network, part, attend=attend, past=Reading(store, lengths))
        close(
            found,
            whole[:, start : start + 3],
            tolerance,
            f"{attend}: a pass over a store is not the whole",
        )


def _check_scores(network: Any, tokens: Tensor, draw: torch.Generator, tolerance: float) -> None:
    """Scores are plain cross-entropy, and so are their gradients."""
    where = torch.rand(tokens.shape, generator=draw) < 0.6
    targets = tokens[where]
    weights, excluded = torch.rand(len(targets), generator=draw), (int(targets.max()) + 1) % 7
    odd = (excluded,) if not bool((targets == excluded).any()) else ()
    t = torch.full((len(tokens),), 0.5)
    out = network(tokens, t=t, where=where, labels=targets, weights=weights, excluded=odd)
    logits = network(tokens, t=t, where=where).logits.float()
    logits = logits.index_fill(1, torch.tensor(odd, dtype=torch.int64), -torch.inf)
    nll = -logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    close(out.nll, nll.detach(), tolerance, "nll is not the cross-entropy of its own logits")
    loss = (weights * nll).sum()
    close(out.loss.detach(), loss.detach(), 10 * tolerance, "loss is no weighted sum of nll")
    weight = next(each for each in network.parameters() if each.requires_grad and each.dim() > 1)
    (got,) = torch.autograd.grad(out.loss, weight)
    (wanted,) = torch.autograd.grad(loss, weight)
    close(got, wanted, 50 * tolerance, "the gradient of the loss is not that of its logits")
