"""How a figure is made: ours and its peers timed in turn, against the roof of the same run, and refused where wrong.

A round times every contender once, one after another, so that a machine whose speed drifts slows all of them; a ratio
is the median of the rounds' ratios. Before anything is timed the case's own check runs, and its failure is the row's.

A row of the JSON carries, as `extra_info`: served_by (kernel or reference, for each op), the kernels' and PyTorch's own
instruction set, threads; gflop or bytes of the work, the roof it is held against, and percent_of_floor, the share of
its time that the work would take at that rate (effective_percent where the work is counted as the peer does it and
ours saves a part); for each peer peer_seconds, times_as_fast (theirs by ours) and, where a peer may choose among forms,
chosen; left_out, the peers that could not be had and why. A training step has peak_mib as well.
"""

from __future__ import annotations

import functools
import importlib
import math
import multiprocessing
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from svg_fast import backend

Run = Callable[[], object]
# A peer's passes, each by whichever of its named forms is faster; a single call where there is nothing to choose.
Peer = Run | Sequence[Mapping[str, Run]]
Clock = Callable[[Run, int], float]  # seconds of one call, over so many in a row

CPU = torch.device("cpu")
ROUND_SECONDS = 0.02  # a contender's calls in a round last at least this long: far above the clock's and call's cost
ROUNDS, QUICK_ROUNDS = 30, 2


@dataclass(frozen=True)
class Work:
    """What a call must do at the least: floating-point operations, or bytes read and written, each tensor once.

    Work `of_peer`, counted as the peer does it, is more than that: ours saves a part.
    """

    roof: Literal["sgemm", "memcpy"]
    amount: float
    of_peer: bool = False

    def facts(self, seconds: float) -> dict[str, Any]:
        """What a row says of work done in so many seconds."""
        rate = roof_per_second(self.roof, torch.get_num_threads())
        percent = {"effective_percent" if self.of_peer else "percent_of_floor": 100 * self.amount / rate / seconds}
        amount = {"gflop": self.amount / 1e9} if self.roof == "sgemm" else {"bytes": self.amount}
        return {"roof": self.roof, "roof_per_second": rate, **percent, **amount}


def flop(multiply_adds: float, of_peer: bool = False) -> Work:
    """Work of so many multiplications with an addition each."""
    return Work("sgemm", 2 * multiply_adds, of_peer)


def traffic(elements: float) -> Work:
    """Work of reading or writing so many float32 elements."""
    return Work("memcpy", 4 * elements)


@functools.cache
def roof_per_second(name: Literal["sgemm", "memcpy"], threads: int) -> float:
    """FLOP of a float32 matrix product, or bytes read and written by a copy: the best of a few, with so many threads.

    Measured once a run for each number of threads; both are larger than the caches.
    """
    assert threads == torch.get_num_threads()
    if name == "sgemm":
        size = 2048
        a, b, c = torch.rand(3, size, size)
        run, amount = (lambda: torch.mm(a, b, out=c)), 2.0 * size**3
    else:
        source = torch.rand(2**26)
        target = torch.empty_like(source)
        run, amount = (lambda: target.copy_(source)), 2.0 * source.nbytes
    run()
    return amount / min(seconds(run) for _ in range(8))


def seconds(run: Run, calls: int = 1) -> float:
    """Of one call, over so many in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / calls


def calls_in_a_round(run: Run, clock: Clock = seconds, least: float = ROUND_SECONDS) -> int:
    """Warm up, and count the calls that make a round long enough."""
    run()
    calls = 1
    while (lasted := calls * clock(run, calls)) < least:
        calls = max(calls + 1, math.ceil(1.2 * calls * least / lasted))
    return calls


@functools.cache
def inductor_error() -> str | None:
    """Why torch.compile does not work here (it needs a C++ compiler when it runs), or None where it does."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8))
    except RuntimeError as error:
        return f"torch.compile: {str(error).strip().splitlines()[0]}"
    return None


class Race:
    """Times one case of a benchmark; call it once, as the last thing of a test."""

    device, dtype = CPU, torch.float32

    def __init__(self, benchmark: Any, quick: bool = False) -> None:
        self.benchmark, self.quick = benchmark, quick
        self.left_out: dict[str, str] = {}

    def tolerance(self, float32: float) -> float:
        """The bound of errors in this race's dtype, given that of float32."""
        return float32

    @property
    def timed(self) -> bool:
        """Whether this run times anything (not under --benchmark-disable)."""
        return not self.benchmark.disabled

    def peak(self, make: Callable[..., Run], *arguments: Any) -> float | None:
        """MiB that `make(*arguments)` and two calls of what it gives take at the most."""
        return peak_mib(make, *arguments)

    def compile(self, function: Callable[..., Any], peer: str = "torch.compile") -> Callable[..., Any] | None:
        """`function` under torch.compile for fixed shapes; None, and the reason among the row's facts, where not."""
        reason = inductor_error() if self.timed else "a run without timing"
        if reason is None:
            return torch.compile(function, dynamic=False)
        self.left_out[peer] = reason
        return None

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
        """Check, then time. `ops` name those whose kernels serve; `facts` are further columns of the row."""
        check()
        if not self.timed:
            self.benchmark.pedantic(lambda: None)
            return
        laps = Laps(peers)
        calls = calls_in_a_round(ours)

        def others() -> None:
            laps.run()
            self.benchmark.stats.iterations = calls  # pedantic has no such argument beside a setup; divides the time

        def in_a_row() -> None:
            for _ in range(calls):
                ours()

        self.benchmark.pedantic(in_a_row, setup=others, rounds=QUICK_ROUNDS if self.quick else rounds)
        own = self.benchmark.stats.stats.data
        self.benchmark.extra_info.update(
            **machine_facts(ops),
            **(work.facts(statistics.median(own)) if work else {}),
            **laps.against(own),
            left_out=self.left_out,
            **facts,
        )


def machine_facts(ops: Iterable[str], device: torch.device = CPU) -> dict[str, Any]:
    """Which kernels serve `ops` there, forward and backward; the CPU's instruction set and how many threads."""
    wanted = set(ops)
    return {
        "served_by": {
            op: backend.served_by(op, device) for op in backend.ops() if re.sub("_(fwd|bwd|pack)$", "", op) in wanted
        },
        "instruction_set": backend.build_info().get("cpu_capability", "none: no compiled kernels"),
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability().lower(),
        "threads": torch.get_num_threads(),
    }


def _passes(peer: Peer) -> Sequence[Mapping[str, Run]]:
    return [{"": peer}] if callable(peer) else peer


class Laps:
    """Seconds of every form of every pass of every peer, round by round."""

    def __init__(self, peers: Mapping[str, Peer], clock: Clock = seconds, least: float = ROUND_SECONDS) -> None:
        self.peers = {name: _passes(peer) for name, peer in peers.items()}
        self.clock = clock
        self.calls = [calls_in_a_round(run, clock, least) for run in self._runs()]
        self.rounds: list[list[float]] = []

    def _runs(self) -> list[Run]:
        return [run for passes in self.peers.values() for forms in passes for run in forms.values()]

    def run(self) -> None:
        self.rounds.append([self.clock(run, calls) for run, calls in zip(self._runs(), self.calls, strict=True)])

    def against(self, own: Sequence[float]) -> dict[str, Any]:
        """The facts of the peers; each takes its best form of each pass, by the medians."""
        columns = iter(zip(*self.rounds, strict=True))
        facts: dict[str, Any] = {"peer_seconds": {}, "times_as_fast": {}, "chosen": {}}
        for name, passes in self.peers.items():
            best = [min(((next(columns), form) for form in forms), key=_by_median) for forms in passes]
            rounds = [sum(parts) for parts in zip(*(laps for laps, _ in best), strict=True)]
            facts["peer_seconds"][name] = statistics.median(rounds)
            facts["times_as_fast"][name] = statistics.median(map(float.__truediv__, rounds, own))
            if len(best) > 1:
                facts["chosen"][name] = [form for _, form in best]
        return facts


def _by_median(timed: tuple[Sequence[float], str]) -> float:
    return statistics.median(timed[0])


def peak_mib(make: Callable[..., Run], *arguments: Any) -> float | None:
    """Resident-set high water of a fresh process that makes a call and runs it twice, less what it held before.

    `make(*arguments)` must be a module's function of picklable arguments. What was held before is the interpreter and
    the libraries as loaded; parameters, inputs, gradients and activations all count. Read from Linux's /proc: VmHWM
    belongs to this process alone, where ru_maxrss begins with that of the process that started it. None elsewhere.
    """
    if sys.platform != "linux":
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_mib, (torch.get_num_threads(), make, *arguments))


def _peak_mib(threads: int, make: Callable[..., Run], *arguments: Any) -> float:
    torch.set_num_threads(threads)
    importlib.import_module("torch._dynamo")  # recomputation does when it is first used: 60 MiB that are no tensors
    before = _status_mib("VmRSS")
    run = make(*arguments)
    run()
    run()
    return _status_mib("VmHWM") - before


def _status_mib(field: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024
