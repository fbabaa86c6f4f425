"""The processes that train together, one per device: started by `torchrun` or `accelerate launch`.

Without a launcher there is one process, and every function here does nothing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from sfumato.devices import find_device
from sfumato.errors import ConfigError


@dataclass(frozen=True)
class World:
    """This process among all of them."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """The one process that writes and prints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, for all of them."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def spread(self, module: nn.Module, parallel: str) -> nn.Module:
        """The module on this device, gradients averaged over all processes after backward passes.

        "replicate" keeps all weights in every process (DDP), "shard" a part in each (FSDP2).
        """
        module = module.to(self.device)
        if self.size == 1:
            return module
        if parallel == "replicate":
            return DistributedDataParallel(module)
        mesh = init_device_mesh(self.device.type, (self.size,))
        for model in [m for m in module.modules() if isinstance(m, PreTrainedModel)]:
            for layer in layers(model):
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        return module


def release(module: nn.Module) -> None:
    """Let go of the process group that DDP holds, before it is destroyed.

    DDP's reducer dies with the interpreter's lock in hand. Were it the group's last owner, it would
    wait for gloo's thread, and that for the lock: a deadlock after the last step (torch 2.13).
    """
    if isinstance(module, DistributedDataParallel):
        del module.logger, module.reducer


def layers(model: PreTrainedModel) -> list[nn.Module]:
    """The repeated parts of a network, which are sharded one by one."""
    kinds = model._no_split_modules or ()
    return [module for module in model.modules() if type(module).__name__ in kinds]


def reshard(model: nn.Module) -> None:
    """Put back the shards that the optimizers know: a forward pass alone leaves whole weights."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, if this process holds a part of it; then every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that all of them hold, if `like` is sharded."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """Join the other processes, on this process's own device, until the context ends."""
    for variable in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        if os.environ.get(variable, "false").lower() == "true":
            raise ConfigError(
                f"{variable} is set, but how weights are spread is the run's own setting; "
                "launch without it and set train.parallel=shard"
            )
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    own = find_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if own.index is not None:
        torch.accelerator.set_device_index(own.index)
    begun = size > 1 and not dist.is_initialized()
    if begun:
        backend = dist.get_default_backend_for_device(own)
        dist.init_process_group(backend, rank=rank, world_size=size)
    try:
        yield World(own, rank, size)
    finally:
        if begun:
            dist.destroy_process_group()


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it faster than float32, else float32."""
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        able = torch.cpu.get_capabilities()
        fast = bool(able.get("amx_bf16") or able.get("avx512_bf16"))
    else:
        fast = False
    return torch.bfloat16 if fast else torch.float32
