"""Standard normal noise from Philox4x32-10: the words and the mapping of `svg_fast.reference.gaussian`."""

from __future__ import annotations

import triton
import triton.language as tl

from .maths import cosine_and_sine


@triton.jit
def _normal_pair(word0, word1, COMPUTE: tl.constexpr):
    """Box-Muller of u = (word + 1/2) / 2**32."""
    u0 = word0.to(COMPUTE) * 2.0**-32 + 2.0**-33
    u1 = word1.to(COMPUTE) * 2.0**-32 + 2.0**-33
    radius = tl.sqrt(-2 * tl.log(u0))
    cosine, sine = cosine_and_sine(u1)
    return radius * cosine, radius * sine


@triton.jit
def normal_noise(seed, first, BLOCK: tl.constexpr, COMPUTE: tl.constexpr):
    """Elements first, first + 1, ... of the noise that `seed`, the address of (seed, offset), keys.

    `first` is a multiple of 4: element e is lane e % 4 of the counter (e // 4, offset), and no counter is drawn twice.
    """
    key, offset = tl.load(seed), tl.load(seed + 1)
    block = first // 4 + tl.arange(0, BLOCK // 4)
    zero = tl.zeros_like(block).to(tl.uint32)
    low, high = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(key, low, high, zero + offset.to(tl.uint32), zero + (offset >> 32).to(tl.uint32))
    n0, n1 = _normal_pair(w0, w1, COMPUTE)
    n2, n3 = _normal_pair(w2, w3, COMPUTE)
    return tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), (BLOCK,))
