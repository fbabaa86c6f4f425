"""One run in one process: its steps, what it measures and keeps, exact to the bit when it goes on.

Nothing in a step depends on how the rows of its global batch are shared out over processes,
accumulation and workers, and a checkpoint holds all that a step reads.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.data.prepared_pairs import open_data
from sfumato.data.rows import PairRows, Rows, open_rows
from sfumato.data.special_tokens import special_ids
from sfumato.data.tokenizer import fingerprint
from sfumato.data.tokenizer_files import write_tokenizer
from sfumato.decoding.options import GenerationOptions
from sfumato.denoisers.full import Full
from sfumato.devices import find_dtype
from sfumato.errors import CheckpointError, ConfigError
from sfumato.estimates import Estimate
from sfumato.lm.folders import write_model
from sfumato.lm.generation_config import write_generation_config
from sfumato.lm.model import DiffusionLM
from sfumato.rng import Rng
from sfumato.storage.files import foreign, read_tensors
from sfumato.storage.publish import published, sweep_parts
from sfumato.storage.replace import write_text, writing
from sfumato.storage.structured import check_shape
from sfumato.storage.tensors import check_finite
from sfumato.train.build_network import build_network, check_spread
from sfumato.train.build_objective import build_corruption, build_measure, build_objective
from sfumato.train.checkpoint import DAMAGED, SHAPE, STATE, Checkpoints
from sfumato.train.config import Run
from sfumato.train.events import (
    Evaluated,
    Event,
    Finished,
    Interrupted,
    Sampled,
    Saved,
    Searched,
    Started,
    Stepped,
)
from sfumato.train.feed import MicroBatches, Order
from sfumato.train.held_out import held_out_bound
from sfumato.train.log import Metrics, Window
from sfumato.train.optim import Average, build_optimizers
from sfumato.train.resume import check_resumable
from sfumato.train.run_folder import RunFolder
from sfumato.train.search import INTERVALS, Interval, least, loss_variances
from sfumato.train.state import State
from sfumato.train.step import Scored, Stepper
from sfumato.train.world import World, release
from sfumato.types import Batch, Objective

SEARCHES = 3  # what objectives do not fold the run's seed with


def never() -> bool:
    return False


@dataclass(frozen=True)
class Progress:
    """How far a run is: with the tensors, all that going on needs."""

    step: int = 0  # steps done
    tokens: int = 0  # trainable ones seen
    seconds: float = 0.0  # spent in steps
    best: float | None = None  # lowest held-out bound
    since_best: int = 0  # evaluations since then
    variances: Sequence[float] = ()  # of the loss on each of search.INTERVALS, over all searches
    finished: bool = False


class Trainer:
    """One run in one process."""

    def __init__(self, run: Run, world: World, stop: Callable[[], bool] = never):
        self.run, self.world, self.stop = run, world, stop
        data = open_data(run.data.folder)
        self.tokenizer = data.tokenizer()
        self.special = special_ids(self.tokenizer)
        self.identity = {"data": data.fingerprint, "tokenizer": fingerprint(self.tokenizer)}
        shape: Any = {"length": run.data.length, "layout": run.data.layout}
        self.rows = open_rows(run.data.folder, "train", **shape)
        self.held_out = None
        if run.evaluate.eval_steps:
            self.held_out = open_rows(run.data.folder, "validation", **shape)
        self.model = build_network(run, data, len(self.tokenizer), self.special)
        self.corruption = build_corruption(run, self.model.config.vocab_size, self.special.mask)
        if run.train.gradient_checkpointing:
            self.model.activation_checkpointing_enable()
        if run.train.torch_compile:
            self.model.compile_blocks()
        check_spread(run, self.model, world)
        scored = Scored(self.model, Full.of(self.model, self.special.mask))
        self.scored = world.spread(scored, run.train.parallel)  # nothing after it is refused
        self.dtype = find_dtype(run.train.precision, world.device)
        params = dict(self.model.named_parameters())
        average = Average(params, run.train.ema_decay) if run.train.ema_decay else None
        self.state = State(self.model, build_optimizers(self.model, run.train, self.dtype), average)
        self.stepper = Stepper(
            self.scored, self._objective(), self.state, run.train, run.seed, self.dtype, world
        )
        self.checkpoints = Checkpoints(run.output / "checkpoints", run.train.save_total_limit)
        self.folder = RunFolder(run)
        self.progress = Progress()
        self.note = ""  # what is to be known of how it goes on
        self.metrics: Metrics | None = None

    def events(self) -> Iterator[Event]:
        """The whole run, from its newest checkpoint on."""
        run = self.run
        self._begin()
        yield Started(
            step=self.progress.step,
            max_steps=run.train.max_steps,
            num_weights=sum(param.numel() for param in self.model.parameters()),
            num_rows=len(self.rows),
            num_processes=self.world.size,
            device=str(self.world.device),
            precision=str(self.dtype).removeprefix("torch."),
            note=self.note,
        )
        if not self.progress.finished:
            yield from self._steps()
        if not self.progress.finished:
            yield Interrupted(self.progress.step, self.checkpoints.path(self.progress.step))
            return
        yield Finished(
            step=self.progress.step,
            path=run.output,
            best=self.progress.best,
            stopped_early=self.progress.step < run.train.max_steps,
        )

    def close(self) -> None:
        """Let go of the metrics' files and of the other processes; the trainer steps no more."""
        if self.metrics:
            self.metrics.close()
        release(self.scored)

    # --- before the first step ---

    def _begin(self) -> None:
        """Load the newest checkpoint, if there is one, and open the run's folder."""
        run, folder = self.run, self.run.output
        settings = run.model_dump_json(exclude={"output": True, "data": {"folder": True}})
        if not self.world.agree(f"{settings} {self.identity}"):
            raise ConfigError(
                "the processes have different settings or data; "
                "give all of them the same run and a copy of the same data"
            )
        if self.world.first:
            self.checkpoints.sweep()
            sweep_parts(folder)
        goes_on = self._resume()
        if not (goes_on or run.overwrite) and self.folder.holds_model and not self.folder.is_own:
            raise CheckpointError(
                f"{folder} already holds a model, and no checkpoint to go on from; "
                "choose another output, or overwrite=true"
            )
        if len(set(self.world.gather(self.progress.step))) > 1:
            raise CheckpointError(
                f"the processes see different checkpoints in {folder}; "
                "choose an output on a file system that all of them share"
            )
        if self.world.first:
            if not goes_on:
                self.checkpoints.clear()  # those of another run
            self.checkpoints.prune()  # a kill may have come before it
            with writing(folder):
                write_text(folder / "run.yaml", self.folder.written)
                if not self.progress.finished:
                    self.metrics = Metrics(run, self.progress.step)

    def _resume(self) -> bool:
        """Go on from the newest checkpoint; False if there is none, or `overwrite` puts it aside.

        Only those of another run: of this one, steps taken again would give the same weights.
        """
        steps = self.checkpoints.steps()
        if not steps:
            return False
        try:
            state, training = self.checkpoints.load(steps[-1])
            place = self.checkpoints.path(steps[-1])
            weights = read_tensors(place / "model.safetensors", DAMAGED)
            check_shape(state, SHAPE, place / STATE, DAMAGED)
            check_finite([*weights.items(), *training.items()], place)
        except CheckpointError:
            if self.run.overwrite and not self.folder.is_written:
                return False
            raise
        try:
            with foreign(place, DAMAGED):
                self.note = check_resumable(state, self.run, self.identity)
        except CheckpointError:
            if self.run.overwrite:
                return False
            raise
        with foreign(place, DAMAGED):
            self.state.restore(weights, training)
            self.progress = Progress(**state["progress"])
        if self.progress.variances:
            self._train_on(least(self.progress.variances))
        if self.progress.step < self.run.train.max_steps and not self._out_of_patience():
            self.progress = replace(self.progress, finished=False)  # it has been made longer
        return True

    # --- the steps ---

    def _steps(self) -> Iterator[Event]:
        run, first, last = self.run, self.progress.step, self.run.train.max_steps
        feed = MicroBatches(
            self.rows,
            Order(len(self.rows), run.seed),
            run.train.batch_size,
            run.train.gradient_accumulation_steps,
            self.world,
        )
        window = Window(self.progress.seconds)
        for batches in feed.steps(first, last, run.train.dataloader_num_workers):
            stepped = self._step(batches, window)
            yield stepped
            done = stepped.step == last
            if self._due(run.log.logging_steps, done):
                self._log(window.record(stepped))
                window = Window(self.progress.seconds)
            if self._searches():
                yield self._search(batches)
            if self.held_out and self._due(run.evaluate.eval_steps, done):
                yield self._evaluate(self.held_out)
                done = done or self._out_of_patience()
            if self._due(run.samples.sample_steps, done):
                yield self._sample()
            self.progress = replace(self.progress, finished=done)
            stopped = not done and self.world.any(self.stop())
            if stopped or self._due(run.train.save_steps, done):
                yield self._save()
            if stopped or done:
                return

    def _due(self, every: int, done: bool) -> bool:
        return bool(every) and (done or self.progress.step % every == 0)

    def _out_of_patience(self) -> bool:
        patience = self.run.evaluate.early_stopping_patience
        return 0 < patience <= self.progress.since_best

    def _step(self, batches: list[Batch], window: Window) -> Stepped:
        before, old = time.perf_counter(), self.progress
        totals = self.stepper(old.step, batches)
        self.progress = replace(
            old,
            step=old.step + 1,
            tokens=old.tokens + int(totals.count),
            seconds=old.seconds + time.perf_counter() - before,
        )
        window.seen.append(totals)
        tokens_per_second, seconds_per_step = window.rate(self.progress.seconds)
        return Stepped(
            step=self.progress.step,
            loss=totals.loss,
            bound=totals.bound / max(1, totals.count),
            accuracy=totals.correct / max(1, totals.corrupted),
            grad_norm=totals.grad_norm,
            learning_rate=self.state.optimizers[0].param_groups[0]["lr"],
            tokens=self.progress.tokens,
            tokens_per_second=tokens_per_second,
            seconds=self.progress.seconds,
            seconds_left=seconds_per_step * (self.run.train.max_steps - self.progress.step),
        )

    # --- between steps ---

    def _objective(self, interval: Interval | None = None) -> Objective:
        size = self.model.config.block_size
        return build_objective(self.run, self.corruption, size, interval)

    def _train_on(self, number: int) -> None:
        self.stepper = replace(self.stepper, objective=self._objective(INTERVALS[number]))

    def _searches(self) -> bool:
        """Also after the last step: the run may be made longer. Not while it learns next tokens."""
        options, step = self.run.objective, self.progress.step
        every = options.search_steps
        return bool(every) and step % every == 0 and step > options.next_token_steps

    @torch.no_grad()
    def _search(self, batches: list[Batch]) -> Searched:
        """From now on, train on the mask rates at which the loss varies least.

        What was found before counts as much as what these rows say: a few draws say little.
        """
        rng = Rng.from_seed(self.run.seed, device=self.world.device).fold(SEARCHES)
        step, kind, enabled = (
            self.progress.step,
            self.world.device.type,
            self.dtype != torch.float32,
        )
        objectives = [self._objective(interval) for interval in INTERVALS]
        self.scored.eval()
        with torch.autocast(kind, self.dtype, enabled=enabled):
            found = loss_variances(self.scored, objectives, batches, rng.fold(step), self.world)
        before = torch.tensor(self.progress.variances or found.tolist(), dtype=torch.float64)
        variances = ((before + found) / 2).tolist()
        self.progress = replace(self.progress, variances=variances)
        best = least(variances)
        self._train_on(best)
        deviation, whole = math.sqrt(variances[best]), math.sqrt(variances[0])
        low, high = INTERVALS[best]
        self._log(
            {
                "step": step,
                "interval_low": low,
                "interval_high": high,
                "interval_deviation": deviation,
                "whole_deviation": whole,
            }
        )
        return Searched(step, (low, high), deviation, whole)

    def _evaluate(self, rows: Rows | PairRows) -> Evaluated:
        """The bound on the first held-out rows, the same noise every time."""
        number = min(self.run.evaluate.rows, len(rows))
        measure = build_measure(self.run, self.corruption, number, self.model.config.block_size)
        self.scored.eval()
        with self._averaged():
            bound, scored = held_out_bound(
                self.scored, measure, rows, self.run, self.world, self.dtype
            )
        return self._judge(bound, scored)

    def _judge(self, bound: Estimate, scored: list[float]) -> Evaluated:
        """Log an evaluation, and keep the model if it is the best so far."""
        old = self.progress
        best = math.isfinite(bound.value) and (old.best is None or bound.value < old.best)
        self.progress = replace(
            old,
            best=bound.value if best else old.best,
            since_best=0 if best else old.since_best + 1,
        )
        accuracy = scored[0] / max(1, scored[1])
        self._log(
            {
                "step": old.step,
                "tokens": old.tokens,
                "seconds": old.seconds,
                "eval_bound": bound.value,
                "eval_error": bound.error,
                "eval_accuracy": accuracy,
            }
        )
        if best:
            self._publish()
        return Evaluated(old.step, bound.value, bound.error, accuracy, best)

    def _sample(self) -> Sampled:
        """Every process writes the same texts: sharded weights need all of them."""
        options, one_each = self.run.samples, self.run.objective.name == "next_token"
        lm = DiffusionLM(self.model, self.tokenizer, self._generation())
        self.scored.eval()
        with self._averaged():
            written = lm.generate(
                options.prompts,
                source=options.sources or None,
                length=options.length,
                num_steps=None if one_each else options.num_steps,
                temperature=options.temperature,
                seed=self.run.seed,
            )
        if self.metrics:
            with writing(self.run.output):
                self.metrics.write_samples(self.progress.step, written.full_texts)
        return Sampled(self.progress.step, written.full_texts)

    def _log(self, record: dict[str, float]) -> None:
        """Numbers only: an error over one row, for one, is none, and JSON has no nan."""
        if self.metrics:
            with writing(self.run.output):
                self.metrics.write({k: v for k, v in record.items() if math.isfinite(v)})

    def _averaged(self) -> AbstractContextManager:
        return self.state.average.applied() if self.state.average else nullcontext()

    # --- on the disk ---

    def _generation(self) -> GenerationOptions:
        return GenerationOptions(canvas=self.run.data.length, layout=self.run.data.layout)

    def _save(self) -> Saved:
        """A checkpoint; while none is the best one, its model is the run's model so far."""
        if self.progress.best is None:
            self._publish()
        weights, training = self.state.weights(), self.state.training()
        state = {
            "progress": asdict(self.progress),
            "run": self.run.model_dump(mode="json"),
            "identity": self.identity,
        }
        step = self.progress.step
        if self.world.first:
            self.checkpoints.save(step, state, training, lambda to: self._write_model(to, weights))
        if self.metrics:
            with writing(self.run.output):
                self.metrics.plot()
        return Saved(step, self.checkpoints.path(step))

    def _publish(self) -> None:
        """Make the weights of this moment the run's model."""
        weights = self.state.weights()
        if self.world.first:
            with published(self.run.output) as new:
                self._write_model(new, weights)

    def _write_model(self, folder: Path, weights: dict[str, Tensor]) -> None:
        """A plain Hugging Face model folder."""
        write_model(folder, self.model, weights, self.tokenizer)
        write_tokenizer(self.tokenizer, folder)
        ids = {f"{name}_token_id": value for name, value in asdict(self.special).items()}
        ids = {name: value for name, value in ids.items() if value is not None}
        write_generation_config(folder, self._generation(), **ids)
