"""The processes that hold one model together, as one of them sees it: which it is, and what they compute jointly.

Every method that computes must be called by all ranks in the same order. Knows no model, nor who started whom.
"""

import os
import socket
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

LOOPBACK = "127.0.0.1"
TIMEOUT = timedelta(minutes=30)
"""Of one joint operation: ranks may be this far apart, as while they read weights. Lost ones are noticed otherwise."""
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}


@dataclass(frozen=True, slots=True)
class Ranks:
    """`size` processes with a part of the model each; this one is number `rank`, and computes on `device`."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this is the rank that the others follow."""
        return self.rank == 0

    def share(self, length: int) -> int:
        """How many of `length` a rank holds; the last one may hold fewer."""
        return -(-length // self.size)

    def span(self, length: int) -> slice:
        """Which of `length` this rank holds: a run of `share`, in the order of ranks."""
        share = self.share(length)
        return slice(min(length, self.rank * share), min(length, (self.rank + 1) * share))

    def add(self, tensor: Tensor) -> Tensor:
        """The sum of all ranks' tensors, which replaces each of them."""
        dist.all_reduce(tensor)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        """[..., N] of each rank side by side, [..., size * N]."""
        tensor = tensor.contiguous()
        gathered = tensor.new_empty((self.size, *tensor.shape))
        dist.all_gather(list(gathered), tensor)
        return gathered.movedim(0, -2).flatten(-2)

    def smallest(self, *values: int) -> tuple[int, ...]:
        """The smallest that any rank has of each value."""
        tensor = torch.tensor(values, dtype=torch.int64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return tuple(tensor.tolist())


class Meeting:
    """Where the ranks find each other: a store on a free port of the loopback alone. Held by the leader."""

    def __init__(self, size: int) -> None:
        listener = socket.create_server((LOOPBACK, 0))
        self.port: int = listener.getsockname()[1]
        self._store = dist.TCPStore(  # type: ignore[attr-defined]
            LOOPBACK, self.port, size, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )


def join(rank: int, size: int, device: torch.device, port: int) -> Ranks:
    """Meet the others at `port`; returns when all have come. `leave` ends it. The start takes `device`."""
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    os.environ.setdefault("NCCL_SOCKET_IFNAME", loopback)
    store = dist.TCPStore(LOOPBACK, port, size, is_master=False, timeout=TIMEOUT)  # type: ignore[attr-defined]
    dist.init_process_group(BACKENDS[device.type], store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    return Ranks(rank, size, device)


def leave() -> None:
    """Give up what `join` made, if it did."""
    if dist.is_initialized():
        dist.destroy_process_group()
