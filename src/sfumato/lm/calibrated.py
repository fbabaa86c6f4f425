"""What a model's own calibration says that a way to decode will lose.

`sfumato calibrate` leaves calibration.json beside the weights: settings, and the nats a token that
each loses against one token a pass. Settings between measured ones lie between their losses.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sfumato.decoding.rules import STEPS
from sfumato.errors import CheckpointError
from sfumato.storage.files import Remedy, foreign
from sfumato.storage.structured import check_shape, read_object
from sfumato.storage.tensors import fingerprint

if TYPE_CHECKING:
    from sfumato.decoding.options import GenerationOptions

log = logging.getLogger(__name__)
RECORD = "calibration.json"
REMEDY = Remedy(CheckpointError, "delete the file, and calibrate the model again")
NUMBER, COUNT = (int, float), (int, type(None))
SHAPE = {
    "settings": {
        "options": {"tolerance": NUMBER},
        "generation": {"canvas": COUNT, "lookahead": bool},
    },
    "models": {"model": {"sha256": str}},
    "results": {"settings": list},
}
ROW = {"setting": {"step": str, "step_options": dict, "num_steps": COUNT, "block": COUNT}}
PASSES = "passes"  # for each position; 1 where a rule has as many steps as it needs
# of rules that decide as many positions as they dare, and at least the schedule's share: the rule
# that ranks positions as they do, and decides that share alone
SHARE_OF = {
    "threshold": "probability",
    "factor": "probability",
    "klass": "probability",
    "entropy_bound": "entropy",
}


@dataclass(frozen=True)
class Decoding:
    """What decides where, and how many positions a pass."""

    step: str
    block: int | None
    numbers: Mapping[str, float]  # all of the rule's options, and PASSES

    @classmethod
    def of(
        cls,
        step: object,
        step_options: Mapping[str, float],
        num_steps: int | None,
        block: int | None,
        positions: int,
    ) -> "Decoding | None":
        """So many steps for so many positions; None where no record can name the rule."""
        name = "ancestral" if step is None else step
        if not isinstance(name, str) or name not in STEPS:
            return None
        passes = 1.0 if num_steps is None else min(1.0, num_steps / max(1, positions))
        return cls(name, block, {**STEPS[name].defaults, **step_options, PASSES: passes})

    def but(self, **numbers: float) -> "Decoding":
        return Decoding(self.step, self.block, {**self.numbers, **numbers})


@dataclass(frozen=True)
class Loss:
    """What is expected to be lost against one token a pass; `at_least`: or more."""

    nats: float  # a token
    at_least: bool = False

    def __str__(self) -> str:
        times = f"{math.exp(min(self.nats, 99.0)):.2g}"
        return f"{'at least ' * self.at_least}{self.nats:.2g} nats a token (perplexity x{times})"


@dataclass(frozen=True)
class Calibration:
    """A record, as far as it says what is lost."""

    folder: Path
    sha256: str  # of the weights that it is about
    tolerance: float  # nats a token that its user would lose
    canvas: int
    lookahead: bool
    measured: tuple[tuple[Decoding, float], ...]
    said: set[str] = field(default_factory=set, compare=False)  # what need not be said again

    @classmethod
    def read(cls, folder: Path, config: Any) -> "Calibration | None":
        """Of the model in a folder, which has this config; None if it was not calibrated."""
        path = folder / RECORD
        if not path.exists():
            return None
        made = read_object(path, REMEDY)
        check_shape(made, SHAPE, path, REMEDY)
        generation, measured = made["settings"]["generation"], []
        canvas = generation["canvas"] or config.max_position_embeddings
        own_block = getattr(config, "block_size", None)  # which such a model has without saying it
        with foreign(path, REMEDY):
            for row in made["results"]["settings"]:
                check_shape(row, ROW, path, REMEDY)
                for name, value in row["setting"]["step_options"].items():
                    check_shape(value, NUMBER, path, REMEDY, name)
                found = Decoding.of(**row["setting"], positions=canvas)
                if found is not None and row.get("excess") is not None:
                    check_shape(row, {"excess": {"value": NUMBER}}, path, REMEDY)
                    where = Decoding(found.step, found.block or own_block, found.numbers)
                    measured.append((where, float(row["excess"]["value"])))
        return cls(
            folder,
            made["models"]["model"]["sha256"],
            float(made["settings"]["options"]["tolerance"]),
            canvas,
            generation["lookahead"] and own_block is None,
            tuple(measured),
        )

    def expected(self, wanted: Decoding) -> Loss | None:
        """What is lost, or None where nothing comparable was measured."""
        found = [self._along(name, wanted) for name in wanted.numbers]
        known = [one for one in found if one is not None]
        if known:
            return max(known, key=lambda one: (not one.at_least, one.nats))
        if wanted.numbers[PASSES] == 1:
            return None
        # it decides all that the rule dares, and all of the schedule's share
        parts = [self.expected(wanted.but(**{PASSES: 1.0}))]
        share = SHARE_OF.get(wanted.step)
        if share is not None:
            passes = {PASSES: wanted.numbers[PASSES]}
            parts.append(self.expected(Decoding(share, wanted.block, passes)))
        most = max((one.nats for one in parts if one is not None), default=None)
        return None if most is None else Loss(most, at_least=True)

    def _along(self, name: str, wanted: Decoding) -> Loss | None:
        """From measurements that differ in one number alone, between neighbours in a line."""
        at = wanted.numbers[name]
        points = sorted(
            (one.numbers[name], nats)
            for one, nats in self.measured
            if one.numbers.keys() == wanted.numbers.keys() and wanted == one.but(**{name: at})
        )
        for value, nats in points:
            if value == at:
                return Loss(nats)
        for (low, before), (high, after) in pairwise(points):
            if low < at < high:
                return Loss(before + (after - before) * (at - low) / (high - low))
        if len(points) < 2:
            return None
        end, other = (points[0], points[-1]) if at < points[0][0] else (points[-1], points[0])
        # beyond the boldest more is lost; beyond the safest less, nobody knows how much
        return Loss(end[1], at_least=True) if end[1] > other[1] else None

    def warn(self, options: "GenerationOptions", own: "GenerationOptions", noisy: Tensor) -> None:
        """Say once what is expected to be lost, if that is more than the tolerance.

        `own`: the model's own options; noisy [B, L]: what is to be written. Nothing is said of
        what was not measured: grammars, guidance, approximate caches, a canvas that grows.
        """
        plain = options.free and not (options.guidance or options.approx_cache or options.grow)
        if not plain or options.lookahead != self.lookahead:
            return
        positions = int(noisy.sum(1).max())
        wanted, usual = (
            Decoding.of(one.step, one.step_options, one.num_steps, options.block, count)
            for one, count in ((options, positions), (own, self.canvas))
        )
        loss = None if wanted is None or wanted == usual else self.expected(wanted)
        if wanted is None or loss is None or not loss.nats > self.tolerance:
            return
        told = self._told(wanted, loss, options.num_steps, positions)
        if told not in self.said and self._is_of_these_weights():
            log.warning(told)
        self.said.add(told)

    def _is_of_these_weights(self) -> bool:
        return fingerprint(sorted(self.folder.glob("*.safetensors"))) == self.sha256

    def _told(self, wanted: Decoding, loss: Loss, num_steps: int | None, positions: int) -> str:
        own = [f"{key}={value:g}" for key, value in wanted.numbers.items() if key != PASSES]
        name, mend = " ".join([wanted.step, *own]), "leave step and its options out"
        if wanted.numbers[PASSES] < 1:
            name += f" in {num_steps} steps for {positions} tokens"
            free = self.expected(wanted.but(**{PASSES: 1.0}))
            if free is None or free.nats <= self.tolerance:
                mend = "leave num_steps out"
                enough = self._enough(wanted)
                if enough is not None:
                    mend += f", or take at least {math.ceil(enough * positions)}"
        return (
            f"{name} is expected to lose {loss} against one token a pass, by the calibration of "
            f"this model; {mend}"
        )

    def _enough(self, wanted: Decoding) -> float | None:
        """The fewest passes for each position at which the rule loses no more than the tolerance,
        between measured ones."""
        points: Sequence[Any] = sorted(
            (one.numbers[PASSES], nats)
            for one, nats in self.measured
            if wanted == one.but(**{PASSES: wanted.numbers[PASSES]})
        )
        for (low, before), (high, after) in reversed([*pairwise(points)]):
            if after <= self.tolerance < before:
                return low + (high - low) * (before - self.tolerance) / (before - after)
        return None
