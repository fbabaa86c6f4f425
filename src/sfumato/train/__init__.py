"""Training: a run's settings, the loop, and what it tells."""

from sfumato.train.config import Run
from sfumato.train.loop import train, training
from sfumato.train.run_file import dump_run, load_run

__all__ = ["Run", "dump_run", "load_run", "train", "training"]
