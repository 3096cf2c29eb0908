"""The LSTM ops where no compiled kernel serves them. T steps, B batch, H hidden units, L layers, gates (i, f, g, o).

One launch a step: the product of the step before and the cell in one kernel, which writes gates, c and h once. A layer
is T launches forward and T backward, with two matrix products by PyTorch (of dh0 and dw_hh); `lstm_step` is L launches.

Why so: a step's weights do not fit one processor of a GPU, and a program that walked through time alone would read all
of them from the second-level cache in every step, 1 MB at H = 256. Spread over all processors a step needs a barrier:
between launches there is one; within a launch Triton has none that its interpreter can run, so that it could not be
tested. A product by PyTorch and then a cell kernel would be twice the launches, and pass the gates through memory once
more. Products are in float32, by multiply-and-add: fp32-grade on every target, for every dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.precision import compute_dtype
from .launch import check, check_rank, check_shape, check_tensor, precision, tuned
from .maths import hyperbolic_tangent, load, logistic

# Terms of the products in a pass of their loops, one number for every tile so that sums have one order. The gates' four
# products with twice as many leave no register for weights that are converted on the way.
_FORWARD_TERMS, _BACKWARD_TERMS = tl.constexpr(16), tl.constexpr(32)

_TILES = [
    triton.Config({"ROWS": rows, "UNITS": units}, num_warps=warps)
    for rows, units, warps in ((16, 16, 4), (16, 16, 2), (32, 16, 4), (32, 32, 8))
]


@triton.jit
def _tile(batch, hidden, ROWS: tl.constexpr, UNITS: tl.constexpr):
    """Of this program: its rows of the batch as a column, its units as a row, and which of them there are."""
    groups = tl.cdiv(hidden, UNITS)
    row = (tl.program_id(0) // groups * ROWS + tl.arange(0, ROWS))[:, None]
    unit = (tl.program_id(0) % groups * UNITS + tl.arange(0, UNITS))[None, :]
    return row, unit, (row < batch) & (unit < hidden)


@triton.jit
def _add_gates(i, f, g, o, rows, weight, row, unit, batch, width, hidden, COMPUTE: tl.constexpr):
    """Adds rows (B, width) times weight (4H, width) transposed to the gates' inputs."""
    size = hidden * width
    for first in range(0, width, _FORWARD_TERMS):
        k = first + tl.arange(0, _FORWARD_TERMS)
        a = load(rows + row * width + k[None, :], (row < batch) & (k < width)[None, :], COMPUTE)
        at, mask = weight + unit * width + k[:, None], (unit < hidden) & (k < width)[:, None]
        i = tl.dot(a, load(at, mask, COMPUTE), i, input_precision="ieee", out_dtype=COMPUTE)
        f = tl.dot(a, load(at + size, mask, COMPUTE), f, input_precision="ieee", out_dtype=COMPUTE)
        g = tl.dot(a, load(at + 2 * size, mask, COMPUTE), g, input_precision="ieee", out_dtype=COMPUTE)
        o = tl.dot(a, load(at + 3 * size, mask, COMPUTE), o, input_precision="ieee", out_dtype=COMPUTE)
    return i, f, g, o


@triton.jit
def _add_biases(gate, b_ih, b_hh, unit, hidden, COMPUTE: tl.constexpr):
    return gate + (load(b_ih + unit, unit < hidden, COMPUTE) + load(b_hh + unit, unit < hidden, COMPUTE))


@tuned(*_TILES, key=["batch", "inputs", "hidden"])
@triton.jit
def cell_kernel(
    gates_x, x, w_ih, b_ih, b_hh, h_prev, c_prev, w_hh, gates, c, h, batch, inputs, hidden,
    COMPUTE: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """One step of one layer, from the projection of its input, gates_x, or else from x, w_ih and biases."""
    row, unit, mask = _tile(batch, hidden, ROWS, UNITS)
    at = row * 4 * hidden + unit
    i = tl.zeros((ROWS, UNITS), COMPUTE)
    f, g, o = i, i, i
    i, f, g, o = _add_gates(i, f, g, o, h_prev, w_hh, row, unit, batch, hidden, hidden, COMPUTE)
    if gates_x is not None:
        i += load(gates_x + at, mask, COMPUTE)
        f += load(gates_x + at + hidden, mask, COMPUTE)
        g += load(gates_x + at + 2 * hidden, mask, COMPUTE)
        o += load(gates_x + at + 3 * hidden, mask, COMPUTE)
    else:
        i, f, g, o = _add_gates(i, f, g, o, x, w_ih, row, unit, batch, inputs, hidden, COMPUTE)
        i = _add_biases(i, b_ih, b_hh, unit, hidden, COMPUTE)
        f = _add_biases(f, b_ih + hidden, b_hh + hidden, unit, hidden, COMPUTE)
        g = _add_biases(g, b_ih + 2 * hidden, b_hh + 2 * hidden, unit, hidden, COMPUTE)
        o = _add_biases(o, b_ih + 3 * hidden, b_hh + 3 * hidden, unit, hidden, COMPUTE)
    i, f, g, o = logistic(i), logistic(f), hyperbolic_tangent(g), logistic(o)
    state = f * load(c_prev + row * hidden + unit, mask, COMPUTE) + i * g
    tl.store(gates + at, i, mask)
    tl.store(gates + at + hidden, f, mask)
    tl.store(gates + at + 2 * hidden, g, mask)
    tl.store(gates + at + 3 * hidden, o, mask)
    tl.store(c + row * hidden + unit, state, mask)
    tl.store(h + row * hidden + unit, o * hyperbolic_tangent(state), mask)


@tuned(*_TILES, key=["batch", "hidden"])
@triton.jit
def cell_gradient_kernel(
    dy, dc, dgates_next, w_hh, gates, c, c_prev, dc_next, dgates, dc_prev, batch, hidden,
    COMPUTE: tl.constexpr, ROWS: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """One step of a layer, backwards. dy and dc come from outside, dgates_next and dc_next from the step that follows;
    each may be None, which is zero."""
    row, unit, mask = _tile(batch, hidden, ROWS, UNITS)
    at, at_gates = row * hidden + unit, row * 4 * hidden + unit
    dh = tl.zeros((ROWS, UNITS), COMPUTE)
    if dgates_next is not None:
        for first in range(0, 4 * hidden, _BACKWARD_TERMS):
            k = first + tl.arange(0, _BACKWARD_TERMS)
            known = k < 4 * hidden
            a = load(dgates_next + row * 4 * hidden + k[None, :], (row < batch) & known[None, :], COMPUTE)
            w = load(w_hh + k[:, None] * hidden + unit, known[:, None] & (unit < hidden), COMPUTE)
            dh = tl.dot(a, w, dh, input_precision="ieee", out_dtype=COMPUTE)
    if dy is not None:
        dh += load(dy + at, mask, COMPUTE)
    i, f = load(gates + at_gates, mask, COMPUTE), load(gates + at_gates + hidden, mask, COMPUTE)
    g, o = load(gates + at_gates + 2 * hidden, mask, COMPUTE), load(gates + at_gates + 3 * hidden, mask, COMPUTE)
    tanh_c = hyperbolic_tangent(load(c + at, mask, COMPUTE))
    dstate = dh * o * (1 - tanh_c * tanh_c)
    if dc is not None:
        dstate += load(dc + at, mask, COMPUTE)
    if dc_next is not None:
        dstate += load(dc_next + at, mask, COMPUTE)
    tl.store(dgates + at_gates, dstate * g * i * (1 - i), mask)
    tl.store(dgates + at_gates + hidden, dstate * load(c_prev + at, mask, COMPUTE) * f * (1 - f), mask)
    tl.store(dgates + at_gates + 2 * hidden, dstate * i * (1 - g * g), mask)
    tl.store(dgates + at_gates + 3 * hidden, dh * tanh_c * o * (1 - o), mask)
    tl.store(dc_prev + at, dstate * f, mask)


def _programs(batch: int, hidden: int) -> Callable[[dict[str, Any]], tuple[int]]:
    return lambda meta: (triton.cdiv(batch, meta["ROWS"]) * triton.cdiv(hidden, meta["UNITS"]),)


def lstm_layer_fwd(gates_x: Tensor, h0: Tensor, c0: Tensor, w_hh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    check_rank("gates_x", gates_x, 3)
    check_rank("h0", h0, 2)
    (steps, _, _), (batch, hidden) = gates_x.shape, h0.shape
    device = gates_x.device
    check_tensor("gates_x", gates_x, (steps, batch, 4 * hidden), device)
    check_tensor("h0", h0, (batch, hidden), device)
    check_tensor("c0", c0, (batch, hidden), device)
    check_tensor("w_hh", w_hh, (4 * hidden, hidden), device)
    dtype = compute_dtype(gates_x.dtype)
    gates_x, w_hh, h_t, c_t = gates_x.contiguous(), w_hh.contiguous(), h0.contiguous(), c0.contiguous()
    gates = gates_x.new_empty(gates_x.shape, dtype=dtype)
    h, c = (gates_x.new_empty((steps, batch, hidden), dtype=dtype) for _ in range(2))
    if h.numel():
        for gates_x_t, gates_t, c_next, h_next in zip(*(x.unbind(0) for x in (gates_x, gates, c, h)), strict=True):
            cell_kernel[_programs(batch, hidden)](
                gates_x_t, None, None, None, None, h_t, c_t, w_hh, gates_t, c_next, h_next,
                batch, 0, hidden, COMPUTE=precision(gates_x),
            )  # fmt: skip
            h_t, c_t = h_next, c_next
    return h.to(gates_x.dtype), c, gates


def lstm_layer_bwd(
    dy: Tensor | None,
    dc: Tensor | None,
    gates: Tensor,
    y: Tensor,
    c: Tensor,
    h0: Tensor,
    c0: Tensor,
    w_hh: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_rank("y", y, 3)
    steps, batch, hidden = y.shape
    given = {"y": y, "gates": gates, "c": c, "h0": h0, "c0": c0, "w_hh": w_hh, "dy": dy, "dc": dc}
    shapes = {"gates": (steps, batch, 4 * hidden), "w_hh": (4 * hidden, hidden)} | dict.fromkeys(
        ("h0", "c0"), (batch, hidden)
    )
    for name, tensor in given.items():
        if tensor is not None:
            check_tensor(name, tensor, shapes.get(name, (steps, batch, hidden)), y.device)
    dtype = compute_dtype(gates.dtype)
    gates, c, weight = gates.contiguous(), c.contiguous(), w_hh.contiguous()
    dy_t, dc_t = ([None] * steps if x is None else x.contiguous().unbind(0) for x in (dy, dc))
    dgates = torch.empty_like(gates, dtype=dtype)
    gates_t, dgates_t, c_t = gates.unbind(0), [*dgates.unbind(0), None], [c0.contiguous(), *c.unbind(0)]
    # what a step hands on is not written where it is read: a kernel that is timed runs more than once
    carried, carried_on = (gates.new_zeros((batch, hidden), dtype=dtype) for _ in range(2))
    if y.numel():
        for t in reversed(range(steps)):
            cell_gradient_kernel[_programs(batch, hidden)](
                dy_t[t], dc_t[t], dgates_t[t + 1], weight, gates_t[t], c_t[t + 1], c_t[t],
                None if t == steps - 1 else carried, dgates_t[t], carried_on, batch, hidden, COMPUTE=precision(gates),
            )  # fmt: skip
            carried, carried_on = carried_on, carried
    dh0, dw_hh = torch.zeros_like(carried), gates.new_zeros(w_hh.shape, dtype=dtype)
    if steps:
        first, later = dgates.split((1, steps - 1))
        with torch.autocast(y.device.type, enabled=False):
            torch.mm(first.squeeze(0), w_hh.to(dtype), out=dh0)
            torch.mm(first.squeeze(0).t(), h0.to(dtype), out=dw_hh)
            dw_hh.addmm_(later.flatten(0, 1).t(), y.narrow(0, 0, steps - 1).to(dtype).flatten(0, 1))
    return dgates.to(y.dtype), dh0.to(h0.dtype), carried.to(c0.dtype), dw_hh.to(w_hh.dtype)


def _check_stack(name: str, stack: list[Tensor], shapes: list[tuple[int, ...]], device: torch.device) -> None:
    check(len(stack) == len(shapes), f"{name} must hold {len(shapes)} tensors, got {len(stack)}")
    for tensor, shape in zip(stack, shapes, strict=True):
        check_tensor(name, tensor, shape, device)


def lstm_step_fwd(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: list[Tensor],
    w_hh: list[Tensor],
    b_ih: list[Tensor],
    b_hh: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    check_rank("x", x, 2)
    check_rank("h", h, 3)
    layers, batch, hidden = h.shape
    check(layers >= 1, f"the number of layers must be at least 1, got {layers}")
    check_shape("h", h, (layers, x.shape[0], hidden))
    for name, tensor in (("x", x), ("h", h), ("c", c)):
        check_tensor(name, tensor, x.shape if name == "x" else h.shape, x.device)
    width = 4 * hidden
    widths = [x.shape[1], *[hidden] * (layers - 1)]
    _check_stack("w_ih", w_ih, [(width, inputs) for inputs in widths], x.device)
    _check_stack("w_hh", w_hh, [(width, hidden)] * layers, x.device)
    _check_stack("b_ih", b_ih, [(width,)] * layers, x.device)
    _check_stack("b_hh", b_hh, [(width,)] * layers, x.device)
    dtype = compute_dtype(x.dtype)
    h_prev, c_prev, below = h.contiguous(), c.contiguous(), x.contiguous()
    gates = x.new_empty((layers, batch, width), dtype=dtype)
    h_next, c_next = (x.new_empty(h.shape, dtype=dtype) for _ in range(2))
    if h.numel():
        states = (x.unbind(0) for x in (h_prev, c_prev, gates, c_next, h_next))
        for k, (h_k, c_k, gates_k, c_out, h_out) in enumerate(zip(*states, strict=True)):
            inputs, product, bias_ih, bias_hh = (stack[k].contiguous() for stack in (w_ih, w_hh, b_ih, b_hh))
            cell_kernel[_programs(batch, hidden)](
                None, below, inputs, bias_ih, bias_hh, h_k, c_k, product, gates_k, c_out, h_out,
                batch, widths[k], hidden, COMPUTE=precision(x),
            )  # fmt: skip
            below = h_out
    return h_next.to(h.dtype), c_next.to(c.dtype), gates
