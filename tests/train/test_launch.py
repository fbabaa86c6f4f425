"""What Accelerate's launcher asks for: as a setting of the run, or refused; never dropped."""

import pytest

from sfumato.errors import ConfigError
from sfumato.train import load_run
from sfumato.train.launch import launched
from sfumato.train.world import joined

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
INDUCTOR = {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}
SILENT = {  # of `accelerate launch` without a flag
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_USE_CPU": "False",
    "ACCELERATE_DYNAMO_BACKEND": "NO",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "False",
    "ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION": "False",
}


def run(*overrides):
    return load_run({"output": "out", "data": {"folder": "data"}}, overrides)


@pytest.mark.parametrize(
    ("environment", "own", "then"),
    [
        ({}, (), ()),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "x"}, (), ()),
        (SILENT, (), ["train.precision=fp32"]),
        (SILENT, ["train.precision=bf16"], ["train.precision=bf16"]),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, (), ["train.precision=bf16"]),
        ({"ACCELERATE_USE_CPU": "True"}, (), ["train.device=cpu"]),
        (INDUCTOR, (), ["train.torch_compile=true"]),
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            ["seed=3"],
            ["seed=3", "train.gradient_accumulation_steps=4"],
        ),
        (FSDP, (), ["train.parallel=shard"]),
        (
            {
                **FSDP,
                "FSDP_ACTIVATION_CHECKPOINTING": "true",
                "FSDP_RESHARD_AFTER_FORWARD": "true",
                "FSDP_OFFLOAD_PARAMS": "false",
                "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
                "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
                "FSDP_SHARDING_STRATEGY": "FULL_SHARD",
            },
            (),
            ["train.parallel=shard", "train.gradient_checkpointing=true"],
        ),
        ({"ACCELERATE_USE_FSDP": "false", "FSDP_VERSION": "1"}, (), ()),
    ],
)
def test_what_a_run_has_a_setting_for_becomes_it(environment, own, then):
    assert launched(run(*own), environment) == run(*then)


@pytest.mark.parametrize(
    ("environment", "own", "message"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, (), r"FSDP_VERSION=1, and only 2 works"),
        ({**FSDP, "FSDP_OFFLOAD_PARAMS": "true"}, (), r"FSDP_OFFLOAD_PARAMS=true, and only false"),
        ({**FSDP, "FSDP_RESHARD_AFTER_FORWARD": "false"}, (), r"RESHARD_AFTER_FORWARD=false"),
        ({**FSDP, "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, (), r"only FULL_STATE_DICT"),
        ({**FSDP, "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block"}, (), r"one by one anyway"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, (), r"DeepSpeed is not used here; FSDP2"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, (), r"Megatron-LM is not used"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, (), r"copied or sharded"),
        ({"ACCELERATE_CPU_AFFINITY": "1"}, (), r"--numa-binding"),
        ({"ACCELERATE_MIXED_PRECISION": "fp16"}, (), r"fp16 is not supported.*bf16 or no"),
        ({"ACCELERATE_MIXED_PRECISION": "fp8"}, (), r"fp8 is not supported"),
        (
            {"ACCELERATE_MIXED_PRECISION": "bf16"},
            ["train.precision=fp32"],
            r"wants train.precision=bf16, the run says fp32",
        ),
        (
            {"ACCELERATE_USE_CPU": "true"},
            ["train.device=cuda"],
            r"wants train.device=cpu, the run says cuda",
        ),
        ({**INDUCTOR, "ACCELERATE_DYNAMO_MODE": "max-autotune"}, (), r"MODE=max-autotune"),
        ({"ACCELERATE_DYNAMO_BACKEND": "EAGER"}, (), r"BACKEND=EAGER, and only INDUCTOR"),
        (
            {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"},
            ["train.gradient_accumulation_steps=2"],
            r"wants train.gradient_accumulation_steps=4, the run says 2",
        ),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "5"}, (), r"64 must be a multiple of"),
        ({**SILENT, "MASTER_ADDR": "127.0.0.1"}, (), r"several processes and started one"),
    ],
)
def test_what_a_run_has_no_setting_for_is_refused(environment, own, message):
    with pytest.raises(ConfigError, match=message):
        launched(run(*own), environment)


def test_processes_that_cannot_meet_are_refused(monkeypatch):
    for name, value in {"PMI_RANK": "1", "PMI_SIZE": "2", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match=r"process 1 of 2, but MASTER_ADDR is not set"), joined():
        pass
