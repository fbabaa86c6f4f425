"""What is to be written: a request, checked and laid out on a canvas."""

from dataclasses import dataclass

from torch import Tensor

from sfumato.decoding.filters import divided
from sfumato.decoding.options import GenerationOptions
from sfumato.decoding.step import Step
from sfumato.errors import ConfigError
from sfumato.rng import Rng
from sfumato.types import Canvas, Filter

MOST_CELLS = 2**26  # positions of all texts of a request
RowPart = str | slice  # given text, or the positions of the canvas that are written there


@dataclass(frozen=True)
class Request:
    """One request, checked and laid out."""

    options: GenerationOptions  # with the seed, also where the user gave none
    rows: tuple[tuple[RowPart, ...], ...]
    canvas: Canvas
    rng: Rng
    step: Step
    filters: tuple[Filter, ...]
    left: Tensor | None = None  # [B, P] prompts before the canvas
    hidden: Tensor | None = None  # [B, P] bool, their padding
    led: frozenset[tuple[int, int]] = frozenset()  # row, position: its space is the given text's
    source: Tensor | None = None  # [B, S] what is written from, `ABSENT` in padding

    @property
    def plain(self) -> tuple[Filter, ...]:
        """The filters that do not sharpen: they are part of what the model believes."""
        return tuple(divided(self.filters)[0])

    @property
    def sharpening(self) -> tuple[Filter, ...]:
        """The others."""
        return tuple(divided(self.filters)[1])


def check_size(rows: int, positions: int, num_steps: int | None) -> None:
    """Raise before so much is laid out that no machine holds it."""
    if rows * max(positions, num_steps or 1) > MOST_CELLS:
        raise ConfigError(
            f"{rows} texts of {positions} positions"
            + f" in {num_steps} steps" * (num_steps is not None)
            + f" are more than {MOST_CELLS} positions or steps; ask for fewer at a time"
        )
