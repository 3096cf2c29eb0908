"""A function run by several processes that form a gloo group, as a training over many machines would run it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Result = TypeVar("Result")

# A server imports these once; the processes are forked from it, before any thread is started.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["svg_fast", "torch.distributed", "torch._dynamo"])


def in_processes(count: int, function: Callable[..., Result], *arguments: Any, limit: float = 60.0) -> list[Result]:
    """function(*arguments) in each of `count` processes of the default group -> the results, by rank.

    The function is one of a module's own, arguments and results can be pickled; `dist.get_rank()` tells the processes
    apart. Each has one thread.

    Raises RuntimeError with its traceback where one process fails, TimeoutError where they take longer than `limit`
    seconds. No process is left behind.
    """
    deadline = time.monotonic() + limit
    job = pickle.dumps((function, arguments))  # not as multiprocessing would: it shares memory that may be gone
    processes: list[BaseProcess] = []
    ranks: dict[Any, int] = {}
    results: dict[int, Result] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(count):
                receiver, sender = _CONTEXT.Pipe(duplex=False)
                where = (rank, count, str(Path(folder) / "store"), limit)
                processes.append(_CONTEXT.Process(target=_work, args=(sender, job, *where), daemon=True))
                processes[-1].start()
                sender.close()  # so that a process that dies without a word ends the pipe
                ranks[receiver] = rank
            while len(results) < count:
                ready = wait([link for link, rank in ranks.items() if rank not in results], deadline - time.monotonic())
                if not ready:
                    raise TimeoutError(f"of {count} processes {count - len(results)} did not end in {limit:g} seconds")
                for link in ready:
                    results[ranks[link]] = _received(link, ranks[link])
        finally:
            for process in processes:
                process.kill()
                process.join()
    return [results[rank] for rank in range(count)]


def _received(link: Any, rank: int) -> Any:
    try:
        fails, result = pickle.loads(link.recv_bytes())
    except EOFError:
        raise RuntimeError(f"process {rank} died without a word") from None
    if fails:
        raise RuntimeError(f"process {rank} failed:\n{result}")
    return result


def _work(sender: Connection, job: bytes, rank: int, count: int, store: str, limit: float) -> None:
    """Ends without Python's own ending, in which gloo's threads may hang."""
    try:
        torch.set_num_threads(1)
        function, arguments = pickle.loads(job)
        # collectives give up first, and tell where
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=count,
            timeout=timedelta(seconds=limit / 2),
        )
        answer = pickle.dumps((False, function(*arguments)))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        answer = pickle.dumps((True, traceback.format_exc()))
    sender.send_bytes(answer)
    os._exit(0)
