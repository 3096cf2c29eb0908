"""The training step against the oracle, in one run: the published loop over stock torch.nn, on the same clips.

The two are timed in turn, so that a machine whose speed drifts slows both; the ratio is the median of the pairs'.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import svg_fast
from svg_fast import SVG, backend

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from oracle import OracleSVG

ROUNDS, WARMUP = 5, 2
# Counted multiplications and additions of one SM-MNIST clip, T = 15, as the published loop spends them.
ORACLE_GFLOP_PER_CLIP = 34.4


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def training_step(net: nn.Module, *inputs: torch.Tensor) -> Callable[[], None]:
    """Forward and backward; the optimiser is the same for both and left out."""

    def step() -> None:
        net.zero_grad(set_to_none=True)
        net(*inputs).loss.backward()

    return step


@pytest.mark.parametrize(("preset", "batch", "n_frames"), [("smmnist-lp", 20, 15), ("smmnist-fp", 20, 15)])
def test_training_step(benchmark: Any, preset: str, batch: int, n_frames: int) -> None:
    torch.manual_seed(0)
    config = svg_fast.preset(preset)
    model, oracle = SVG(config), OracleSVG(config)
    oracle.load_state_dict(model.state_dict())
    frames = torch.rand(batch, n_frames, config.channels, config.image_size, config.image_size)
    eps = torch.randn(n_frames - 1, batch, config.z_dim)
    # a step that is not the oracle's is not timed
    torch.testing.assert_close(model(frames, eps).loss, oracle(frames, eps).loss, rtol=1e-4, atol=0)

    ours, theirs = training_step(model, frames, eps), training_step(oracle, frames, eps)
    oracle_seconds: list[float] = []
    benchmark.pedantic(
        ours, setup=lambda: oracle_seconds.append(seconds(theirs)), rounds=ROUNDS, warmup_rounds=WARMUP, iterations=1
    )
    if benchmark.stats is None:
        return
    pairs = list(zip(oracle_seconds[-ROUNDS:], benchmark.stats.stats.data, strict=True))
    benchmark.extra_info.update(
        peer="oracle, eager",
        kernel=backend.served_by("batch_norm_act_fwd"),
        threads=torch.get_num_threads(),
        oracle_seconds=statistics.median(oracle_seconds[-ROUNDS:]),
        oracle_gflop=ORACLE_GFLOP_PER_CLIP * batch if preset == "smmnist-lp" else None,
        times_as_fast=statistics.median(theirs / ours for theirs, ours in pairs),
    )
