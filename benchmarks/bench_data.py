"""Stochastic Moving MNIST: batches of 100 clips, 2 digits, 15 frames of 64x64, in one thread and in torch's own number.

Against a loader that works as published ones do, digit by digit and frame by frame, in float32 and one thread. The
two are timed in turn, so that a machine whose speed drifts slows both; the ratio is the median of the pairs'. The roof
is filling a batch that is already in memory with zeros.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from svg_fast import backend
from svg_fast.data import MovingMNIST, load_digits
from svg_fast.data.velocity import MOTIONS, Motion

BATCH, FRAMES, DIGITS, SIZE = 100, 15, 2, 64
ROUNDS, WARMUP = 50, 5
IN_A_ROW = 10  # of our batches take less time than one of the plain loader's
TORCH_THREADS = torch.get_num_threads()


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return load_digits(None, "train")


@pytest.fixture(autouse=True, params=[1, TORCH_THREADS], ids=["one thread", "torch's threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(TORCH_THREADS)


def plain_clip(images: npt.NDArray[np.uint8], draw: Callable[..., Any]) -> npt.NDArray[np.float32]:
    """One clip of uniform motion, (T, S, S) in [0, 1], from images (N, 28, 28); draw(low, high) is random."""
    clip = np.zeros((FRAMES, SIZE, SIZE), dtype=np.float32)
    last = SIZE - 33
    for _ in range(DIGITS):
        image = Image.fromarray(images[draw(0, len(images))])
        digit = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float32) / 255
        x, y = draw(0, SIZE - 32), draw(0, SIZE - 32)
        dx, dy = draw(-4, 5), draw(-4, 5)
        for t in range(FRAMES):
            if y < 0:
                y, dy, dx = 0, draw(1, 5), draw(-4, 5)
            elif y > last:
                y, dy, dx = last, draw(-4, 0), draw(-4, 5)
            if x < 0:
                x, dx, dy = 0, draw(1, 5), draw(-4, 5)
            elif x > last:
                x, dx, dy = last, draw(-4, 0), draw(-4, 5)
            clip[t, y : y + 32, x : x + 32] += digit
            x, y = x + dx, y + dy
    clip[clip > 1] = 1
    return clip


def seconds(make: Callable[[], object]) -> float:
    start = time.perf_counter()
    make()
    return time.perf_counter() - start


def batches(data: MovingMNIST) -> Iterator[Tensor]:
    return iter(torch.randperm(len(data)).view(-1, BATCH))


def assert_reference(data: MovingMNIST) -> None:
    """Clips that are not the reference's are not timed."""
    index = next(batches(data))
    clips = data.clips(index)
    with backend.use_backend("reference"):
        assert all(map(torch.equal, clips, data.clips(index)))


@pytest.mark.parametrize("motion", MOTIONS)
def test_clips(benchmark: Any, digits: Tensor, threads: int, motion: Motion) -> None:
    data = MovingMNIST(digits, FRAMES, num_digits=DIGITS, image_size=SIZE, motion=motion)
    assert_reference(data)
    indices = batches(data)
    benchmark.extra_info.update(served_by=backend.served_by("moving_mnist_clips"), threads=threads)
    benchmark.pedantic(lambda: data.clips(next(indices)), rounds=ROUNDS, warmup_rounds=WARMUP)
    if benchmark.stats:
        frames = data.clips(next(indices)).frames
        roof = statistics.median(seconds(frames.zero_) for _ in range(ROUNDS))
        median = benchmark.stats.stats.median
        benchmark.extra_info.update(clips_per_second=BATCH / median, bytes=frames.numel(), times_the_roof=median / roof)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=["uint8", "float32"])
def test_against_plain_loader(benchmark: Any, digits: Tensor, threads: int, dtype: torch.dtype) -> None:
    """Both give a batch as one tensor, (100, 15, 1, 64, 64): ours in bytes, or in float32 like the other."""
    data = MovingMNIST(digits, FRAMES, num_digits=DIGITS, image_size=SIZE)
    assert_reference(data)
    indices = itertools.cycle(batches(data))
    images = interpolate(digits[:, None], (28, 28), mode="bilinear")[:, 0].numpy()
    draw = np.random.default_rng(0).integers

    def ours() -> Tensor:
        frames = data.clips(next(indices)).frames
        return frames if dtype == torch.uint8 else frames.to(dtype).div_(255)

    def ours_in_a_row() -> None:
        for _ in range(IN_A_ROW):
            ours()

    def plain() -> Tensor:
        return torch.from_numpy(np.stack([plain_clip(images, draw) for _ in range(BATCH)]))[:, :, None]

    plain_seconds: list[float] = []
    benchmark.extra_info.update(served_by=backend.served_by("moving_mnist_clips"), threads=threads)
    benchmark.pedantic(
        ours_in_a_row,
        setup=lambda: plain_seconds.append(seconds(plain)),
        rounds=ROUNDS,
        warmup_rounds=WARMUP,
        iterations=1,
    )
    if benchmark.stats:
        own_seconds = [total / IN_A_ROW for total in benchmark.stats.stats.data]
        pairs = zip(plain_seconds[-ROUNDS:], own_seconds, strict=True)
        benchmark.extra_info.update(
            clips_per_second=BATCH / statistics.median(own_seconds),
            plain_clips_per_second=BATCH / statistics.median(plain_seconds[-ROUNDS:]),
            times_as_fast=statistics.median(plain / own for plain, own in pairs),
        )
