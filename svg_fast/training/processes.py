"""The processes of a run: one, or those that torchrun started, and what they must agree on.

A step's clips are shared out over world_size processes, in each over `accumulate` parts. Gradients are averaged over
processes, so a part's loss, a mean over its clips, counts with (its clips / all clips) * world_size: what is optimised
is the mean over all clips of the step, also where the shares differ by a clip.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

_TIMEOUT = timedelta(minutes=30)  # rank 0 draws pictures meanwhile


@dataclass(frozen=True)
class Part:
    """Clips first .. last - 1 of a step's, and how much their mean loss counts."""

    first: int
    last: int
    weight: float


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is; `group` is None where there is one."""

    rank: int = 0
    world_size: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def leads(self) -> bool:
        """Whether this one writes files and says how it goes."""
        return self.rank == 0

    def parts(self, batch_size: int, accumulate: int = 1) -> list[Part]:
        """This process's parts of a step: consecutive clips, all parts of all processes about equally large."""
        n_parts = self.world_size * accumulate
        edges = [batch_size * k // n_parts for k in range(n_parts + 1)]
        own = range(self.rank * accumulate, (self.rank + 1) * accumulate)
        return [Part(edges[k], edges[k + 1], (edges[k + 1] - edges[k]) * self.world_size / batch_size) for k in own]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes, in place."""
        if self.group is not None:
            dist.all_reduce(values, group=self.group)
            values.div_(self.world_size)
        return values

    def agree(self, losses: Tensor, *flags: bool) -> tuple[list[float], list[bool]]:
        """The losses over all clips of the step, and of each flag whether any process raised it; read back once."""
        values = self.mean(torch.cat((losses, losses.new_tensor(flags)))).tolist()
        return values[: len(losses)], [value > 0 for value in values[len(losses) :]]

    def barrier(self) -> None:
        """Until all have come here."""
        if self.group is not None:
            dist.barrier(group=self.group)

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """Rank 0 goes through the body before the others do."""
        if not self.leads:
            self.barrier()
        yield
        if self.leads:
            self.barrier()

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.group is None:
            return flag
        values: list[bool] = [False] * self.world_size
        dist.all_gather_object(values, flag, group=self.group)
        return any(values)

    def from_leader(self, value: str) -> str:
        """What rank 0 says."""
        values = [value]
        if self.group is not None:
            dist.broadcast_object_list(values, 0, group=self.group)
        return values[0]


def restarted() -> bool:
    """Whether torchrun has started these processes again, after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def local_device(name: str | None) -> str | None:
    """The device of this process: of several GPUs, that of its number on this machine."""
    several = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1
    on_gpu = name == "cuda" or (name is None and torch.cuda.is_available())
    return f"cuda:{os.environ['LOCAL_RANK']}" if several and on_gpu else name


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The processes of this run: those that torchrun started, over NCCL or gloo, or this one alone.

    ConnectionError in the body where another one of them has ended, as far as gloo notices.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield Processes()
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        _join(backend)
        group = dist.group.WORLD
        # Gloo's destructor waits for its threads with the interpreter's lock, which one of them may want: it never runs
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
        yield Processes(dist.get_rank(), dist.get_world_size(), group)
    except RuntimeError as error:
        if "gloo/transport" not in str(error):  # gloo has no class of error for it
            raise
        raise ConnectionError("another process of this run has ended, which this one cannot do without") from error
    # not after an error: it would wait for processes that are still in a collective
    dist.destroy_process_group()


def _join(backend: str) -> None:
    """Make the default group; of processes on one machine, apart from what torchrun's store still tells of dead ones.

    That store serves all starts of a run's workers, and has their addresses. Several machines each count their own
    restarts; there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes a store for each start.
    """
    store, rank, world_size = next(rendezvous("env://", timeout=_TIMEOUT))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world_size):
        store = PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=_TIMEOUT)
