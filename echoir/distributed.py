"""Several processes training one network, started by torchrun; PyTorch's own package does the talking."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: of this one; 0 writes the files.
        size: how many there are.
        device: of this one.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its mean over the processes, in one message."""
        if self.size > 1:
            message = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.all_reduce(message)
            message /= self.size
            for tensor, part in zip(tensors, message.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def agreed(self, value: float) -> float:
        """A number that the first process knows, given to all."""
        if self.size == 1:
            return value
        message = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(message, 0)
        return float(message)


ALONE = World()


def join(device: str) -> World:
    """Join the run that torchrun started this process for; a world of one without torchrun.

    Args:
        device: ``"cpu"``, or ``"cuda"`` for the GPU of this process's number.
    """
    if "WORLD_SIZE" not in os.environ:
        return World(device=device)
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return World(dist.get_rank(), dist.get_world_size(), device)


def leave() -> None:
    """End what :func:`join` began."""
    if dist.is_initialized():
        dist.destroy_process_group()
