"""What `accelerate launch` asks for, as settings of the run.

Accelerate hands its flags and its config file on as environment variables. What a run has a setting
for becomes that setting, where the run leaves it at its default; what it has none for is refused,
never dropped. torchrun sets none of these.
"""

from collections.abc import Mapping

from sfumato.errors import ConfigError
from sfumato.train.config import Run
from sfumato.train.run_file import load_run

# Variables that are refused if set, and what to do instead.
REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed is not used here; FSDP2 shards weights and what the "
    "optimizers remember: --use_fsdp --fsdp_version 2, or train.parallel=shard",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM is not used here; try train.parallel=shard",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "weights are copied or sharded over all processes, no "
    "other way; try train.parallel=shard",
    "ACCELERATE_CPU_AFFINITY": "bind processes with torchrun --numa-binding or numactl",
}
# What Accelerate's settings of FSDP must be, if they are there: what `World.spread` does.
SHARDING = {
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD": "false",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}
# And those of compilation: what `train.torch_compile` does.
COMPILING = {
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
}


def launched(run: Run, environment: Mapping[str, str]) -> Run:
    """The run as Accelerate's launcher wants it; without that launcher, as it is."""
    for name, advice in REFUSED.items():
        if _true(environment, name):
            raise ConfigError(f"{name} is set, and has no counterpart in a run: {advice}")
    if (
        "ACCELERATE_MIXED_PRECISION" in environment
        and "MASTER_ADDR" in environment
        and not {"WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"}
        & set(environment)
    ):
        raise ConfigError(
            "accelerate launch was asked for several processes and started one: on CPUs it leaves "
            "the others to mpirun; use torchrun --nproc-per-node N -m sfumato train RUN.yaml, or "
            "accelerate launch --multi_gpu, which starts processes on CPUs too (or unset "
            "MASTER_ADDR, to train in one process)"
        )
    wanted: dict[str, str] = {}
    if _true(environment, "ACCELERATE_USE_CPU"):
        wanted["device"] = "cpu"
    wanted |= _precision(environment.get("ACCELERATE_MIXED_PRECISION", "").lower(), run)
    if environment.get("ACCELERATE_DYNAMO_BACKEND", "NO").upper() != "NO":
        _demand(environment, COMPILING)
        wanted["torch_compile"] = "true"
    if "ACCELERATE_GRADIENT_ACCUMULATION_STEPS" in environment:
        steps = environment["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"]
        wanted["gradient_accumulation_steps"] = steps
    if _true(environment, "ACCELERATE_USE_FSDP"):
        _demand({"FSDP_VERSION": "1", **environment}, SHARDING)
        if "FSDP_TRANSFORMER_CLS_TO_WRAP" in environment:
            raise ConfigError(
                "FSDP_TRANSFORMER_CLS_TO_WRAP is set, but the layers of every network here are "
                "sharded one by one anyway; leave it out"
            )
        wanted["parallel"] = "shard"
        if _true(environment, "FSDP_ACTIVATION_CHECKPOINTING"):
            wanted["gradient_checkpointing"] = "true"
    return _with(run, wanted)


def _true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("1", "true", "yes", "on")


def _precision(asked: str, run: Run) -> dict[str, str]:
    """ "no" is also what Accelerate says when it was told nothing: a run's own word goes first."""
    if asked in ("fp16", "fp8"):
        raise ConfigError(
            f"mixed precision {asked} is not supported: its small range needs scaled losses, "
            "bf16 does not; launch with --mixed_precision bf16 or no"
        )
    if asked == "no":
        return {"precision": "fp32"} if run.train.precision == "auto" else {}
    return {"precision": asked} if asked else {}


def _demand(environment: Mapping[str, str], settings: Mapping[str, str]) -> None:
    for name, only in settings.items():
        got = environment.get(name, only)
        if got.lower() != only.lower():
            raise ConfigError(
                f"accelerate launch set {name}={got}, and only {only} works here; "
                f"launch with that, or leave the setting out"
            )


def _with(run: Run, wanted: Mapping[str, str]) -> Run:
    """The run with some of its `train` settings changed, if they were left at their defaults."""
    own = run.model_dump(mode="json", exclude_none=True)
    usual = {name: field.default for name, field in type(run.train).model_fields.items()}
    changed = load_run(own, [f"train.{name}={value}" for name, value in wanted.items()])
    for name in wanted:
        before, after = getattr(run.train, name), getattr(changed.train, name)
        if before not in (usual[name], after):
            raise ConfigError(
                f"accelerate launch wants train.{name}={after}, the run says {before}; "
                "leave it out in one of the two places"
            )
    return changed
