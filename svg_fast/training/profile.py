"""Where the time of a training step goes: by part of the model, forward and backward, and by operation.

The forward parts are ranges that are put around an SVG's methods from outside while the profile runs. A node of the
backward graph carries the sequence number that its thread had reached when the forward operation made it, and these
numbers only grow: a part made the nodes from its first number to the next part's first. So every node of the backward
pass has its part, whatever its name, also where it runs in another thread, as it does for a GPU.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, record_function

from ..files import replacing
from ..models import SVG

logger = logging.getLogger("svg_fast")

WARM_UP = 3  # steps before the first profiled one: libraries choose their kernels, memory is allocated
MAX_STEPS = 20  # a step has some thousand events, which are kept in memory until the last
MAX_TRACE_EVENTS = 400_000  # of some 300 bytes in trace.json
TOP_OPERATIONS = 20

FORWARD, BACKWARD = "forward", "backward"
REST, DATA, OPTIMIZER, COMMUNICATION, OTHER = "inputs and loss", "data", "optimizer", "communication", "other"
MODEL_PARTS = {
    "encoder": ("", "_encode"),
    "posterior": ("posterior", "forward"),
    "prior": ("prior", "forward"),
    "sample and KL": ("", "_infer"),
    "frame predictor": ("frame_predictor", "forward"),
    "decoder": ("", "_decode"),
    REST: ("", "forward"),
}
PARTS = (*MODEL_PARTS, OPTIMIZER, DATA, COMMUNICATION, OTHER)

_RANGE = "svg_fast/"
_STEP = f"{_RANGE}step"
_NODE = "autograd::engine::evaluate_function: "
_BETWEEN = "(between operations)"
_WRAPPED = "GeneratedBackwardFor_"  # a declared op with its gradient: torch.library's name for it
_OPTIMIZER, _DDP = "Optimizer.", "DistributedDataParallel.forward"
_COMMUNICATION = ("c10d::", "nccl:", "gloo:", "torch.distributed.", "FSDP::", "record_param_comms")


class Profile:
    """A context manager around the loop; `step` is called at the end of every pass through it.

    After `WARM_UP` steps it profiles n_steps, then writes log_dir/profile/profile.txt, which it also logs, and
    trace.json for chrome://tracing or ui.perfetto.dev. A run that ends earlier gets a profile of the steps it made.
    For n_steps = 0 it does nothing. The parameters are those of a run without it. `first`: steps already done. Steps
    must be plain ones: of a CUDA graph's replay nobody can tell the parts, and a compiled model is compiled again. Of
    several processes one is enough.

    Raises ValueError for n_steps outside 0 .. MAX_STEPS.
    """

    def __init__(self, model: SVG, log_dir: Path, first: int, n_steps: int) -> None:
        check_n_steps(n_steps)
        self.model, self.folder, self.n_steps = model, log_dir / "profile", n_steps
        self.begin, self.done = first + WARM_UP, first
        self.device = model.frame_predictor.embed.weight.device
        self.running = ExitStack()
        self.current: record_function | None = None
        self.profiler: torch.profiler.profile | None = None

    def __enter__(self) -> Profile:
        return self

    def step(self) -> None:
        """A step is done, with all that the loop does after it."""
        self.done += 1
        if not self.begin <= self.done <= self.begin + self.n_steps or not self.n_steps:
            return
        if self.done == self.begin:
            self._start()
        else:
            self._end_of_step()
        if self.done < self.begin + self.n_steps:
            self.current = record_function(_STEP)
            self.current.__enter__()
        else:
            self._finish(self.n_steps)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        profiled = self.done - self.begin
        if self.profiler is not None:
            self._end_of_step()
            if kind is None and profiled:
                self._finish(profiled)
        self.running.close()
        if self.n_steps and profiled < 1 and kind is None:
            logger.warning("no profile: the run ended before its step %d was done", self.begin + 1)

    def _start(self) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or it writes of its own stages over the progress bar
        on_gpu = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        for part, (module, method) in MODEL_PARTS.items():
            owner = getattr(self.model, module, None) if module else self.model
            if owner is not None:  # fp has no prior, det no posterior either
                self.running.enter_context(_ranged(owner, method, part))
        self.profiler = self.running.enter_context(torch.profiler.profile(activities=activities))

    def _end_of_step(self) -> None:
        if self.current is not None:
            self.current.__exit__(None, None, None)
            self.current = None

    def _finish(self, n_steps: int) -> None:
        profiler, self.profiler = self.profiler, None
        assert profiler is not None
        self.running.close()
        events = profiler.events() or []
        title = f"Steps {self.begin + 1} to {self.begin + n_steps} on {self.device}, {torch.get_num_threads()} threads"
        text = "\n".join([f"{title}, PyTorch {torch.__version__}", "", *summarise(events, n_steps).lines(), ""])
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / "profile.txt") as part:
            part.write_text(text, encoding="utf-8")
        if len(events) <= MAX_TRACE_EVENTS:
            with replacing(self.folder / "trace.json") as part:
                profiler.export_chrome_trace(str(part))
        else:
            logger.warning("no trace.json: %d events are more than %d", len(events), MAX_TRACE_EVENTS)
        logger.info("%s\nprofile: %s", text, self.folder)


def check_n_steps(n_steps: int) -> None:
    """ValueError for a number of steps that cannot be profiled; 0 is no profile."""
    if not 0 <= n_steps <= MAX_STEPS:
        raise ValueError(f"profile must be of 0 to {MAX_STEPS} steps, got {n_steps}")


@contextmanager
def _ranged(owner: Any, method: str, part: str) -> Iterator[None]:
    """Inside the block, calls of owner.method are a range of the profile."""
    original, is_own = getattr(owner, method), method in vars(owner)

    def in_range(*arguments: Any, **named: Any) -> Any:
        with record_function(_RANGE + part):
            return original(*arguments, **named)

    setattr(owner, method, in_range)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, method, original)
        else:
            delattr(owner, method)


class Times:
    """Microseconds and calls by (part, direction, operation); an event's own time, without that of its children."""

    def __init__(self) -> None:
        self.times: defaultdict[tuple[str, str, str], float] = defaultdict(float)
        self.calls: Counter[tuple[str, str, str]] = Counter()

    def add(self, part: str, direction: str, operation: str, time: float) -> None:
        self.times[part, direction, operation] += time
        self.calls[part, direction, operation] += 1

    def total(self) -> float:
        return sum(self.times.values())

    def of_part(self, part: str, direction: str) -> float:
        return sum(time for key, time in self.times.items() if key[:2] == (part, direction))


@dataclass
class Summary:
    """All steps together. wall: microseconds; calls: ranges of each part; device is None where there is no GPU.

    Host times add up to the wall time. Device times may overlap, where streams do, and need not fill it.
    """

    n_steps: int
    wall: float
    calls: Counter[str]
    host: Times
    device: Times | None

    def lines(self) -> Iterator[str]:
        """Tables for people; times in ms for each step."""
        yield f"{self.n_steps} steps of {self.wall / self.n_steps / 1e3:.2f} ms; all times in ms a step"
        if self.device is not None:
            busy = self.device.total()
            yield f"the device is busy for {busy / self.wall:.0%} of the time"
            yield from self._tables("device", self.device, busy)
        yield from self._tables("host", self.host, self.wall)

    def _tables(self, name: str, times: Times, whole: float) -> Iterator[str]:
        scale = 1e3 * self.n_steps
        yield f"\n{name + ' time by part':<22}{'calls':>8}{'forward':>11}{'backward':>11}{'together':>11}{'share':>8}"
        for part in PARTS:
            forward, backward = times.of_part(part, FORWARD), times.of_part(part, BACKWARD)
            both = forward + backward
            if not both:
                continue
            calls = f"{self.calls[part] / self.n_steps:.4g}" if self.calls[part] else ""
            directions = (forward, backward) if part in MODEL_PARTS else (0.0, 0.0)
            cells = "".join(f"{t / scale:>11.3f}" if t else " " * 11 for t in (*directions, both))
            yield f"{part:<22}{calls:>8}{cells}{both / whole:>8.1%}"
        yield f"{'all':<22}{'':>30}{times.total() / scale:>11.3f}{times.total() / whole:>8.1%}"
        yield f"\n{name + ' time by operation':<44}{'part':<26}{'calls':>8}{'alone':>11}{'share':>8}"
        for key, time in sorted(times.times.items(), key=lambda item: -item[1])[:TOP_OPERATIONS]:
            part, direction, operation = key
            shown = operation if len(operation) <= 43 else operation[:42] + "…"
            where = f"{part}, {direction}" if part in MODEL_PARTS else part
            calls = f"{times.calls[key] / self.n_steps:.4g}"
            yield f"{shown:<44}{where:<26}{calls:>8}{time / scale:>11.3f}{time / whole:>8.1%}"


def summarise(events: Iterable[Any], n_steps: int) -> Summary:
    """The times of a profile's first n_steps, by part and by operation; events: `torch.profiler.profile.events()`.

    Host time is that of the thread that makes the steps, and of backward passes in threads of their own, for which it
    waits. What else a process does beside (loaders, gloo's workers) is not the step's time; waiting for other
    processes' gradients is, as communication.
    """
    on_host = [event for event in events if event.device_type.name == "CPU"]
    steps = _in_order(event for event in on_host if event.name == _STEP)[:n_steps]
    walk = _Walk(any(_communicates(event.name) for event in on_host))
    for step in steps:
        walk.step(step)
    for event in _in_order(e for e in on_host if e.cpu_parent is None and e.thread != steps[0].thread):
        if not event.is_async and (event.name.startswith(_NODE) or _communicates(event.name)):
            walk.beside(event)
    wall = sum(step.time_range.elapsed_us() for step in steps)
    return Summary(len(steps), wall, walk.calls, walk.host, walk.device if walk.device.total() else None)


class _Walk:
    """Through the trees of events in the order of time, adding up each event's own time."""

    def __init__(self, is_distributed: bool) -> None:
        self.waiting = COMMUNICATION if is_distributed else OTHER  # after the forward pass, with nothing to run
        self.host, self.device, self.calls = Times(), Times(), Counter[str]()
        # for each thread the sequence numbers from which on another part made the nodes, ascending, and that part
        self.firsts: defaultdict[int, list[int]] = defaultdict(list)
        self.makers: defaultdict[int, list[str]] = defaultdict(list)
        self.last_node: dict[int, str] = {}

    def step(self, step: Any) -> None:
        """A step of the loop: data until the model begins, then forward, backward, optimizer, and what follows."""
        between, before = DATA, step.time_range.start
        for event in _in_order(step.cpu_children):
            self._add_gap(between, event.time_range.start - before)
            if between == DATA and event.name.startswith((_RANGE, _NODE, _OPTIMIZER, _DDP)):
                between = OTHER
            self._visit(event, DATA if between == DATA else OTHER, FORWARD)
            before = event.time_range.end
            if event.name in (_RANGE + REST, _DDP):
                between = self.waiting
            elif event.name.startswith(_OPTIMIZER + "step"):
                between = OTHER
        self._add_gap(between, step.time_range.end - before)

    def beside(self, event: Any) -> None:
        """A part of a backward pass in another thread, for which that of the steps waits."""
        self._visit(event, OTHER, FORWARD)
        waited = (self.waiting, FORWARD, _BETWEEN)
        self.host.times[waited] = max(self.host.times[waited] - event.time_range.elapsed_us(), 0)

    def _visit(self, event: Any, part: str, direction: str) -> None:
        name, thread = event.name, event.thread
        if name.startswith(_NODE) and direction == FORWARD:
            part, direction = self._maker(event), BACKWARD
            self.last_node[thread] = part
        elif _communicates(name):
            part, direction = COMMUNICATION, FORWARD
        elif name.startswith(_OPTIMIZER):
            part = OPTIMIZER
        elif name.startswith(_RANGE) and direction == FORWARD:  # recomputed activations are the backward pass's
            part = name.removeprefix(_RANGE)
            self.calls[part] += 1
        if direction == FORWARD and event.sequence_nr >= 0:
            self._note(thread, event.sequence_nr, part)
        name = _BETWEEN if name.startswith(_RANGE) else name.replace(_NODE, "evaluate ")
        name = name.replace(_WRAPPED, "")
        self.host.add(part, direction, name, event.self_cpu_time_total)
        self.device.add(part, direction, name, event.self_device_time_total)
        for child in _in_order(event.cpu_children):
            self._visit(child, part, direction)

    def _add_gap(self, part: str, time: float) -> None:
        self.host.add(part, FORWARD, _BETWEEN, time)

    def _note(self, thread: int, sequence: int, part: str) -> None:
        """A node made from here on is the part's, until another one notes the same number or a higher one."""
        firsts, makers = self.firsts[thread], self.makers[thread]
        if firsts and firsts[-1] == sequence:
            makers[-1] = part
        elif not firsts or (sequence > firsts[-1] and part != makers[-1]):
            firsts.append(sequence)
            makers.append(part)

    def _maker(self, node: Any) -> str:
        """The part whose forward pass made a node of the backward graph."""
        if node.sequence_nr < 0:  # a parameter's gradient is added up right after the node that computed it
            return self.last_node.get(node.thread, OTHER)
        k = bisect_right(self.firsts[node.fwd_thread], node.sequence_nr) - 1
        return self.makers[node.fwd_thread][k] if k >= 0 else OTHER


def _in_order(events: Iterable[Any]) -> list[Any]:
    return sorted(events, key=lambda event: event.time_range.start)


def _communicates(name: str) -> bool:
    return name.startswith(_COMMUNICATION)
