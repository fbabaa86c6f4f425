"""Metrics on disk: one line of JSON a record, the same as CSV, and what else the run asks for."""

import csv
import json
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sfumato.errors import MissingExtra, TrainingError
from sfumato.storage.files import Remedy
from sfumato.storage.replace import replaced, write_text
from sfumato.storage.structured import read_json_lines
from sfumato.train.config import Run
from sfumato.train.events import Stepped
from sfumato.train.stages import stages
from sfumato.train.step import Totals

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS: tuple[str, ...] = (
    "step",
    "loss",
    "bound",
    "accuracy",
    "grad_norm",
    "learning_rate",
    "tokens",
    "tokens_per_second",
    "seconds",
    "eval_bound",
    "eval_error",
    "eval_accuracy",
    "interval_low",
    "interval_high",
    "interval_deviation",
    "whole_deviation",
)
Record = Mapping[str, float]


class Window:
    """What the steps between two records saw."""

    def __init__(self, seconds: float):
        self.start = seconds  # of training, when it opened
        self.seen: list[Totals] = []

    def rate(self, seconds: float) -> tuple[float, float]:
        """Tokens a second and seconds a step."""
        spent = seconds - self.start
        return sum(totals.count for totals in self.seen) / spent, spent / len(self.seen)

    def record(self, stepped: Stepped) -> dict[str, float]:
        """One record of all its steps, weighted by their tokens.

        Without `bound` where what was drawn is no bound: where the objective's noise rates are
        clipped, while it has stages, or sources are dropped. `eval_bound` always is one.
        """
        sums = [sum(column) for column in zip(*map(astuple, self.seen), strict=True)]
        nats, bound, count, correct, corrupted, norm = sums
        measured = {} if math.isnan(bound) else {"bound": bound / max(1, count)}
        return {
            "step": stepped.step,
            "loss": nats / max(1, count),
            **measured,
            "accuracy": correct / max(1, corrupted),
            "grad_norm": norm / len(self.seen),
            "learning_rate": stepped.learning_rate,
            "tokens": stepped.tokens,
            "tokens_per_second": stepped.tokens_per_second,
            "seconds": stepped.seconds,
        }


class Sink(Protocol):
    """Somewhere that records go."""

    def write(self, record: Record) -> None: ...
    def close(self) -> None: ...


class Metrics:
    """All sinks of a run. Records of steps after `step`, from before a kill, are dropped."""

    def __init__(self, run: Run, step: int):
        self.folder, self.stages = run.output, stages(run)
        wanted = run.log.report_to
        self._sinks: list[Sink] = []
        names = ("metrics.jsonl", "samples.jsonl")
        kept = {
            name: [record for record in read_records(self.folder / name) if record["step"] <= step]
            for name in names
        }
        # what may be missing first: then no file is open yet
        self._figure = _figure_class() if "png" in wanted else None
        if "wandb" in wanted:
            self._sinks.append(WeightsAndBiases(run, kept["metrics.jsonl"]))
        if "tensorboard" in wanted:
            self._sinks.append(TensorBoard(self.folder, step))
        for name, records in kept.items():
            lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
            write_text(self.folder / name, "".join(lines))
        try:
            self._sinks.append(JsonLines(self.folder))
            self._sinks.append(Csv(self.folder))
        except OSError:
            self.close()
            raise

    def write(self, record: Record) -> None:
        """Add one record; it is in the files when this returns."""
        for sink in self._sinks:
            sink.write(record)

    def write_samples(self, step: int, texts: Iterable[str]) -> None:
        """Add texts to samples.jsonl."""
        with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "texts": list(texts)}, ensure_ascii=False) + "\n")

    def plot(self) -> None:
        """Draw loss.png, if the run asks for it."""
        if self._figure:
            figure = self._figure(figsize=(7, 4), layout="constrained")
            draw(read_records(self.folder / "metrics.jsonl"), figure, self.stages)
            with replaced(self.folder / "loss.png") as new:
                figure.savefig(new, dpi=120, format="png")

    def close(self) -> None:
        """Close every file. All was flushed; what a full disk refused, it refuses again here."""
        for sink in self._sinks:
            with suppress(OSError):
                sink.close()


class JsonLines:
    """metrics.jsonl, one record a line."""

    def __init__(self, folder: Path):
        self.file = (folder / "metrics.jsonl").open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


class Csv:
    """metrics.csv: the records of metrics.jsonl so far, and those that come."""

    def __init__(self, folder: Path):
        self.file = (folder / "metrics.csv").open("w", encoding="utf-8", newline="")
        self.table = csv.DictWriter(self.file, COLUMNS, extrasaction="ignore")
        self.table.writeheader()
        self.table.writerows(read_records(folder / "metrics.jsonl"))

    def write(self, record: Record) -> None:
        self.table.writerow(record)
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a file of JSON lines; what a kill or a crash left there does not count."""
    if not path.exists():
        return []
    remedy = Remedy(TrainingError, "move it away to go on without it")
    return [record for record in read_json_lines(path, remedy) if _is_record(record)]


def _is_record(value: Any) -> bool:
    """Whether a line says something of a step."""
    if not isinstance(value, dict) or type(value.get("step")) is not int:
        return False
    return all(isinstance(one, int | float | str | list) for one in value.values())


class TensorBoard:
    """Event files in the run's folder, under `tensorboard`."""

    def __init__(self, folder: Path, step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("tensorboard", "track", "log.report_to=tensorboard") from error
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, record: Record) -> None:
        for name, value in record.items():
            if name != "step":
                self.writer.add_scalar(name, value, int(record["step"]))
        self.writer.flush()  # else a kill loses two minutes of records, and a full disk is silent

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A Weights & Biases run that goes on when the training run does, by an id in its folder.

    A run that begins anew is a new one there too. One that goes on has all records so far: a kill
    may have lost some on their way, and an offline run begins with none.
    """

    def __init__(self, run: Run, so_far: Sequence[Record]):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingExtra("wandb", "wandb", "log.report_to=wandb") from error
        place = run.output / "wandb-id.txt"
        if not (so_far and place.exists()):
            write_text(place, secrets.token_hex(8))
        try:
            self.run = wandb.init(
                project=run.log.project,
                name=run.log.run_name or run.output.name,
                id=place.read_text(encoding="utf-8"),
                dir=run.output,
                resume="allow",
                config=run.model_dump(mode="json"),
            )
        except wandb.Error as error:
            raise TrainingError(
                f"log.report_to=wandb: Weights & Biases says: {error} "
                "(without an account: WANDB_MODE=offline)"
            ) from error
        for record in so_far:
            self.write(record)

    def write(self, record: Record) -> None:
        if record["step"] >= self.run.step:  # it has those before, and would warn
            self.run.log(dict(record), step=int(record["step"]))

    def close(self) -> None:
        self.run.finish()


def _figure_class() -> type["Figure"]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plots", "log.report_to=png") from error
    return Figure


def draw(
    records: Sequence[Record], figure: "Figure", changes: Sequence[tuple[int, str]] = ()
) -> None:
    """Loss and held-out bound over the steps; a line where another loss begins (`stages`)."""
    axes = figure.subplots()
    for column, style in (("loss", "-"), ("eval_bound", "o-")):
        points = [(record["step"], record[column]) for record in records if column in record]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=column, markersize=3, linewidth=1)
    for step, kind in changes:
        axes.axvline(step, color="0.5", linestyle="--", linewidth=1)
        within = axes.get_xaxis_transform()  # the top of the picture
        axes.text(step, 1.01, kind, transform=within, fontsize=8, ha="center", va="bottom")
    axes.set_xlabel("step")
    axes.set_ylabel("nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
