"""What the kernels share within a program: memory in the precision of the sums, and functions exact to a rounding."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

INTERPRETED = triton.knobs.runtime.interpret


@triton.jit
def load(pointer, mask, COMPUTE: tl.constexpr):
    """In the precision that is computed in; zero where the mask is not set."""
    value = tl.load(pointer, mask, other=0.0)
    if value.dtype == tl.bfloat16:
        value = value.to(tl.float32)  # the only way out of bfloat16 that the interpreter knows, and free
    return value.to(COMPUTE)


@triton.jit
def store(pointer, value, mask):
    """In the precision of the memory, rounded once."""
    if pointer.dtype.element_ty == tl.bfloat16:
        value = value.to(tl.float32)
    tl.store(pointer, value.to(pointer.dtype.element_ty), mask)


# `tl.exp` is 2^(x log2 e) by the approximate unit, whose error grows with x. The interpreter's is NumPy's; it knows no
# libdevice.
if INTERPRETED:

    @triton.jit
    def exponential(x):
        return tl.exp(x)

    @triton.jit
    def hyperbolic_tangent(x):
        decay = tl.exp(-2 * tl.abs(x))
        magnitude = (1 - decay) / (1 + decay)
        return tl.where(x < 0, -magnitude, magnitude)

else:

    @triton.jit
    def exponential(x):
        return libdevice.exp(x)

    @triton.jit
    def hyperbolic_tangent(x):
        return libdevice.tanh(x)


@triton.jit
def square_root(x):
    """Rounded once: `tl.sqrt` of float32 is the approximate unit's."""
    return tl.sqrt_rn(x) if x.dtype == tl.float32 else tl.sqrt(x)


@triton.jit
def logistic(x):
    return 1 / (1 + exponential(-x))


@triton.jit
def cosine_and_sine(turn):
    """Of an angle in turns, 0 to 1.

    By quarters and a series: `tl.cos` brings the reduction of angles of any size along, which wants memory.
    """
    TERMS: tl.constexpr = 8 if turn.dtype == tl.float64 else 5  # the next is below a rounding for an eighth of a turn
    quarter = tl.floor(turn * 4 + 0.5)
    angle = (turn - quarter * 0.25) * 6.283185307179586  # the difference is exact
    square = angle * angle
    cosine, sine = tl.full(turn.shape, 1, turn.dtype), tl.full(turn.shape, 1, turn.dtype)
    for k in tl.static_range(2 * TERMS, 0, -2):
        cosine = 1 - square * cosine * (1 / (k * (k - 1)))
        sine = 1 - square * sine * (1 / (k * (k + 1)))
    sine *= angle
    quadrant = quarter.to(tl.int32) & 3
    odd = (quadrant & 1) == 1
    x, y = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return tl.where((quadrant == 1) | (quadrant == 2), -x, x), tl.where(quadrant >= 2, -y, y)
