"""Timing on a GPU: the benchmarks' races with a device's clock, in plain calls and as CUDA graphs, and the roofs.

The benchmarks' own cases run here, on another device and in other dtypes, with their own checks. A contender's calls
are timed between two CUDA events: what a user waits for, launches included. Where a case may be captured, everybody's
call is timed once more as a CUDA graph: what is left when launches cost nothing.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from device_checks import tf32
from measure import ROUND_SECONDS, Clock, Laps, Peer, Run, Work, calls_in_a_round, machine_facts, seconds

from svg_fast.graphs import WARM_UP, Graphed

# Of the largest element, from inputs that are exact: four units in the last place, of results and of what is saved.
LOW_PRECISION = {torch.bfloat16: 4 * 2.0**-7, torch.float16: 4 * 2.0**-10}
ROUNDS = 7


def cuda_seconds(run: Run, calls: int) -> float:
    """Of one call, over so many in a row, by the device's clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def clock_of(device: torch.device) -> Clock:
    return cuda_seconds if device.type == "cuda" else seconds


def best_rate(run: Run, amount: float, device: torch.device) -> float:
    """Amount a second, the best of a few."""
    clock = clock_of(device)
    calls = calls_in_a_round(run, clock)
    return amount / min(clock(run, calls) for _ in range(5))


@dataclass(frozen=True)
class Roofs:
    """Measured in this run: bandwidth of a copy, bytes read and written a second; matrix products, FLOP/s; seconds
    from one small kernel to the next inside a CUDA graph, None where there are no graphs."""

    bandwidth: float
    matrix_rate: Mapping[str, float]
    graph_node: float | None

    def seconds(self, work: Work, dtype: torch.dtype) -> float:
        """What the work takes at these rates."""
        if work.roof == "memcpy":
            return work.amount / 4 * dtype.itemsize / self.bandwidth
        return work.amount / self.matrix_rate["float32" if dtype == torch.float32 else "bfloat16"]


def measure_roofs(device: torch.device, scale: float = 1.0) -> Roofs:
    """`scale` shrinks the tensors, in elements."""
    source = torch.empty(int(2**28 * scale), device=device)
    target = torch.empty_like(source)
    bandwidth = best_rate(lambda: target.copy_(source), 2.0 * source.nbytes, device)
    size = 32 * math.ceil(256 * scale**0.5)
    rates = {}
    for name, dtype, allowed in (
        ("float32", torch.float32, False),
        ("TF32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ):
        a, b = torch.rand(2, size, size, device=device, dtype=dtype)
        out = torch.empty_like(a)
        with tf32(allowed):
            rates[name] = best_rate(functools.partial(torch.mm, a, b, out=out), 2.0 * size**3, device)
    return Roofs(bandwidth, rates, graph_node_seconds(device))


def graph_node_seconds(device: torch.device, nodes: int = 200) -> float | None:
    if device.type != "cuda":
        return None
    x = torch.zeros(32, device=device)

    def chain() -> torch.Tensor:
        for _ in range(nodes):
            x.add_(1.0)
        return x

    run = graphed(chain, device)
    return None if isinstance(run, str) else cuda_seconds(run, 10) / nodes


def graphed(run: Run, device: torch.device) -> Run | str:
    """The call as a CUDA graph, captured and ready, or why it cannot be one."""
    if device.type != "cuda":
        return "no GPU"
    call = Graphed(run, device, "a contender")
    for _ in range(WARM_UP + 1):
        call()
    torch.cuda.synchronize()
    return "not captured" if call.graph is None else call


@dataclass
class DeviceRace:
    """What `measure.Race` is to the benchmarks, without pytest: times one case and keeps what it found in `row`.

    compiling: whether torch.compile may run, which takes its time. graphs: whether to time CUDA graphs of the calls
    too. quick: one round of one call.
    """

    device: torch.device
    dtype: torch.dtype
    roofs: Roofs | None
    compiling: bool = True
    graphs: bool = True
    quick: bool = False
    timed: bool = True
    left_out: dict[str, str] = field(default_factory=dict)
    row: dict[str, Any] = field(default_factory=dict)

    def tolerance(self, float32: float) -> float:
        return max(float32, LOW_PRECISION.get(self.dtype, 0.0))

    def compile(self, function: Callable[..., Any], peer: str = "torch.compile") -> Callable[..., Any] | None:
        if self.compiling:
            return torch.compile(function, dynamic=False)
        self.left_out[peer] = "not compiled in this case, to save time"
        return None

    def peak(self, make: Callable[..., Run], *arguments: Any) -> float | None:
        """MiB allocated at the most, less what was before: parameters, inputs, gradients and activations."""
        if self.device.type != "cuda":
            return None
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        run = make(*arguments)
        run()
        run()
        return (torch.cuda.max_memory_allocated(self.device) - before) / 2**20

    def __call__(
        self,
        ours: Run,
        peers: Mapping[str, Peer],
        *,
        check: Callable[[], None],
        ops: Iterable[str],
        work: Work | None = None,
        rounds: int = ROUNDS,
        **facts: Any,
    ) -> None:
        check()
        forms = {"call": self._time(ours, peers, 1 if self.quick else min(rounds, ROUNDS))}
        if self.graphs:
            forms["graph"] = self._as_graphs(ours, {name: peer for name, peer in peers.items() if callable(peer)})
        if work is not None and self.roofs is not None:
            floor = self.roofs.seconds(work, self.dtype)
            for form in forms.values():
                if "seconds" in form:
                    form["percent_of_roof"] = 100 * floor / form["seconds"]
        self.row = {
            "served_by": machine_facts(ops, self.device)["served_by"],
            "forms": forms,
            "left_out": self.left_out,
            **({"roof": work.roof, "work": work.amount} if work else {}),
            **facts,
        }

    def _as_graphs(self, ours: Run, peers: Mapping[str, Run]) -> dict[str, Any]:
        own = graphed(ours, self.device)
        if isinstance(own, str):
            return {"left_out": {"ours": own}}
        graphs = {name: graphed(run, self.device) for name, run in peers.items()}
        reasons = {name: graph for name, graph in graphs.items() if isinstance(graph, str)}
        captured = {name: graph for name, graph in graphs.items() if not isinstance(graph, str)}
        return self._time(own, captured, 1 if self.quick else ROUNDS) | {"left_out": reasons}

    def _time(self, ours: Run, peers: Mapping[str, Peer], rounds: int) -> dict[str, Any]:
        """Round by round, everybody once; ratios are the medians of the rounds'."""
        clock = clock_of(self.device)
        least = 0.0 if self.quick else ROUND_SECONDS
        laps, calls = Laps(peers, clock, least), calls_in_a_round(ours, clock, least)
        own = []
        for _ in range(rounds):
            laps.run()
            own.append(clock(ours, calls))
        return {"seconds": statistics.median(own), **laps.against(own)}
