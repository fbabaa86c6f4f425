"""A denoiser that is asked once about each state of a row."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sfumato.types import Denoiser

ROOM = 2**27  # logits that are remembered, at most: 0.5 GB


@dataclass(frozen=True)
class Remembered:
    """A denoiser that is asked once about each state of a row: rules meet in many of them.

    For one set of texts, whose rows stay where they are; the text around the tokens is told apart
    by its length alone.
    """

    denoiser: Denoiser
    told_time: bool  # the network is, so that the same tokens at another time are another state
    seen: dict[tuple[object, ...], Tensor]  # logits [n, V] of a row
    around: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, denoiser: Denoiser, *, told_time: bool) -> "Remembered":
        """Nothing is known yet."""
        return cls(denoiser, told_time, {})

    def __call__(
        self,
        tokens: Tensor,
        t: Tensor,
        where: Tensor | None = None,
        *,
        segments: Tensor | None = None,
    ) -> Tensor:
        assert where is not None, "the loop always says where"
        rows = where.any(1).nonzero()[:, 0].tolist()
        times = t.tolist() if self.told_time else [0.0] * len(tokens)
        states, wanted = tokens.cpu().numpy(), where.cpu().numpy()
        keys: list[tuple[object, ...]] = [
            (self.around, row, times[row], states[row].tobytes(), wanted[row].tobytes())
            for row in rows
        ]
        new = [n for n, key in enumerate(keys) if key not in self.seen]
        if new:
            fresh = torch.zeros_like(where)
            index = torch.tensor([rows[n] for n in new], device=where.device)
            fresh[index] = where[index]
            logits = self.denoiser(tokens, t, fresh)
            known = sum(one.numel() for one in self.seen.values())
            if known + logits.numel() > ROOM:
                kept = {key: self.seen[key] for key in keys if key in self.seen}
                self.seen.clear()
                self.seen.update(kept)
            parts = logits.split(fresh[index].sum(1).tolist())
            self.seen.update(zip((keys[n] for n in new), parts, strict=True))
        return torch.cat([self.seen[key] for key in keys])

    def given(self, left: Tensor | None = None, right: Tensor | None = None) -> "Remembered":
        widths = (0 if text is None else text.shape[1] for text in (left, right))
        around = tuple(a + b for a, b in zip(self.around, widths, strict=True))
        return replace(self, denoiser=self.denoiser.given(left, right), around=around)
