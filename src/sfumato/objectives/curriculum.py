"""Objectives around others: one after another, or with sources left out."""

from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from sfumato.arguments import Share, check_fields
from sfumato.objectives.times import Slot
from sfumato.rng import Rng
from sfumato.types import ABSENT, Batch, Loss, Objective, PairBatch, Trainable


@dataclass(frozen=True)
class Curriculum:
    """One objective after another, each in the slots before its end; the last for the rest."""

    stages: Annotated[  # by rising ends
        tuple[tuple[Slot, Objective], ...], Field(title="pairs of an end in slots and an objective")
    ]
    last: Objective
    __post_init__ = check_fields

    def __call__(self, denoiser: Trainable, batch: Batch, rng: Rng) -> Loss:
        slot = int(batch.slots[0])
        now = next((objective for end, objective in self.stages if slot < end), None)
        if now is None:
            return self.last(denoiser, batch, rng)
        return replace(now(denoiser, batch, rng), bounds=False)  # for another way of reading


@dataclass(frozen=True)
class DroppedSource:
    """Another objective, each row without its source at a given rate.

    So that the model also learns to write from nothing, which guidance needs (Ho & Salimans, arXiv
    2207.12598). Which rows depends on the run's seed and their slots alone.
    """

    then: Objective
    rate: Share
    __post_init__ = check_fields

    def __call__(self, denoiser: Trainable, batch: Batch, rng: Rng) -> Loss:
        assert isinstance(batch, PairBatch), "checked before training: there are pairs"
        dropped = rng.fold(2).fold(batch.slots).uniform(1) < self.rate
        seen = replace(batch, source=batch.source.masked_fill(dropped, ABSENT))
        return replace(
            self.then(denoiser, seen, rng), bounds=False
        )  # of texts without sources, too
