"""Metrics on disk: one line of JSON a record, the same as CSV, and what else the run asks for."""

import csv
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import astuple
from pathlib import Path
from typing import Any, Protocol

from sfumato.errors import MissingExtra
from sfumato.train.config import Run
from sfumato.train.events import Stepped
from sfumato.train.step import Totals

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
        """One record of all its steps, weighted by their tokens."""
        sums = [sum(column) for column in zip(*map(astuple, self.seen), strict=True)]
        nats, bound, count, correct, corrupted, norm = sums
        return {
            "step": stepped.step,
            "loss": nats / max(1, count),
            "bound": bound / max(1, count),
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
        self.folder = run.output
        self.plots = "png" in run.log.report_to
        for name in ("metrics.jsonl", "samples.jsonl"):
            kept = [record for record in read_records(self.folder / name) if record["step"] <= step]
            rewrite(self.folder / name, [json.dumps(r, ensure_ascii=False) for r in kept])
        self._stack = ExitStack()
        self._json = self._stack.enter_context(self._append("metrics.jsonl"))
        self._csv_file = self._stack.enter_context(self._replace_csv())
        self._csv = csv.DictWriter(self._csv_file, COLUMNS)
        self._csv.writeheader()
        self._csv.writerows(read_records(self.folder / "metrics.jsonl"))
        self._sinks: list[Sink] = []
        if "tensorboard" in run.log.report_to:
            self._sinks.append(TensorBoard(self.folder, step))
        if "wandb" in run.log.report_to:
            self._sinks.append(WeightsAndBiases(run))
        if self.plots:
            _pyplot()
        for sink in self._sinks:
            self._stack.callback(sink.close)

    def _append(self, name: str):
        return (self.folder / name).open("a", encoding="utf-8")

    def _replace_csv(self):
        return (self.folder / "metrics.csv").open("w", encoding="utf-8", newline="")

    def write(self, record: Record) -> None:
        """Add one record; it is in the files when this returns."""
        self._json.write(json.dumps(record) + "\n")
        self._json.flush()
        self._csv.writerow(record)
        self._csv_file.flush()
        for sink in self._sinks:
            sink.write(record)

    def write_samples(self, step: int, texts: Iterable[str]) -> None:
        """Add texts to samples.jsonl."""
        with (self.folder / "samples.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "texts": list(texts)}, ensure_ascii=False) + "\n")

    def plot(self) -> None:
        """Draw loss.png, if the run asks for it."""
        if self.plots:
            draw(read_records(self.folder / "metrics.jsonl"), self.folder / "loss.png")

    def close(self) -> None:
        self._stack.close()


def read_records(path: Path) -> list[dict[str, Any]]:
    """All records of a file of JSON lines; a last line that a kill cut off does not count."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def rewrite(path: Path, lines: Iterable[str]) -> None:
    """Replace a text file as a whole: never half of it."""
    new = path.with_name(f".{path.name}.part")
    new.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(new, path)


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

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A Weights & Biases run that goes on when the training run does."""

    def __init__(self, run: Run):
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingExtra("wandb", "wandb", "log.report_to=wandb") from error
        name = run.log.run_name or run.output.name
        settings: dict[str, Any] = run.model_dump(mode="json")
        self.run = wandb.init(
            project=run.log.project,
            name=name,
            id=name,
            dir=run.output,
            resume="allow",
            config=settings,
        )

    def write(self, record: Record) -> None:
        self.run.log(dict(record), step=int(record["step"]))

    def close(self) -> None:
        self.run.finish()


def _pyplot():
    """matplotlib's figure class, or how to install it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plots", "log.report_to=png") from error
    return Figure


def draw(records: Iterable[Record], path: Path) -> None:
    """Loss and held-out bound over the steps."""
    records = list(records)
    figure = _pyplot()(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for column, style in (("loss", "-"), ("eval_bound", "o-")):
        points = [(r["step"], r[column]) for r in records if column in r]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=column, markersize=3, linewidth=1)
    axes.set_xlabel("step")
    axes.set_ylabel("nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
