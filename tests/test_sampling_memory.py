"""A rollout's memory against the limit that it was given, measured in a process of its own."""

from __future__ import annotations

import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from svg_fast import SVG, SVGConfig, preset

LIMIT = 300_000_000
CASES = {
    "dcgan, batch": replace(preset("smmnist-lp"), generation_statistics="batch"),
    "dcgan, running": replace(preset("smmnist-lp"), generation_statistics="running"),
    "own skips": replace(preset("smmnist-lp"), last_frame_skip=True),
    "vgg": replace(preset("kth-lp"), nf=32),
}


def status_bytes(field: str) -> int:
    """VmRSS, or VmHWM, the most that it ever was."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024


def peak(config: SVGConfig) -> tuple[int, int]:
    """Bytes above the model and what is given, and the number of chunks."""
    torch.set_num_threads(1)
    model = SVG(config).eval()
    frames = torch.zeros(16, config.n_past, 1, 64, 64)
    list(model.sample_chunks(frames[:2], 1, 1))  # libraries and their threads
    before, n_chunks = status_bytes("VmRSS"), 0
    for _ in model.sample_chunks(frames, 2, 12, memory_limit=LIMIT):
        n_chunks += 1
    return status_bytes("VmHWM") - before, n_chunks


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is read from Linux's /proc")
@pytest.mark.parametrize("case", CASES)
def test_a_chunk_keeps_to_its_limit(case: str) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        taken, n_chunks = pool.apply(peak, (CASES[case],))
    assert n_chunks > 1
    assert taken < 1.1 * LIMIT
