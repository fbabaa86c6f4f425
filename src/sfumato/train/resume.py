"""May a run go on from this checkpoint? Only if it would have got there, or is made longer."""

from collections.abc import Mapping
from typing import Any

from sfumato.errors import CheckpointError
from sfumato.train.config import Run
from sfumato.train.optim import rate_factor

# What may change when a run goes on: it decides what is told and kept, or how a step is computed,
# never what a step does.
FREE = {
    "output",
    "overwrite",
    "samples",
    "log",
    "data.folder",  # the data's fingerprint is compared instead
    "evaluate.eval_steps",
    "evaluate.batch_size",
    "evaluate.early_stopping_patience",
    "train.gradient_accumulation_steps",
    "train.gradient_checkpointing",
    "train.torch_compile",
    "train.device",
    "train.parallel",
    "train.dataloader_num_workers",
    "train.save_steps",
    "train.save_total_limit",
}


RATE = {
    f"train.{key}"
    for key in ("max_steps", "warmup_steps", "decay_steps", "lr_scheduler_type", "min_lr_ratio")
}


def differences(old: Run, new: Run) -> dict[str, tuple[Any, Any]]:
    """Keys of two runs that differ and decide what a step does -> both values."""
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not _is_free(key)
    }


def _is_free(key: str) -> bool:
    return key in FREE or key.partition(".")[0] in FREE


def _flat(keys: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in keys.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def check_resumable(state: Mapping[str, Any], run: Run, identity: Mapping[str, str]) -> str:
    """Raise unless the steps behind a checkpoint are the steps that `run` would have taken.

    So settings of the learning rate may change as long as no past step's rate does. And max_steps
    may be raised: past steps stay as they were, the rate is that of the longer run from here on.
    Returns what is to be told of that.
    """
    for kind, mark in identity.items():
        if state["identity"][kind] != mark:
            raise CheckpointError(
                f"the checkpoint was trained on other {kind} (fingerprint "
                f"{state['identity'][kind]}, now {mark}); give the old {kind}, or another output"
            )
    old, step = Run.model_validate(state["run"]), state["progress"]["step"]
    changed = differences(old, run)
    same_rates = all(rate_factor(n, old.train) == rate_factor(n, run.train) for n in range(step))
    if same_rates:
        changed = {key: pair for key, pair in changed.items() if key not in RATE}
    elif set(changed) == {"train.max_steps"} and run.train.max_steps > old.train.max_steps:
        return (
            f"made longer, from {old.train.max_steps} to {run.train.max_steps} steps: the learning "
            f"rate is {rate_factor(step, run.train):.3g} of its peak from here on, where that of "
            f"the shorter run was {rate_factor(step - 1, old.train):.3g}"
        )
    if changed:
        listed = ", ".join(f"{key} {before!r} -> {now!r}" for key, (before, now) in changed.items())
        raise CheckpointError(
            f"{run.output} holds a run with other settings: {listed}; set them back to go on, "
            "choose another output (model.init_from starts from these weights), or overwrite=true"
        )
    return ""
