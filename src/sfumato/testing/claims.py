"""How checks look, and how they speak."""

import torch
from torch import Tensor

from sfumato.noise.corruption import Corruption


def expect(truth: bool, message: str) -> None:
    """An AssertionError with this message unless it is true; works under `python -O` too."""
    if not truth:
        raise AssertionError(message)


def close(
    got: Tensor, wanted: Tensor, tolerance: float, message: str, at: Tensor | None = None
) -> None:
    """Within `tolerance`, absolute or relative; `at`: what the numbers belong to."""
    got, wanted = got.double(), wanted.double()
    error = (got - wanted).abs() / wanted.abs().clamp_min(1)
    error = torch.where(error.isnan(), torch.inf, error).flatten()
    if not len(error) or float(error.max()) <= tolerance:
        return
    worst = int(error.argmax())
    place = "" if at is None else f" at {float(at.flatten()[worst]):.4g}"
    raise AssertionError(
        f"{message}; expected {float(wanted.flatten()[worst]):.6g}{place}, "
        f"got {float(got.flatten()[worst]):.6g}"
    )


def alike(logits: Tensor, probs: Tensor, message: str) -> None:
    """The same predictions: probabilities within 1e-4, which float32 networks keep."""
    expect(
        logits.shape == probs.shape,
        f"{message}; expected logits {list(probs.shape)}, got {list(logits.shape)}",
    )
    close(logits.softmax(-1), probs, 1e-4, f"{message} (probabilities)")


def frequencies(seen: Tensor, law: Tensor, samples: int, what: str) -> None:
    """Shares of `samples` draws against their law: within 5 standard deviations, everywhere."""
    allowed = 5 * (law * (1 - law) / samples).sqrt() + 1e-9
    worst = int(((seen - law).abs() - allowed).argmax())
    share, chance = float(seen.flatten()[worst]), float(law.flatten()[worst])
    expect(
        abs(share - chance) <= float(allowed.flatten()[worst]),
        f"{what}: a token has frequency {share:.4f} where its probability is {chance:.4f}",
    )


class Undisturbed:
    """A context in which torch's global generator must stay where it is."""

    def __init__(self, who: str):
        self.who = who

    def __enter__(self) -> None:
        self.state = torch.get_rng_state()

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            expect(
                torch.equal(self.state, torch.get_rng_state()),
                f"{self.who} must draw from `rng` alone, not from torch's global generator",
            )


def kind(tensor: Tensor) -> str:
    """Shape and dtype in words."""
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def letters(corruption: Corruption) -> Tensor:
    """All tokens but the mask."""
    return torch.tensor([v for v in range(corruption.vocab_size) if v != corruption.mask_id])


def forward_law(corruption: Corruption, t: Tensor) -> Tensor:
    """q(x_t | x_0) at times t of any shape, from the kernel: [..., V (x_0), V (x_t)]."""
    k = corruption.kernel(t.double())
    size = corruption.vocab_size
    noise = (k.spread / (size - 1))[..., None].repeat(*[1] * t.dim(), size)
    noise[..., corruption.mask_id] = k.mask
    return k.alpha[..., None, None] * torch.eye(size, dtype=torch.float64) + noise[..., None, :]
