"""BatchNorm with statistics per time step and an activation. G steps of N images, C channels.

Forward: the moments of each chunk of a step, their merger, and the normalisation; backward: the sums of each chunk,
their merger, and the gradient of x. Three launches a direction (and two sums over the steps), for any sizes. x is
read twice and y written once; backward, dy and x are read twice and dx is written once.

A tile of a step stays in registers while its mean and then its squares about that mean are summed: two passes over the
values for one over memory. Tiles and chunks are merged by Chan, Golub and LeVeque (1983) in float64, a few operations a
channel. How a step is cut depends on shapes alone, and nothing is added by atomics.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.precision import compute_dtype
from .launch import check, check_rank, check_tensor, precision, tuned
from .maths import hyperbolic_tangent, load, square_root, store

# Values of a tile, a few dozen in each thread's registers; programs of a pass, several to each processor of a GPU.
_TILE, _WARPS, _PROGRAMS = 4096, 8, 1024
_MERGED = tl.constexpr(16)  # chunks that are merged at once
_ACTIVATIONS = ("leaky_relu", "tanh", "identity")


@triton.jit
def _place(parts, channels, CHANNELS: tl.constexpr):
    """Of this program: its step, its part of the step, its channels, and which of them there are."""
    groups = tl.cdiv(channels, CHANNELS)
    rest = tl.program_id(0) // parts
    channel = rest % groups * CHANNELS + tl.arange(0, CHANNELS)
    return (rest // groups).to(tl.int64), tl.program_id(0) % parts, channel, channel < channels


@triton.jit
def _tile(first, channel, known, rows, channels, run, ROWS: tl.constexpr):
    """Where the values of some rows of a step lie in it. A row is one value of each channel; `run` rows lie side by
    side in each channel: the map's pixels where x is contiguous, one row where channels are last."""
    row = first + tl.arange(0, ROWS)
    at = (row // run).to(tl.int64) * (channels * run) + row % run
    return at[:, None] + (channel * run)[None, :], (row < rows)[:, None] & known[None, :]


@triton.jit
def _merge(count, mean, squares, count_b, mean_b, squares_b):
    """Two samples' sizes, means and sums of squares about them -> those of both."""
    total = count + count_b
    distance = mean_b - mean
    share = count_b / total
    return total, mean + distance * share, squares + squares_b + distance * distance * share * count


@triton.jit
def moments_kernel(
    x, moments, rows, channels, run, chunks, tiles,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """x -> mean and sum of squares about it of each chunk: moments (G, chunks, 2, C) in float64."""
    step, chunk, channel, known = _place(chunks, channels, CHANNELS)
    x += step * rows * channels
    mean = tl.zeros((CHANNELS,), tl.float64)
    squares = tl.zeros((CHANNELS,), tl.float64)
    count = tl.full((), 0, tl.float64)
    begin = chunk * tiles * ROWS
    for first in range(begin, min(begin + tiles * ROWS, rows), ROWS):
        at, mask = _tile(first, channel, known, rows, channels, run, ROWS)
        value = load(x + at, mask, COMPUTE)
        n = tl.minimum(rows - first, ROWS)
        centre = tl.sum(value, 0) / n
        rest = tl.where(mask, value - centre[None, :], 0.0)
        # what the rounding of the centre left, and its part of the squares
        drift, around = tl.sum(rest, 0).to(tl.float64), tl.sum(rest * rest, 0).to(tl.float64)
        n = n.to(tl.float64)
        around -= drift * drift / n
        around = tl.where(around < 0, 0.0, around)
        count, mean, squares = _merge(count, mean, squares, n, centre.to(tl.float64) + drift / n, around)
    at = (step * chunks + chunk) * 2 * channels + channel
    tl.store(moments + at, mean, known)
    tl.store(moments + at + channels, squares, known)


@triton.jit
def statistics_kernel(moments, mean_out, var_out, rows, channels, chunks, chunk_rows, CHANNELS: tl.constexpr):
    """moments (G, chunks, 2, C) -> mean, var (G, C)."""
    step, _, channel, known = _place(1, channels, CHANNELS)
    mean = tl.zeros((CHANNELS,), tl.float64)
    squares = tl.zeros((CHANNELS,), tl.float64)
    count = tl.full((), 0, tl.float64)
    for first in range(0, chunks, _MERGED):
        chunk = first + tl.arange(0, _MERGED)
        mask = (chunk < chunks)[:, None] & known[None, :]
        at = ((step * chunks + chunk) * 2 * channels)[:, None] + channel[None, :]
        n = tl.maximum(tl.minimum(rows - chunk * chunk_rows, chunk_rows), 0).to(tl.float64)
        means = tl.load(moments + at, mask, other=0.0)
        around = tl.load(moments + at + channels, mask, other=0.0)
        total = tl.sum(n, 0)
        centre = tl.sum(means * n[:, None], 0) / total
        rest = means - centre[None, :]
        around = tl.sum(around + rest * rest * n[:, None], 0)
        count, mean, squares = _merge(count, mean, squares, total, centre, around)
    at = step * channels + channel
    store(mean_out + at, mean, known)
    store(var_out + at, squares / count, known)


@triton.jit
def _parameters(weight, bias, mean, var, step, channel, known, channels, EPS: tl.constexpr, COMPUTE: tl.constexpr):
    """Of some channels of a step: mean, one over the standard deviation, that times the weight, and bias."""
    at = step * channels + channel
    inverse_std = 1 / square_root(load(var + at, known, COMPUTE) + EPS)
    scale = load(weight + channel, known, COMPUTE) * inverse_std
    return load(mean + at, known, COMPUTE), inverse_std, scale, load(bias + channel, known, COMPUTE)


@triton.jit
def _pre_activation(centred, scale, bias):
    """The forward's, and the backward's anew: one rounding in both, so that both see the same sign."""
    return tl.fma(
        centred, tl.broadcast_to(scale[None, :], centred.shape), tl.broadcast_to(bias[None, :], centred.shape)
    )


@triton.jit
def _activation_gradient(dy, z, ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr):
    if ACTIVATION == "leaky_relu":
        dy = tl.where(z > 0, dy, dy * NEGATIVE_SLOPE)
    elif ACTIVATION == "tanh":
        y = hyperbolic_tangent(z)
        dy = dy - dy * (y * y)
    return dy


_TILES = [
    triton.Config({"TILE": tile}, num_warps=warps) for tile, warps in ((4096, 4), (2048, 4), (4096, 8), (8192, 8))
]
_TILES_KEY = ["rows", "channels", "run"]


@tuned(*_TILES, key=_TILES_KEY)
@triton.jit
def normalise_kernel(
    x, weight, bias, mean, var, y, rows, channels, run,
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, EPS: tl.constexpr,
    CHANNELS: tl.constexpr, COMPUTE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = TILE // CHANNELS
    step, part, channel, known = _place(tl.cdiv(rows, ROWS), channels, CHANNELS)
    centre, _, scale, offset = _parameters(weight, bias, mean, var, step, channel, known, channels, EPS, COMPUTE)
    at, mask = _tile(part * ROWS, channel, known, rows, channels, run, ROWS)
    at += step * rows * channels
    z = _pre_activation(load(x + at, mask, COMPUTE) - centre[None, :], scale, offset)
    if ACTIVATION == "leaky_relu":
        z = tl.where(z > 0, z, z * NEGATIVE_SLOPE)
    elif ACTIVATION == "tanh":
        z = hyperbolic_tangent(z)
    store(y + at, z, mask)


@triton.jit
def sums_kernel(
    dy, x, weight, bias, mean, var, sums, rows, channels, run, chunks, tiles,
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, EPS: tl.constexpr,
    ROWS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """Of each chunk, over dz, the gradient of what is activated: sums of dz and of dz * (x - mean), (G, chunks, 2, C)
    in float64."""
    step, chunk, channel, known = _place(chunks, channels, CHANNELS)
    centre, _, scale, offset = _parameters(weight, bias, mean, var, step, channel, known, channels, EPS, COMPUTE)
    x += step * rows * channels
    dy += step * rows * channels
    total = tl.zeros((CHANNELS,), tl.float64)
    product = tl.zeros((CHANNELS,), tl.float64)
    begin = chunk * tiles * ROWS
    for first in range(begin, min(begin + tiles * ROWS, rows), ROWS):
        at, mask = _tile(first, channel, known, rows, channels, run, ROWS)
        centred = load(x + at, mask, COMPUTE) - centre[None, :]
        z = _pre_activation(centred, scale, offset)
        dz = _activation_gradient(load(dy + at, mask, COMPUTE), z, ACTIVATION, NEGATIVE_SLOPE)
        total += tl.sum(tl.where(mask, dz, 0.0), 0).to(tl.float64)
        product += tl.sum(tl.where(mask, dz * centred, 0.0), 0).to(tl.float64)
    at = (step * chunks + chunk) * 2 * channels + channel
    tl.store(sums + at, total, known)
    tl.store(sums + at + channels, product, known)


@triton.jit
def gradients_kernel(
    sums, weight, bias, mean, var, dweight, dbias, slope, offset, rows, channels, chunks,
    EPS: tl.constexpr, CHANNELS: tl.constexpr, COMPUTE: tl.constexpr,
):  # fmt: skip
    """sums (G, chunks, 2, C) -> a step's dweight and dbias, and what dx has of mean and variance, which depend on
    every x: a slope and an offset. All (G, C)."""
    step, _, channel, known = _place(1, channels, CHANNELS)
    total = tl.zeros((CHANNELS,), tl.float64)
    product = tl.zeros((CHANNELS,), tl.float64)
    for first in range(0, chunks, _MERGED):
        chunk = first + tl.arange(0, _MERGED)
        mask = (chunk < chunks)[:, None] & known[None, :]
        at = ((step * chunks + chunk) * 2 * channels)[:, None] + channel[None, :]
        total += tl.sum(tl.load(sums + at, mask, other=0.0), 0)
        product += tl.sum(tl.load(sums + at + channels, mask, other=0.0), 0)
    _, inverse_std, scale, _ = _parameters(weight, bias, mean, var, step, channel, known, channels, EPS, COMPUTE)
    inverse_std, scale = inverse_std.to(tl.float64), scale.to(tl.float64)
    at = step * channels + channel
    store(dweight + at, product * inverse_std, known)
    store(dbias + at, total, known)
    store(slope + at, -scale * inverse_std * inverse_std * product / rows, known)
    store(offset + at, -scale * total / rows, known)


@tuned(*_TILES, key=_TILES_KEY)
@triton.jit
def input_gradient_kernel(
    dy, x, weight, bias, mean, var, slope, offset, dx, rows, channels, run,
    ACTIVATION: tl.constexpr, NEGATIVE_SLOPE: tl.constexpr, EPS: tl.constexpr,
    CHANNELS: tl.constexpr, COMPUTE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    ROWS: tl.constexpr = TILE // CHANNELS
    step, part, channel, known = _place(tl.cdiv(rows, ROWS), channels, CHANNELS)
    centre, _, scale, shift = _parameters(weight, bias, mean, var, step, channel, known, channels, EPS, COMPUTE)
    at_channel = step * channels + channel
    dx_slope, dx_offset = load(slope + at_channel, known, COMPUTE), load(offset + at_channel, known, COMPUTE)
    at, mask = _tile(part * ROWS, channel, known, rows, channels, run, ROWS)
    at += step * rows * channels
    centred = load(x + at, mask, COMPUTE) - centre[None, :]
    z = _pre_activation(centred, scale, shift)
    dz = _activation_gradient(load(dy + at, mask, COMPUTE), z, ACTIVATION, NEGATIVE_SLOPE)
    store(dx + at, dz * scale[None, :] + (centred * dx_slope[None, :] + dx_offset[None, :]), mask)


@dataclass
class _Cut:
    """How x, which is not empty, lies in memory, and how a step is cut into tiles of rows and channels, and chunks."""

    steps: int
    channels: int
    rows: int
    run: int  # see _tile

    def __post_init__(self) -> None:
        # Side by side in memory: channels where they are last, else the channels of a few short runs.
        together = min(64, triton.next_power_of_2(self.channels))
        self.tile_channels = together if self.run == 1 else min(together, max(1, 256 // self.run))
        self.tile_channels = triton.next_power_of_2(self.tile_channels)
        self.tile_rows = min(_TILE // self.tile_channels, triton.next_power_of_2(self.rows))
        self.groups = triton.cdiv(self.channels, self.tile_channels)
        tiles = triton.cdiv(self.rows, self.tile_rows)
        self.tiles = max(1, tiles * self.groups * self.steps // _PROGRAMS)  # of a chunk
        self.chunks = triton.cdiv(tiles, self.tiles)

    def tile_programs(self, meta: dict[str, Any]) -> tuple[int]:
        return (triton.cdiv(self.rows, meta["TILE"] // self.tile_channels) * self.groups * self.steps,)


def _check(x: Tensor, vectors: dict[str, Tensor], steps: int, activation: str) -> None:
    check_rank("x", x, 4)
    check_tensor("x", x, x.shape, x.device)
    check(steps >= 1, f"steps must be at least 1, got {steps}")
    check(
        x.shape[0] % steps == 0,
        f"dimension 0 of x must be a multiple of steps, got {x.shape[0]} images for {steps} steps",
    )
    check(
        activation in _ACTIVATIONS,
        f"activation must be one of {', '.join(_ACTIVATIONS)}, got {activation}",
    )
    for name, vector in vectors.items():
        shape = (x.shape[1],) if name in ("weight", "bias") else (steps, x.shape[1])
        check_tensor(name, vector, shape, x.device)
    check(
        x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last),
        f"x must be contiguous or channels_last in memory, got shape {list(x.shape)}, strides {x.stride()}",
    )


def _cut(x: Tensor, steps: int) -> _Cut:
    images, channels, height, width = x.shape
    run = height * width if x.is_contiguous() and channels > 1 else 1
    return _Cut(steps, channels, images // steps * height * width, run)


def batch_norm_act_fwd(
    x: Tensor, weight: Tensor, bias: Tensor, steps: int, activation: str, negative_slope: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, {"weight": weight, "bias": bias}, steps, activation)
    y = torch.empty_like(x)
    mean = x.new_zeros((steps, x.shape[1]), dtype=compute_dtype(x.dtype))
    var = torch.zeros_like(mean)
    if not x.numel():
        return y, mean, var
    cut = _cut(x, steps)
    sizes = cut.rows, cut.channels
    tile = {"CHANNELS": cut.tile_channels, "COMPUTE": precision(x)}
    moments = x.new_empty((steps, cut.chunks, 2, cut.channels), dtype=torch.float64)
    moments_kernel[(cut.chunks * cut.groups * steps,)](
        x, moments, *sizes, cut.run, cut.chunks, cut.tiles, ROWS=cut.tile_rows, **tile, num_warps=_WARPS
    )
    statistics_kernel[(cut.groups * steps,)](
        moments, mean, var, *sizes, cut.chunks, cut.tiles * cut.tile_rows, CHANNELS=cut.tile_channels
    )
    normalise_kernel[cut.tile_programs](
        x, weight.contiguous(), bias.contiguous(), mean, var, y, *sizes, cut.run,
        ACTIVATION=activation, NEGATIVE_SLOPE=negative_slope, EPS=eps, **tile,
    )  # fmt: skip
    return y, mean, var


def batch_norm_act_bwd(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    steps: int,
    activation: str,
    negative_slope: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(x, {"weight": weight, "bias": bias, "mean": mean, "var": var}, steps, activation)
    check_tensor("dy", dy, x.shape, x.device)
    dx = torch.empty_like(x)
    if not x.numel():
        return dx, torch.zeros_like(weight), torch.zeros_like(weight)
    if dy.stride() != x.stride():
        dy = torch.empty_like(x, dtype=dy.dtype).copy_(dy)
    cut = _cut(x, steps)
    sizes = cut.rows, cut.channels
    tile = {"CHANNELS": cut.tile_channels, "COMPUTE": precision(x)}
    options = {"ACTIVATION": activation, "NEGATIVE_SLOPE": negative_slope, "EPS": eps}
    parameters = [vector.contiguous() for vector in (weight, bias, mean, var)]
    sums = x.new_empty((steps, cut.chunks, 2, cut.channels), dtype=torch.float64)
    dweight, dbias, slope, offset = (x.new_empty((steps, cut.channels), dtype=compute_dtype(x.dtype)) for _ in range(4))
    sums_kernel[(cut.chunks * cut.groups * steps,)](
        dy, x, *parameters, sums, *sizes, cut.run, cut.chunks, cut.tiles,
        ROWS=cut.tile_rows, **options, **tile, num_warps=_WARPS,
    )  # fmt: skip
    gradients_kernel[(cut.groups * steps,)](
        sums, *parameters, dweight, dbias, slope, offset, *sizes, cut.chunks, EPS=eps, **tile
    )
    input_gradient_kernel[cut.tile_programs](dy, x, *parameters, slope, offset, dx, *sizes, cut.run, **options, **tile)
    return dx, dweight.sum(0).to(weight.dtype), dbias.sum(0).to(weight.dtype)
