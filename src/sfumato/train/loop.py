"""A run from its start, or from where it stopped: to its end, or event by event."""

import os
from collections import deque
from collections.abc import Callable, Generator
from contextlib import nullcontext

from sfumato.train.checkpoint import locked
from sfumato.train.config import Run
from sfumato.train.events import Event, Finished, Interrupted
from sfumato.train.launch import launched
from sfumato.train.trainer import Trainer, never
from sfumato.train.world import joined


def train(run: Run, stop: Callable[[], bool] = never) -> Finished | Interrupted:
    """Train to the end, in silence; the model is then in `run.output`. Returns how it ended.

    The same run given again goes on from its newest checkpoint, to the same result to the bit,
    and does nothing if it is finished. After every step `stop` is asked whether to save and end
    there; if it says so in one process, all of them do.
    """
    last = deque(training(run, stop), maxlen=1).pop()
    assert isinstance(last, Finished | Interrupted), "a run ends with one of them"
    return last


def training(run: Run, stop: Callable[[], bool] = never) -> Generator[Event, None, None]:
    """The events of `train`, each as it happens: nothing is done before the first is asked for.

    The last one is Finished or Interrupted. Closing the iterator ends the run without saving.
    """
    run = launched(run, os.environ)
    with joined(run.train.device) as world, locked(run.output) if world.first else nullcontext():
        trainer = Trainer(run, world, stop)
        try:
            yield from trainer.events()
        finally:
            trainer.close()
