"""What a run finds in its folder: a model of its own, or of another run."""

from dataclasses import dataclass

from sfumato.errors import CheckpointError
from sfumato.storage.files import read_text
from sfumato.train.checkpoint import DAMAGED
from sfumato.train.config import Run
from sfumato.train.log import read_records
from sfumato.train.run_file import dump_run


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run's output."""

    run: Run

    @property
    def written(self) -> str:
        """The run as its folder keeps it: whoever gives it again wants it to go on."""
        return dump_run(self.run.model_copy(update={"overwrite": False}))

    @property
    def holds_model(self) -> bool:
        """Whether there is a model, of whatever run."""
        return (self.run.output / "model.safetensors").exists()

    @property
    def is_written(self) -> bool:
        """Whether it is this run that the folder keeps."""
        try:
            return read_text(self.run.output / "run.yaml", DAMAGED) == self.written
        except CheckpointError:
            return False

    @property
    def is_own(self) -> bool:
        """Whether the folder's model is of this run, ended before its first checkpoint."""
        records = read_records(self.run.output / "metrics.jsonl")
        finished = records[-1:] == [] or records[-1]["step"] >= self.run.train.max_steps
        return self.is_written and not finished
