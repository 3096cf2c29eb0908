"""What a preset needs at a batch size, and how many GPUs it is worth: modelled, counting FLOP, bytes and parameters.

    python benchmarks/sizing.py kth-lp --batch-size 20,100 --gpus 1,2,4,8
    python benchmarks/sizing.py kth-lp --gpu A100 --precision float32
    python benchmarks/sizing.py smmnist-lp --measure    a CPU step's memory, counted and measured
    python benchmarks/sizing.py --write                 puts the tables into docs/scale.md

Memory: tensors that are alive, counted on fake ones as the library makes and drops them on a GPU; without the
libraries' workspaces and what an allocator leaves unused (tests/test_sizing.py holds it against a real CPU step).
Time: the floors of floors.py, and Adam's passes over memory. Several GPUs each take their share of the batch; a ring
reduces the gradients while the backward pass goes on. One GPU replays its step as a CUDA graph, several launch it
kernel by kernel, which takes LAUNCH_SECONDS each.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import floors
import torch
from lstm_step_model import Gpu, Precision
from measure import peak_mib
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import svg_fast
from svg_fast import SVG, SVGConfig
from svg_fast.models import chunks

DOCUMENT = Path(__file__).parents[1] / "docs" / "scale.md"
PRESETS = ("smmnist-lp", "smmnist-fp", "kth-lp", "bair-lp")
BATCHES, COUNTS = (20, 100, 256), (1, 2, 4, 8)
GPUS = {gpu.name.split()[0]: gpu for gpu in floors.GPUS}
# Bytes/s that the slowest link of the ring carries in one direction; assumed.
LINKS = {"NVLink": 300e9, "100 Gb/s": 100e9 / 8, "25 Gb/s": 25e9 / 8}
LAUNCH_SECONDS = 10e-6  # from one kernel to the next where Python launches them; assumed
WORTH = 0.8  # efficiency
FLOAT32 = 4  # bytes; of parameters, gradients and Adam's two moments in every precision
ADAM_PASSES = 7  # reads parameter, gradient, two moments; writes all but the gradient
LEAST_SHARE = 2  # clips, without synchronised statistics


class Memory(NamedTuple):
    """Bytes. kept: alive when the backward pass begins, beside parameters and inputs. most: at any time, with the
    gradients made so far."""

    kept: int
    most: int


class Alive(TorchDispatchMode):
    """Bytes of the tensors that are alive, as float32 where they are float64; those known at the beginning are not."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.known:
                self._begins(tensor.untyped_storage(), tensor.dtype)
        return out

    def _begins(self, storage: torch.UntypedStorage, dtype: torch.dtype) -> None:
        size = storage.nbytes() // (2 if dtype == torch.float64 else 1)
        self.known.add(storage._cdata)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._ends, storage._cdata, size)

    def _ends(self, key: int, size: int) -> None:
        self.known.remove(key)
        self.now -= size


def memory(config: SVGConfig, batch: int, precision: Precision) -> Memory:
    """Of a training step of so many clips on a GPU.

    Fake CPU tensors take the library's route for a GPU in float64 (floors.count), and under autocast.
    """
    low = precision != "float32"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if low else torch.float64)
    try:
        with FakeTensorMode(), mock.patch.object(chunks, "images_at_once", return_value=None):
            model, frames, eps = make_inputs(config, batch)
            known = [*model.parameters(), *model.buffers(), frames, *([] if eps is None else [eps])]
            with Alive(known) as alive:
                with torch.autocast("cpu", torch.bfloat16, enabled=low, cache_enabled=False):
                    loss = model(frames, eps).loss
                kept = alive.now
                loss.backward()
    finally:
        torch.set_default_dtype(before)
    return Memory(kept, alive.most)


def make_inputs(config: SVGConfig, batch: int) -> tuple[SVG, Tensor, Tensor | None]:
    """A model, frames (B, T, C, S, S) uint8 and noise (T - 1, B, z_dim) or none, of no particular values."""
    n_frames = config.n_past + config.n_future
    shape = (batch, n_frames, config.channels, config.image_size, config.image_size)
    eps = None if config.variant == "det" else torch.zeros(n_frames - 1, batch, config.z_dim)
    return SVG(config), torch.zeros(shape, dtype=torch.uint8), eps


@functools.cache
def parameters(preset: str) -> int:
    with FakeTensorMode():
        return sum(p.numel() for p in SVG(svg_fast.preset(preset)).parameters())


def state_bytes(preset: str) -> int:
    """Parameters, gradients, and Adam's two moments."""
    return 4 * FLOAT32 * parameters(preset)


def clip_bytes(preset: str) -> int:
    """Of a training clip, uint8."""
    config = svg_fast.preset(preset)
    return (config.n_past + config.n_future) * config.channels * config.image_size**2


class Passes(NamedTuple):
    forward: list[floors.Operation]
    backward: list[floors.Operation]


@functools.cache
def passes(preset: str, batch: int) -> Passes:
    """The operations of a training step, but for the optimizer's."""

    def make() -> Any:
        model, frames, eps = make_inputs(svg_fast.preset(preset), batch)
        return lambda: model(frames, eps)

    forward, both = floors.count(make), floors.count(floors.training_step(preset, batch))
    return Passes(both[: len(forward)], both[len(forward) :])


def reduce_seconds(amount: float, gpus: int, link: str) -> float:
    """To sum so many bytes over a ring: each GPU sends 2 (n - 1) / n of them."""
    return 2 * (gpus - 1) / gpus * amount / LINKS[link]


def step_seconds(preset: str, batch: int, gpu: Gpu, precision: Precision, gpus: int = 1, link: str = "NVLink") -> float:
    """Of a batch shared out over so many GPUs, the largest share's; infinite where a share is too small."""
    if batch // gpus < LEAST_SHARE:
        return math.inf

    def seconds(operations: Sequence[floors.Operation]) -> float:
        on_device = sum(operation.seconds(gpu, precision) for operation in operations)
        return on_device if gpus == 1 else max(on_device, LAUNCH_SECONDS * len(operations))

    forward, backward = map(seconds, passes(preset, -(-batch // gpus)))
    amount = FLOAT32 * parameters(preset)
    optimizer = ADAM_PASSES * amount / gpu.bandwidth
    return forward + max(backward, reduce_seconds(amount, gpus, link)) + optimizer


def efficiency(preset: str, batch: int, gpu: Gpu, precision: Precision, gpus: int, link: str) -> float:
    """How much of so many GPUs' time is that of a single one's step."""
    alone = step_seconds(preset, batch, gpu, precision)
    return alone / gpus / step_seconds(preset, batch, gpu, precision, gpus, link)


Cases = Sequence[tuple[str, int]]  # preset and batch size


def memory_table(cases: Cases) -> str:
    header = ["GB of activations / of all at most", "parameters, M", "with gradients and Adam, MB"]
    header += [f"{precision}{how}" for precision in floors.BYTES for how in ("", ", --recompute --time-chunk 1")]
    rows = []
    for preset, batch in cases:
        kept_state = state_bytes(preset) - FLOAT32 * parameters(preset)  # gradients are among what a step makes
        config = svg_fast.preset(preset)
        forms = config, replace(config, recompute=True, time_chunk=1)
        found = [memory(form, batch, precision) for precision in floors.BYTES for form in forms]
        cells = [f"{kept / 1e9:.2f} / {(kept_state + most) / 1e9:.2f}" for kept, most in found]
        counts = f"{parameters(preset) / 1e6:.2f}", f"{state_bytes(preset) / 1e6:.0f}"
        rows.append([f"{preset}, B {batch}", *counts, *cells])
    return floors.table(header, rows)


def time_table(cases: Cases) -> str:
    machines = [(gpu, precision) for gpu in floors.GPUS for precision in floors.BYTES]
    header = ["ms / clips/s / MB/s", *(f"{gpu.name}, {precision}" for gpu, precision in machines)]
    rows = []
    for preset, batch in cases:
        times = [step_seconds(preset, batch, gpu, precision) for gpu, precision in machines]
        rates = [batch / seconds for seconds in times]
        cells = [
            f"{1e3 * s:.1f} / {r:.0f} / {r * clip_bytes(preset) / 1e6:.0f}" for s, r in zip(times, rates, strict=True)
        ]
        rows.append([f"{preset}, B {batch}", *cells])
    return floors.table(header, rows)


def scaling_table(cases: Cases, gpu: Gpu, precision: Precision, counts: Sequence[int]) -> str:
    several = [n for n in counts if n > 1]
    numbers = ", ".join(map(str, several))
    header = [f"{gpu.name}, {precision}, GPUs {numbers}", "MB to reduce", f"ms over {', '.join(LINKS)}"]
    header += [part for link in LINKS for part in (f"{link}: efficiency, %", "worth")]
    rows = []
    for preset, batch in cases:
        amount = FLOAT32 * parameters(preset)
        reduced = (f"{1e3 * reduce_seconds(amount, max(counts), link):.2f}" for link in LINKS)
        row = [f"{preset}, B {batch}", f"{amount / 1e6:.1f}", ", ".join(reduced)]
        for link in LINKS:
            found = {n: efficiency(preset, batch, gpu, precision, n, link) for n in several}
            worth = max([1, *itertools.takewhile(lambda n: found[n] >= WORTH, several)])  # noqa: B023 (used at once)
            row += [", ".join(f"{100 * e:.0f}" if e else "none" for e in found.values()), str(worth)]
        rows.append(row)
    return floors.table(header, rows)


def cpu_step(config: SVGConfig, batch: int) -> Callable[[], None]:
    """Forward and backward on the CPU."""
    model, frames, eps = make_inputs(config, batch)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model(frames, eps).loss.backward()

    return step


def measured(preset: str, batches: tuple[int, int] = (4, 20)) -> str:
    """What a clip more takes: peaks of processes against the count."""
    config = svg_fast.preset(preset)
    peaks = [peak_mib(cpu_step, config, batch) or math.nan for batch in batches]
    counted = [memory(config, batch, "float32").most / 2**20 for batch in batches]
    (few, many), (a, b) = peaks, counted
    clips = batches[1] - batches[0]
    found = f"{few:.0f} and {many:.0f} MiB for {batches[0]} and {batches[1]} clips, {(many - few) / clips:.1f} a clip"
    return f"{preset} on the CPU, measured: {found}; counted: {(b - a) / clips:.1f} a clip"


def sections(cases: Cases, gpu: Gpu, precision: Precision, counts: Sequence[int]) -> dict[str, str]:
    """The tables, by the names of their markers in the document."""
    return {
        "memory": memory_table(cases),
        "time": time_table(cases),
        "scaling": scaling_table(cases, gpu, precision, counts),
    }


def _numbers(text: str) -> list[int]:
    return sorted(map(int, text.split(",")))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("preset", nargs="*", help=f"[{' '.join(PRESETS)}]")
    parser.add_argument("--batch-size", type=_numbers, default=BATCHES, help="clips of a step, of all GPUs; 20,100")
    parser.add_argument("--gpus", type=_numbers, default=COUNTS, help="1,2,4,8")
    parser.add_argument("--gpu", choices=GPUS, default="H100", help="whose efficiency with several is shown")
    parser.add_argument("--precision", choices=floors.BYTES, default="bfloat16", help="in which")
    parser.add_argument("--measure", action="store_true", help="a CPU step's memory, and nothing else")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCUMENT.name}")
    given = parser.parse_args()
    if given.measure:
        print("\n".join(map(measured, given.preset or PRESETS)))
        return
    cases = [(preset, batch) for preset in given.preset or PRESETS for batch in given.batch_size]
    found = sections(cases, GPUS[given.gpu], given.precision, given.gpus)
    print("\n\n".join(f"{name}, modelled\n{content}" for name, content in found.items()))
    if given.write:
        DOCUMENT.write_text(floors.fill(DOCUMENT.read_text(), found))


if __name__ == "__main__":
    main()
