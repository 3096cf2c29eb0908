"""What one time step of the `lstm_layer` kernel costs, cycle by cycle: a model, nothing of it was run.

The design (csrc/cuda/lstm_layer*): H / 32 blocks of 8 warps carry 8 batch rows, the columns of an mma. A block has 32
units times 4 gates as rows of w_hh, a warp 16 of them, in registers as pairs of float16 halves. A step multiplies w_hh
with h, finishes 32 units of 8 rows, and hands their h to the other blocks: two halves, of bfloat16 sequences one.
sm_90: the blocks are a cluster, h goes into the peers' shared memory, and up to H = 256 the product with one block's
units begins when their h is there, the own first. sm_80: through the L2 cache, with a counter for the group.

Sources: [1] the vendor's data sheets and architecture papers; [2] Luo et al., "Benchmarking and Dissecting the Nvidia
Hopper GPU Architecture", arXiv 2402.13499; [3] Sun et al., "Dissecting Tensor Cores via Microbenchmarks", arXiv
2206.02874; [4] assumed here. Figures of [2] and [3] are quoted from memory and were taken on other boards (PCIe).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["float32", "bfloat16"]

UNITS, WARPS, ROWS = 32, 8, 8  # of a block: hidden units, warps, batch rows
TILE_DEPTH = 16  # mma m16n8k16
HALF_BYTES = 2
HALVES: dict[Precision, int] = {"float32": 2, "bfloat16": 1}  # that h travels as
QUARTERS = 4  # of an SM, each with a tensor core
# float32: both halves of w with the upper of h, and the upper of w with the lower of h.
PRODUCTS: dict[Precision, int] = {"float32": 3, "bfloat16": 1}
# The longest of a warp's independent sums adds this share of all steps through the depth.
CHAIN: dict[Precision, float] = {"float32": 1, "bfloat16": 1 / 2}
MOST_IN_PARTS = 256  # hidden units whose product follows the parts as they come

SHARED_BYTES = 128  # a cycle and SM [1]
SHARED_LATENCY = 29  # cycles [2]
MMA_LATENCY = 33  # cycles from mma to dependent mma, m16n8k16 with float32 sums [3]
SPECIAL_RATE = 16  # exponentials or reciprocals a cycle and SM [1]
SPECIALS = 10  # a cell: five activations, each an exponential and a reciprocal
CELL_LATENCY = 250  # shuffles that bring gates together, two activations in a row, split into halves, shuffles [4]
L2_LATENCY = 260  # cycles [2]


@dataclass(frozen=True)
class Gpu:
    """clock in Hz; bandwidth in bytes/s; rates in FLOP/s, dense; mma_cycles: between two m16n8k16 of an SM's quarter.

    matrix_rate of float32 is that without tensor cores: TF32 is no float32.

    remote_latency: cycles of a store into a peer's shared memory until the peer, waiting at its mbarrier, goes on.
    remote_bytes: a cycle and SM, all sending at once. node_seconds: from one kernel to the next in a CUDA graph [4],
    measured by gpu_check.sh as graph_node.
    """

    name: str
    sms: int
    clock: float
    bandwidth: float
    matrix_rate: dict[Precision, float]
    tf32_rate: float
    mma_cycles: float
    remote_latency: float | None = None
    remote_bytes: float | None = None
    node_seconds: float = 1.5e-6


A100 = Gpu("A100 SXM 80 GB", 108, 1.41e9, 2.039e12, {"float32": 19.5e12, "bfloat16": 312e12}, 156e12, mma_cycles=8)
# mma_cycles: mma.sync reaches 62.9 % of the rate of wgmma, whose 4096 FLOP would take 4 cycles [2]. remote_latency:
# 180 cycles [2], and 40 for the barrier [4]. remote_bytes: 3.3 TB/s of 114 SMs at 1.755 GHz, in clusters of two [2].
H100 = Gpu(
    "H100 SXM",
    132,
    1.83e9,
    3.35e12,
    {"float32": 67e12, "bfloat16": 989.4e12},
    494.7e12,
    mma_cycles=4 / 0.629,
    remote_latency=180 + 40,
    remote_bytes=16.5,
)


def through_l2() -> float:
    """Cycles to hand data to other SMs: written, counted after that, the count read, the data read; each a latency."""
    return 4 * L2_LATENCY


def lstm_step_terms(gpu: Gpu, precision: Precision, hidden: int) -> dict[str, float]:
    """Cycles of what a step does one after the other, by name; nothing depends on B or T.

    Products overlap with their loads: the slower counts. In a cluster they overlap with the way of h too.
    """
    blocks, depth = hidden // UNITS, hidden // TILE_DEPTH
    issue = WARPS / QUARTERS * depth * PRODUCTS[precision] * gpu.mma_cycles
    chain = depth * CHAIN[precision] * MMA_LATENCY
    loads = WARPS * ROWS * hidden * HALVES[precision] * HALF_BYTES / SHARED_BYTES
    products, cells = max(issue, chain, loads), ROWS * UNITS
    latency = gpu.remote_latency or through_l2()
    message = cells * HALVES[precision] * HALF_BYTES / gpu.remote_bytes if gpu.remote_bytes else 0.0
    parts = blocks if gpu.remote_bytes and hidden <= MOST_IN_PARTS else 1
    end = products / parts if parts > 1 else 0.0  # of the own part, or where all are awaited at once
    for sent in range(1, parts) if parts > 1 else [blocks - 1]:
        end = max(end, latency + sent * message) + products / parts
    return {
        "first ldmatrix": SHARED_LATENCY,
        "cells": max(CELL_LATENCY, cells * SPECIALS / SPECIAL_RATE),
        "h to the peers, latency": latency,
        "h to the peers, bytes, and the products of what has come": end - latency,
        "last product": MMA_LATENCY,
    }
