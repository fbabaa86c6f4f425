"""The processes that train together, one per device: started by `torchrun` or `accelerate launch`.

Without a launcher there is one process, and every function here does nothing. A launcher says in
RANK, WORLD_SIZE and LOCAL_RANK (mpirun: in its own variables) which process this is, and in
MASTER_ADDR and MASTER_PORT where the first one listens, on whichever machine that is. Accelerate's
own `PartialState` is not used: without ACCELERATE_USE_CPU it leaves the processes of torchrun on
CPUs alone. What else `accelerate launch` asks for, `launch.py` reads.

All processes must see the same run and data, and the same output folder if the run is to go on; the
first one writes.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from accelerate.utils import get_cpu_distributed_information
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from sfumato.devices import find_device
from sfumato.errors import ConfigError
from sfumato.models.sharding import layers, networks_in


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

    def gather(self, number: int) -> list[int]:
        """The number of every process."""
        numbers = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        numbers[self.rank] = number
        return self.sum(numbers).tolist()

    def any(self, here: bool) -> bool:
        """Is it so in one process at least? All must ask."""
        return any(self.gather(here)) if self.size > 1 else here

    def agree(self, text: str) -> bool:
        """Have all processes the same text? All must ask."""
        digest = hashlib.blake2b(text.encode(), digest_size=7).digest()
        return len(set(self.gather(int.from_bytes(digest)))) == 1

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
        for model in networks_in(module):
            for layer in layers(model):
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            if getattr(model, "reads_source", False):
                register_fsdp_forward_method(model, "read")
        return module


def release(module: nn.Module) -> None:
    """Let go of the process group that DDP holds, before it is destroyed.

    DDP's reducer dies with the interpreter's lock in hand. Were it the group's last owner, it would
    wait for gloo's thread, and that for the lock: a deadlock after the last step (torch 2.13).
    """
    if isinstance(module, DistributedDataParallel):
        del module.logger, module.reducer


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
    place = get_cpu_distributed_information()  # despite its name, right for any device
    size, rank = place.world_size, place.rank
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if size > 1 and missing:
        raise ConfigError(
            f"this is process {rank} of {size}, but {' and '.join(missing)} is not set; "
            "start them with torchrun, or say where the first process listens"
        )
    own = find_device(device, place.local_rank)
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
