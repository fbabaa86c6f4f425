"""What every pass of a network needs: its input one to the right, its output without the mask."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.models.encoded_source import Source
from sfumato.rng import Rng
from sfumato.types import ABSENT

TEXT, CLEAN, SOURCE = 0, 1, 2  # what the random streams of dropout are for

NO_SHADOW = (
    "this network reads the token before each position, so that no position can be left out of a "
    "pass; use a step rule that does not verify"
)


@dataclass(frozen=True)
class Shadow:
    """Leave-one-out attention over 2L positions: the tokens, then L masks that shadow them.

    All see the text read before. Tokens see tokens. A shadow sees itself and every token but the
    one it stands for (WINO, arXiv 2507.18578). At masked positions that is the ordinary prediction.
    At decided ones it is the prediction as if they were masked in a network of one layer; in deeper
    ones their neighbours have seen them, and pass on some of it.
    """

    def allowed(self, query: Tensor, key: Tensor) -> Tensor | None:
        length, before = query.shape[1] // 2, key.shape[1] - query.shape[1]
        itself = torch.eye(length, dtype=torch.bool, device=query.device)
        none = torch.zeros_like(itself)
        seen = torch.cat((torch.cat((~none, none), 1), torch.cat((~itself, itself), 1)), 0)
        return F.pad(seen, (before, 0), value=True)[None]


def shifted(tokens: Tensor, starts: Tensor, mask_id: int) -> Tensor:
    """The token before each of [B, L]: mask_id before the first, and where a document starts."""
    return F.pad(tokens[:, :-1], (1, 0), value=mask_id).masked_fill(starts, mask_id)


def without_mask(logits: Tensor, mask_id: int) -> Tensor:
    """float32 logits in which the mask token has probability 0."""
    logits = logits.to(torch.float32, copy=True)  # what the network returned may be its own
    logits[..., mask_id] = -torch.inf
    return logits


def reading_source(source: Source | None) -> dict[str, Source]:
    """An argument for networks that read a source; others have no such argument."""
    return {} if source is None else {"source": source}


def dropping_out(rng: Rng | None, stream: int) -> dict[str, Rng]:
    """Likewise, for networks that drop out."""
    return {} if rng is None else {"rng": rng.fold(stream)}


def as_prefix(source: Tensor, mask_id: int) -> dict[str, Tensor]:
    """A source [B, S] as text on the left."""
    hidden = source == ABSENT
    return {"left": source.masked_fill(hidden, mask_id), "left_hidden": hidden}
