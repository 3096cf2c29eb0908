"""The least time that each kernel, training step and rollout can take on an A100 and an H100, counted and not measured.

    python benchmarks/floors.py            prints the tables
    python benchmarks/floors.py --write    puts them into docs/gpu.md

Operations are counted as the library issues them, on fake tensors: what each multiplies (torch.utils.flop_counter's
formulas, and those below for our own ops), and what it reads and writes, every tensor once. An operation takes at least
the longest of arithmetic over the data sheet's matrix rate, bytes over its bandwidth, and a kernel's place in a CUDA
graph; an LSTM takes at least its steps one after another. A floor is the sum over the operations: none overlap.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import torch
from lstm_step_model import A100, H100, PRODUCTS, Gpu, Precision, lstm_step_terms, through_l2
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import svg_fast
from svg_fast import SVG, ops
from svg_fast.models import PRESETS, chunks

DOCUMENT = Path(__file__).parents[1] / "docs" / "gpu.md"
GPUS = (A100, H100)
BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2}
BATCH, CLIPS, N_SAMPLES, N_EVAL = 100, 5, 20, 30  # of the published training; clips, futures, frames of its strips


def _lstm_layer_flop(gates_x: Tensor, *_: Any) -> float:
    steps, batch, width = gates_x.shape
    return 2.0 * steps * batch * width * width / 4


def _step_flop(x: Tensor, _h: Tensor, _c: Tensor, *weights: Any) -> float:
    """Every matrix once for every row of x."""
    return 2.0 * len(x) * sum(w.numel() for w in tree_leaves(weights) if isinstance(w, Tensor) and w.dim() == 2)


# What our own ops multiply; backward: the gradient of h, and of the weights. The others are bound by memory.
FLOP: dict[str, Callable[..., float]] = {
    "lstm_layer_fwd": _lstm_layer_flop,
    "lstm_layer_bwd": lambda *arguments: 2 * _lstm_layer_flop(_widest(arguments)),
    "lstm_step_fwd": _step_flop,
    "lstm_net_step_fwd": lambda x, h, c, *rest: _step_flop(x, h, c, *rest[:-2]),  # without the noise
}
FREE = re.compile("aten::(_unsafe_view|empty|detach|alias|lift_fresh)")  # no kernel


def _widest(arguments: Sequence[Any]) -> Tensor:
    """The gates (T, B, 4H) among the saved tensors of an LSTM layer."""
    return max((a for a in arguments if isinstance(a, Tensor) and a.dim() == 3), key=lambda a: a.shape[2])


class Operation(NamedTuple):
    """flop; elements read and written; steps: products of an LSTM that wait for each other, of width hidden."""

    name: str
    flop: float
    elements: int
    steps: int = 0
    hidden: int = 0

    def seconds(self, gpu: Gpu, precision: Precision) -> float:
        memory = self.elements * BYTES[precision] / gpu.bandwidth
        rate = gpu.matrix_rate[precision]
        if self.name.startswith("lstm"):  # float32 as products of halves on tensor cores
            rate = max(rate, gpu.matrix_rate["bfloat16"] / PRODUCTS[precision])
        return max(gpu.node_seconds, memory, self.flop / rate, self.sequential(gpu, precision))

    def sequential(self, gpu: Gpu, precision: Precision) -> float:
        """Of a layer, its steps; of a single step, exchanges through the L2 cache, from layer to layer."""
        if "lstm_layer" in self.name:
            return self.steps * sum(lstm_step_terms(gpu, precision, self.hidden).values()) / gpu.clock
        return max(self.steps - 1, 0) * through_l2() / gpu.clock


class Count(TorchDispatchMode):
    """Every operation that runs a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace in ("aten", "svg_fast") and not func.is_view and not FREE.match(func.name()):
            elements = sum(x.numel() for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor))
            self.operations.append(self._operation(func, args, kwargs or {}, out, elements))
        return out

    def _operation(self, func: Any, args: Any, kwargs: Any, out: Any, elements: int) -> Operation:
        name = func.name().partition("::")[2]
        if func.namespace == "svg_fast":
            flop = FLOP.get(name, lambda *_: 0.0)(*args)
            if name.startswith("lstm_layer"):
                steps, _, width = _widest(args).shape
                return Operation(name, flop, elements, steps, width // 4)
            # of a net, the embedding before the layers and the heads after them
            steps = len(args[1]) + 2 * name.startswith("lstm_net") if name.startswith("lstm") else 0
            return Operation(name, flop, elements, steps)
        formula = flop_registry.get(func._overloadpacket)
        return Operation(name, formula(*args, **kwargs, out_val=out) if formula else 0.0, elements)


def count(call: Callable[[], object]) -> list[Operation]:
    """The operations of a call that makes its own tensors, in float64: on fake CPU tensors of that type the library
    takes the route that it takes on a GPU."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with FakeTensorMode(), mock.patch.object(chunks, "images_at_once", return_value=None):
            run = call()
            assert callable(run)
            with Count() as counter:
                run()
    finally:
        torch.set_default_dtype(before)
    return counter.operations


def training_step(preset: str, batch: int = BATCH) -> Callable[[], Callable[[], object]]:
    """Forward and backward of a batch, by default the published one; the optimiser is left out."""

    def make() -> Callable[[], object]:
        model = SVG(svg_fast.preset(preset))
        c = model.config
        frames = torch.empty(batch, c.n_past + c.n_future, c.channels, c.image_size, c.image_size, dtype=torch.uint8)
        eps = None if c.variant == "det" else torch.empty(c.n_past + c.n_future - 1, batch, c.z_dim)
        return lambda: model(frames, eps).loss.backward()

    return make


def rollout(
    preset: str, clips: int = CLIPS, n_samples: int = N_SAMPLES, n_frames: int = N_EVAL
) -> Callable[[], Callable[[], object]]:
    """Futures of some clips, by default those of an epoch's strips."""

    def make() -> Callable[[], object]:
        model = SVG(svg_fast.preset(preset))
        c = model.config
        frames = torch.empty(clips, c.n_past, c.channels, c.image_size, c.image_size, dtype=torch.uint8)
        return lambda: model.sample(frames, n_frames - c.n_past, n_samples, cuda_graph=False)

    return make


def _differentiated(op: Callable[..., Any], *shapes: tuple[int, ...], **options: Any) -> Callable[[], Any]:
    """Forward and backward of an op of tensors of these shapes."""

    def make() -> Callable[[], object]:
        leaves = [torch.empty(shape, requires_grad=True) for shape in shapes]

        def run() -> None:
            outputs = op(*leaves, **options)
            outputs = [y for y in outputs if y.requires_grad]
            torch.autograd.grad(outputs, leaves, [torch.empty_like(y) for y in outputs])

        return run

    return make


def _step(batch: int, hidden: int, layers: int) -> Callable[[], Any]:
    def make() -> Callable[[], object]:
        weights = [[torch.empty(4 * hidden, hidden)] * layers] * 2 + [[torch.empty(4 * hidden)] * layers] * 2
        x, state = torch.empty(batch, hidden), torch.empty(layers, batch, hidden)
        return torch.no_grad()(lambda: ops.lstm_step(x, state, state, *weights))

    return make


def _net_step(batch: int, inputs: int, hidden: int, layers: int, heads: int, outputs: int) -> Callable[[], Any]:
    """Of a rollout, without the sample."""

    def make() -> Callable[[], object]:
        x, state = torch.empty(batch, inputs), torch.empty(layers, batch, hidden)
        layer = [torch.empty(4 * hidden, hidden)] * 2 + [torch.empty(4 * hidden)] * 2
        arguments: list[Any] = [torch.empty(hidden, inputs), torch.empty(hidden)]
        arguments += [[weight] * layers for weight in layer]
        arguments += [[torch.empty(outputs, hidden)] * heads, [torch.empty(outputs)] * heads]
        return torch.no_grad()(lambda: ops.lstm_net_step(x, state, state, *arguments))

    return make


def kernels() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Each op at the paper's sizes; T - 1 of 15 frames are steps, 64 channels at 32 x 32 the encoder's first."""
    for steps, batch in ((14, 1), (14, 16), (14, 100), (29, 128)):
        shapes = (steps, batch, 1024), (batch, 256), (batch, 256), (1024, 256)
        yield f"lstm_layer, T {steps}, B {batch}, H 256", _differentiated(ops.lstm_layer, *shapes)
    for batch in (1, 16, 100):
        yield f"lstm_step, 2 layers, B {batch}, H 256", _step(batch, 256, 2)
    for batch in (1, 16, 100):
        yield f"lstm_net_step, the frame predictor, B {batch}", _net_step(batch, 138, 256, 2, 1, 128)
    for shape in ((14, 100, 10), (29, 16, 64), (30, 1024, 128)):
        yield f"gaussian_rsample_kl, {shape}", _differentiated(ops.gaussian_rsample_kl, *[shape] * 4, seed=1)
    for channels, size in ((64, 32), (128, 16), (256, 8), (512, 4)):
        yield (
            f"batch_norm_act, 15 steps of 100, {channels} at {size} x {size}",
            _differentiated(ops.batch_norm_act, (1500, channels, size, size), (channels,), (channels,), steps=15),
        )


Row = Sequence[str]


def table(header: Row, rows: Sequence[Row]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def data_sheet() -> str:
    header = ("", *(gpu.name for gpu in GPUS))
    figures: dict[str, Callable[[Gpu], str]] = {
        "SMs, clock at which the matrix rate holds": lambda gpu: f"{gpu.sms}, {gpu.clock / 1e9:.2f} GHz",
        "memory, GB/s": lambda gpu: f"{gpu.bandwidth / 1e9:.0f}",
        "bfloat16 and float16, dense, TFLOP/s": lambda gpu: f"{gpu.matrix_rate['bfloat16'] / 1e12:.1f}",
        "float32, TFLOP/s": lambda gpu: f"{gpu.matrix_rate['float32'] / 1e12:.1f}",
        "TF32, dense, TFLOP/s, not used": lambda gpu: f"{gpu.tf32_rate / 1e12:.1f}",
    }
    return table(header, [[name, *map(figure, GPUS)] for name, figure in figures.items()])


def lstm_steps() -> str:
    columns = [(gpu, precision) for gpu in GPUS for precision in BYTES]
    terms = [lstm_step_terms(gpu, precision, 256) for gpu, precision in columns]
    rows = [[name, *(f"{column[name]:.0f}" for column in terms)] for name in terms[0]]
    rows.append(["cycles", *(f"{sum(column.values()):.0f}" for column in terms)])
    microseconds = (1e6 * sum(term.values()) / gpu.clock for term, (gpu, _) in zip(terms, columns, strict=True))
    rows.append(["**step, us**", *(f"{n:.2f}" for n in microseconds)])
    return table(("cycles of a step, H = 256", *(f"{gpu.name}, {precision}" for gpu, precision in columns)), rows)


def floors(cases: Iterator[tuple[str, Callable[[], Any]]], unit: Literal["us", "ms"]) -> str:
    scale = {"us": 1e6, "ms": 1e3}[unit]
    header = ["", "kernels", "GFLOP", "MB, float32"]
    header += [f"{gpu.name}, {precision}, {unit}" for gpu in GPUS for precision in BYTES]
    rows = []
    for name, make in cases:
        operations = count(make)
        times = [sum(o.seconds(gpu, precision) for o in operations) for gpu in GPUS for precision in BYTES]
        work = sum(o.flop for o in operations) / 1e9, sum(o.elements for o in operations) * 4 / 1e6
        rows.append([name, str(len(operations)), *map(_digits, work), *(_digits(scale * time) for time in times)])
    return table(header, rows)


def _digits(value: float) -> str:
    """Three of them."""
    places = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{min(max(places, 0), 4)}f}"


def sections(presets: Mapping[str, Iterable[str]] | None = None) -> dict[str, str]:
    """The tables, by the names of their markers in the document; training and rollouts of all presets, or of these."""
    names = presets or {"training": PRESETS, "rollouts": PRESETS}
    return {
        "data sheet": data_sheet(),
        "lstm step": lstm_steps(),
        "kernels": floors(kernels(), "us"),
        "training": floors(((name, training_step(name)) for name in names["training"]), "ms"),
        "rollouts": floors(((name, rollout(name)) for name in names["rollouts"]), "ms"),
    }


def fill(text: str, tables: dict[str, str]) -> str:
    """The document with each table between its markers; ValueError for a table without them."""
    for name, content in tables.items():
        begin, end = f"<!-- floors: {name} -->", "<!-- end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"the document must hold {begin} and, after it, {end}")
        text = f"{before}{begin}\n{content}\n{end}{after}"
    return text


if __name__ == "__main__":
    found = sections()
    print("\n\n".join(f"{name}\n{content}" for name, content in found.items()))
    if "--write" in sys.argv[1:]:
        DOCUMENT.write_text(fill(DOCUMENT.read_text(), found))
