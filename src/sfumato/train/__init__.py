"""Training: a run's settings, the loop, and what it tells."""

from sfumato.train.config import Run
from sfumato.train.run_file import dump_run, load_run
from sfumato.train.trainer import train

__all__ = ["Run", "dump_run", "load_run", "train"]
