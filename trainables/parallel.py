"""A trial trained by several processes at once: who they are, and which part of model and data each has."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

Parallelism = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class Group:
    """The processes that train a trial together, of which this is one.

    The default process group of ``torch.distributed`` joins them. Each drives the same trial, in step with
    the others; only rank 0 writes files.
    """

    rank: int = 0
    size: int = 1
    parallelism: Parallelism = "ddp"  # each holds the whole model, or (fsdp) a part of every parameter

    @property
    def shards_model(self) -> bool:
        return self.size > 1 and self.parallelism == "fsdp"


ALONE = Group()


def spread(model: nn.Module, group: Group, device: torch.device, in_parts: bool = False) -> nn.Module:
    """Put a model on its devices, in place, and return the module to take training steps with.

    A step's gradient is then the mean of the ranks' gradients.

    Arguments:
        model: the same on every rank.
        group: the ranks.
        device: this rank's.
        in_parts: whether a step adds up the gradients of several backward passes.
    """
    if group.shards_model:
        _shard(model, group, device)
        return model
    model.to(device)
    if group.size == 1:
        return model
    # All ranks have made the same model from the same seed, and must not write to shared weights. A model may
    # have parameters that no step uses: finding them once is cheapest, but needs an exchange in the first
    # backward pass.
    return DistributedDataParallel(
        model,
        init_sync=False,
        forward_sync_buffers=False,
        static_graph=not in_parts,
        find_unused_parameters=in_parts,
    )


def _shard(model: nn.Module, group: Group, device: torch.device) -> None:
    """Give each rank a part of every parameter, one block of the model after another (FSDP2)."""
    mesh = init_device_mesh(device.type, (group.size,))
    blocks = set(getattr(model, "_no_split_modules", None) or ())
    for module in list(model.modules()):
        if type(module).__name__ in blocks:
            fully_shard(module, mesh=mesh)
    # By default the rest would stay whole after a forward pass, but saving and loading need parts.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def without_exchange(model: nn.Module) -> AbstractContextManager[None]:
    """Keep a model that :func:`spread` returned from exchanging gradients that more will be added to.

    FSDP exchanges them anyway, as a rank has no room for those of the whole model.
    """
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def total(tensor: torch.Tensor, group: Group, device: torch.device) -> torch.Tensor:
    """Return the sum of the ranks' tensors, on the tensor's device; ranks exchange it through ``device``."""
    if group.size == 1:
        return tensor
    shared = tensor.to(device, copy=True)
    dist.all_reduce(shared)
    return shared.to(tensor.device)


def of_all_ranks(tensor: torch.Tensor, group: Group, device: torch.device) -> list[torch.Tensor]:
    """Return every rank's tensor, all of one shape, in the order of ranks."""
    if group.size == 1:
        return [tensor]
    shared = tensor.to(device)
    gathered = [torch.empty_like(shared) for _ in range(group.size)]
    dist.all_gather(gathered, shared)
    return [one.to(tensor.device) for one in gathered]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole of a tensor of which each rank has a part; all ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own_part(tensor: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """Return this rank's part of a whole parameter of a model, on the model's device."""
    first = next(model.parameters())
    if not isinstance(first, DTensor):
        return tensor
    # Every rank has the whole, so nothing need be sent.
    return distribute_tensor(tensor.to(first.device), first.device_mesh, [Shard(0)], src_data_rank=None)
