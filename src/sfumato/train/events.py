"""What training tells while it runs; the command line draws it, a notebook prints it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Started:
    """Before the first step."""

    step: int  # steps already done: more than 0 if an interrupted run goes on
    max_steps: int
    num_weights: int
    num_rows: int
    num_processes: int
    device: str
    precision: str
    note: str = ""  # what is to be known of how it goes on


@dataclass(frozen=True)
class Stepped:
    """After every step."""

    step: int  # steps done
    loss: float  # nats per trainable token, as trained
    bound: float  # nats per trainable token at this step's noise, very noisy; nan: no bound
    accuracy: float  # of the scored positions
    grad_norm: float  # before clipping
    learning_rate: float
    tokens: int  # trainable ones of the run so far
    tokens_per_second: float  # since the last logged step
    seconds: float  # spent in steps so far
    seconds_left: float


@dataclass(frozen=True)
class Evaluated:
    """After an evaluation of the held-out rows."""

    step: int
    bound: float  # nats per trainable token
    error: float  # its standard error over the rows
    accuracy: float
    best: bool


@dataclass(frozen=True)
class Searched:
    """The interval of mask rates that is trained on from now on: the loss varies least there."""

    step: int
    interval: tuple[float, float]
    deviation: float  # of a step's loss by its noise, nats per trainable token
    whole_deviation: float  # with all mask rates


@dataclass(frozen=True)
class Sampled:
    """Texts that the model wrote."""

    step: int
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on the disk."""

    step: int
    path: Path


@dataclass(frozen=True)
class Finished:
    """The run is done; the model is in its output folder."""

    step: int
    path: Path
    best: float | None  # the lowest held-out bound
    stopped_early: bool


@dataclass(frozen=True)
class Interrupted:
    """The run stops before its end, because it was asked to; given again, it goes on."""

    step: int
    path: Path  # of the checkpoint


Event = Started | Stepped | Evaluated | Searched | Sampled | Saved | Finished | Interrupted
