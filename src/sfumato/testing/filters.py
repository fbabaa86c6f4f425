"""What a filter must keep."""

import torch
from torch import Tensor

from sfumato.rng import Rng
from sfumato.testing.claims import Undisturbed, expect, kind
from sfumato.types import Canvas, Filter

_ROWS, _LENGTH = 3, 5  # of the canvases that filters are tried on


def check_filter(filter: Filter, *, vocab_size: int = 6, mask_id: int = 5) -> None:
    """New logits of the same shape, of which every position keeps some; nothing else changes.

    Position by position: what one becomes depends on its row alone, and where the filter says that
    it is `blind`, on its logits alone.
    """
    expect(
        callable(filter) and not isinstance(filter, type),
        f"a filter is called with logits, a canvas and where; {filter!r} cannot be",
    )
    for name in ("sharpens", "blind"):
        said = getattr(filter, name, False)
        expect(isinstance(said, bool), f"{name} must be True or False; got {said!r}")
    rng = Rng.from_seed(3, _ROWS)
    canvas, where = _canvas(rng, vocab_size, mask_id)
    logits = 4 * Rng.from_seed(4, int(where.sum())).uniform(vocab_size).float() - 2
    logits[:, mask_id] = -torch.inf
    before = logits.clone(), canvas.tokens.clone(), canvas.noisy.clone(), where.clone()
    with Undisturbed("a filter"):
        made = filter(logits, canvas, where)
    after = logits, canvas.tokens, canvas.noisy, where
    expect(
        all(torch.equal(old, new) for old, new in zip(before, after, strict=True)),
        "a filter must return new logits, and write into none of its arguments",
    )
    got = kind(made) if isinstance(made, Tensor) else type(made).__name__
    expect(got == kind(logits), f"a filter must return logits {kind(logits)}; got {got}")
    expect(not bool(made.isnan().any()), "logits must not become nan")
    expect(
        bool((made > -torch.inf).any(-1).all()),
        "every position must keep a token that can be drawn; one has none left",
    )
    expect(
        bool((made[:, mask_id] == -torch.inf).all()),
        "what cannot be drawn must stay so: the mask token got a probability",
    )
    expect(torch.equal(filter(logits, canvas, where), made), "the same call must change the same")
    owner = where.nonzero()[:, 0]
    for row in range(_ROWS):
        one = slice(row, row + 1)
        only = Canvas(canvas.tokens[one], canvas.noisy[one], canvas.fixed[one])
        expect(
            torch.equal(filter(logits[owner == row], only, where[one]), made[owner == row]),
            f"a row must become what it becomes alone, whatever its neighbours; row {row} does not",
        )
    none = filter(logits[:0], canvas, torch.zeros_like(where))
    expect(kind(none) == kind(logits[:0]), f"of no position it must make none; got {kind(none)}")
    if getattr(filter, "blind", False):
        other = Canvas(canvas.tokens.flip(1), canvas.noisy.flip(1), canvas.fixed.flip(1))
        seen = filter(logits, other, where.flip(0).flip(1))
        expect(torch.equal(seen, made), "a filter that is blind reads the logits alone")


def _canvas(rng: Rng, vocab_size: int, mask_id: int) -> tuple[Canvas, Tensor]:
    letters = torch.tensor([v for v in range(vocab_size) if v != mask_id])
    text = letters[(rng.fold(0).uniform(_LENGTH) * len(letters)).long()]
    noisy = torch.zeros(_ROWS, _LENGTH, dtype=torch.bool)
    noisy[:, 1:3] = True
    noisy[0, 4] = True
    tokens = text.masked_fill(noisy, mask_id)
    return Canvas(tokens, noisy, ~noisy), noisy.clone()
