"""What each of two processes does, started by torchrun: python two_processes.py WORDS OUT."""

import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from small_runs import SEARCH, of_kind, run_all, small_run
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from sfumato.errors import CheckpointError, ConfigError, TrainingError
from sfumato.train import training
from sfumato.train.events import Evaluated, Interrupted, Saved, Searched, Stepped
from sfumato.train.trainer import Trainer
from sfumato.train.world import World

torch.set_num_threads(1)
words, out = Path(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo")
rank = dist.get_rank()
own = World(torch.device("cpu"), rank, 2)
OPTIONS = {"ema_decay": 0.5, "save_steps": 5}
MODEL = {"dropout": 0.2}


def agreed(value: float) -> bool:
    """Both processes have the same number."""
    both = [torch.zeros(1, dtype=torch.float64) for _ in range(2)]
    dist.all_gather(both, torch.tensor([value], dtype=torch.float64))
    return bool(torch.equal(both[0], both[1]))


for parallel, parts in (("replicate", 1), ("replicate", 2), ("shard", 2)):
    options = {**OPTIONS, "parallel": parallel, "gradient_accumulation_steps": parts}
    run = small_run(words, out / f"{parallel}-{parts}", train=options, model=MODEL)
    events = run_all(run)
    assert all(agreed(event.loss) for event in of_kind(events, Stepped))
    assert all(agreed(event.bound) for event in of_kind(events, Evaluated))

# both find the same interval of mask rates, and train on it
run = small_run(words, out / "searched", "train.max_steps=6", *SEARCH)
for event in of_kind(run_all(run), Searched):
    assert all(map(agreed, (*event.interval, event.deviation, event.whole_deviation)))

# sharded weights are in parts, and a run begun in one process goes on in two
trainer = Trainer(
    small_run(words, out / "begun", train={**OPTIONS, "parallel": "shard"}, model=MODEL), own
)
assert all(isinstance(param, DTensor) for param in trainer.model.parameters())
assert trainer.model.embed.weight.to_local().shape[0] == trainer.model.config.vocab_size // 2
resumed = of_kind(list(trainer.events()), Stepped)
assert [event.step for event in resumed] == [6, 7, 8, 9, 10]
trainer.close()

# one process is asked to stop: both save and end, and go on bit for bit
run = small_run(words, out / "stopped", train=OPTIONS, model=MODEL)
answers = iter([False] * 6 + [rank == 1])
events = list(training(run, lambda: next(answers)))
assert isinstance(events[-1], Interrupted)
assert events[-1].step == 7
assert of_kind(run_all(run), Stepped)[0].step == 8

# one process's loss is not finite: both stop at the same step, before a weight moves
(out / "poisoned").mkdir(exist_ok=True)
trainer = Trainer(small_run(words, out / "poisoned", train=OPTIONS), own)
events = trainer.events()
while not isinstance(next(events), Saved):
    pass
if rank == 1:
    with torch.no_grad():
        trainer.model.embed.weight.fill_(torch.nan)
with pytest.raises(TrainingError, match="at step 6 "):
    list(events)
trainer.close()

# one process was given another run
other = [[], ["train.learning_rate=0.1"]][rank]
trainer = Trainer(small_run(words, out / "other", *other, train=OPTIONS), own)
with pytest.raises(ConfigError, match="processes have different settings or data"):
    next(trainer.events())
trainer.close()

# one process does not see the checkpoints of the other
(out / "unseen").mkdir(exist_ok=True)
trainer = Trainer(small_run(words, out / ("poisoned", "unseen")[rank], train=OPTIONS), own)
with pytest.raises(CheckpointError, match="processes see different checkpoints"):
    next(trainer.events())
trainer.close()
# kept until after the group is destroyed, DDP's reducer may wait for gloo's thread for ever
assert isinstance(trainer.scored, DistributedDataParallel)
assert not hasattr(trainer.scored, "reducer")

with pytest.raises(ConfigError, match="must be a multiple of 2"):
    run_all(small_run(words, out / "odd", "train.batch_size=5"))
dist.destroy_process_group()
