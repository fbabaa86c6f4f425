"""What a denoiser must keep."""

import torch
from torch import Tensor

from sfumato.rng import Rng
from sfumato.testing.claims import Undisturbed, alike, expect, kind
from sfumato.types import Denoiser


@torch.no_grad()
def check_denoiser(
    denoiser: Denoiser,
    *,
    vocab_size: int,
    mask_id: int,
    length: int = 6,
    packs: bool = True,
    recites: Tensor | None = None,  # [length], a text that the denoiser knows by heart
) -> None:
    """Logits about the clean token at each position, from the whole row and from it alone.

    For denoisers of masked noise, whose visible tokens are clean. `packs`: rows may hold several
    documents and padding. Without `recites`, nothing can tell whether logits are one place off.
    """
    rng = Rng.from_seed(0, 3)
    letters = torch.tensor([v for v in range(vocab_size) if v != mask_id])
    text = letters[(rng.fold(0).uniform(length) * len(letters)).long()]
    tokens = text.masked_fill(rng.fold(1).uniform(length) < 0.4, mask_id)
    # something to see on both sides, and something to say between, but for one neighbour
    tokens[:, 0], tokens[:, 1], tokens[:, -1] = text[:, 0], mask_id, text[:, -1]
    tokens[1, 1] = text[1, 1]
    t = torch.tensor([0.2, 0.5, 0.9])
    before = tokens.clone(), t.clone()
    with Undisturbed("a denoiser"):
        logits = denoiser(tokens, t)
    expect(
        torch.equal(tokens, before[0]) and torch.equal(t, before[1]),
        "a denoiser must not write into its arguments",
    )
    expect(
        logits.shape == (3, length, vocab_size) and logits.dtype in (torch.float32, torch.float64),
        f"logits must be [3, {length}, {vocab_size}] float32 or float64; got {kind(logits)}",
    )
    expect(not bool(logits.isnan().any()), "logits must not be nan")
    expect(
        bool((logits[..., mask_id] == -torch.inf).all()),
        "the mask token must have probability 0: logit -inf",
    )
    probs = logits.softmax(-1)
    alike(denoiser(tokens, t), probs, "the same call must give the same logits")
    for row in range(3):
        one = slice(row, row + 1)
        alike(denoiser(tokens[one], t[one]), probs[one], "a row must not depend on its neighbours")
    where = (tokens == mask_id) & torch.tensor([[True], [False], [True]])
    some = denoiser(tokens, t, where)
    expect(
        some.shape == (int(where.sum()), vocab_size),
        f"logits at `where` must be [{int(where.sum())}, {vocab_size}]; got {list(some.shape)}",
    )
    alike(some, probs[where], "logits at `where` must be those of the whole canvas")
    if recites is not None:
        blank_row = torch.full((1, length), mask_id)
        said = denoiser(blank_row, torch.ones(1)).argmax(-1)[0]
        expect(
            torch.equal(said, recites),
            "logits at i must be about the token at i: of a blank canvas the denoiser says "
            f"{said.tolist()} where it knows {recites.tolist()}",
        )
    _check_given(denoiser, tokens, t, probs)
    if packs:
        _check_packing(denoiser, tokens, t, probs)


def _check_given(denoiser: Denoiser, tokens: Tensor, t: Tensor, probs: Tensor) -> None:
    length = tokens.shape[1]
    a, b = max(1, length // 3), length - max(1, length // 3)
    left, middle, right = tokens[:, :a], tokens[:, a:b], tokens[:, b:]
    whole = "must equal the same text in the canvas"
    denoiser.given(left=left, right=right)
    alike(denoiser(tokens, t), probs, "given must return a new denoiser and leave the old one")
    alike(denoiser.given(left=left)(tokens[:, a:], t), probs[:, a:], f"given(left) {whole}")
    alike(denoiser.given(right=right)(tokens[:, :b], t), probs[:, :b], f"given(right) {whole}")
    both = denoiser.given(left=left, right=right)
    alike(both(middle, t), probs[:, a:b], f"given(left, right) {whole}")
    nested = denoiser.given(left=left).given(left=middle)
    alike(nested(right, t), probs[:, b:], "given(left=a).given(left=b) must be a, then b")
    nested = denoiser.given(right=right).given(right=middle)
    alike(nested(left, t), probs[:, :a], "given(right=b).given(right=a) must be a, then b")


def _check_packing(denoiser: Denoiser, tokens: Tensor, t: Tensor, probs: Tensor) -> None:
    length = tokens.shape[1]
    other = tokens.flip(0)
    together = torch.cat((tokens, other), 1)
    segments = torch.arange(2).repeat_interleave(length).expand(together.shape)
    packed = denoiser(together, t, segments=segments)
    alike(packed[:, :length], probs, "packed documents must not see each other: the first does")
    alone = denoiser(other, t).softmax(-1)
    alike(packed[:, length:], alone, "packed documents must not see each other: the second does")
    padded = torch.cat((other[:, :2], tokens), 1)
    segments = torch.tensor([-1, -1] + [0] * length).expand(padded.shape)
    logits = denoiser(padded, t, segments=segments)
    alike(logits[:, 2:], probs, "padding (segment -1) on the left must change nothing")
