"""`ConditionalDiffusionLM`: text written from other text.

lm = ConditionalDiffusionLM.from_pretrained("folder or hub name")
print(lm.generate("Tom found a red ball.", guidance=1.0).text)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import torch

from sfumato.decoding.changes import Changes
from sfumato.errors import ConfigError
from sfumato.lm.model import DiffusionLM
from sfumato.lm.pages import Generation, Page
from sfumato.lm.texts import Texts
from sfumato.types import Filter

if TYPE_CHECKING:
    from sfumato.estimates import Estimate


@dataclass(frozen=True)
class ConditionalDiffusionLM:
    """A `DiffusionLM` with an encoder, whose first argument is the source."""

    lm: DiffusionLM

    def __post_init__(self):
        if not self.lm.model.reads_source:
            raise ConfigError(
                f"a {type(self.lm.model).__name__} has no encoder; load it as a DiffusionLM, or "
                "train one with model.encoder"
            )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype | str = torch.float32,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        progress: bool = False,
    ) -> "ConditionalDiffusionLM":
        """Load a folder, or a model on the Hugging Face Hub, as `DiffusionLM` does."""
        lm = DiffusionLM.from_pretrained(
            name_or_path,
            device=device,
            dtype=dtype,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            progress=progress,
        )
        return cls(lm)

    def generate(
        self,
        source: Texts,
        prompt: Texts = "",
        *,
        num_samples: int = 1,
        filters: Sequence[Filter] = (),
        **changes: Unpack[Changes],
    ) -> Generation:
        """Write text from each source, going on from a prompt if there is one."""
        return self.lm.generate(
            prompt, source=source, num_samples=num_samples, filters=filters, **changes
        )

    def stream(
        self,
        source: Texts,
        prompt: Texts = "",
        *,
        num_samples: int = 1,
        filters: Sequence[Filter] = (),
        **changes: Unpack[Changes],
    ) -> Iterator[Page]:
        """`generate`, page after page; `lm.show` makes text of one, `lm.finish` a `Generation`."""
        return self.lm.stream(
            prompt, source=source, num_samples=num_samples, filters=filters, **changes
        )

    def score(
        self, source: Texts, text: Texts, *, num_samples: int = 32, seed: int = 0
    ) -> "list[Estimate]":
        """Nats per token of each text given its source, as `DiffusionLM.score` has them."""
        return self.lm.score(text, source=source, num_samples=num_samples, seed=seed)

    def save(self, folder: str | Path) -> None:
        """Write a plain Hugging Face model folder."""
        self.lm.save(folder)
