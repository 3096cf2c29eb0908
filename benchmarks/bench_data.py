"""Stochastic Moving MNIST: batches of 100 clips, 2 digits, 15 frames of 64x64, in one thread and in torch's own number.

Against a loader that works as published ones do, digit by digit and frame by frame, in float32 and one thread. The
least work is writing the batch once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from measure import Race, Work
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from svg_fast import backend
from svg_fast.data import MovingMNIST, load_digits
from svg_fast.data.velocity import MOTIONS, Motion

BATCH, FRAMES, DIGITS, SIZE = 100, 15, 2, 64
TORCH_THREADS = torch.get_num_threads()

pytestmark = [
    pytest.mark.benchmark(group="moving_mnist_clips"),
    pytest.mark.parametrize("threads", [1, TORCH_THREADS], indirect=True, ids=["one thread", "torch's threads"]),
]


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return load_digits(None, "train")


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


def batches(data: MovingMNIST) -> Iterator[Tensor]:
    return itertools.cycle(torch.randperm(len(data)).view(-1, BATCH))


def assert_reference(data: MovingMNIST) -> None:
    """Clips that are not the reference's are not timed."""
    index = next(batches(data))
    clips = data.clips(index)
    with backend.use_backend("reference"):
        assert all(map(torch.equal, clips, data.clips(index)))


@pytest.mark.parametrize("motion", MOTIONS)
def test_clips(race: Race, digits: Tensor, motion: Motion) -> None:
    data = MovingMNIST(digits, FRAMES, num_digits=DIGITS, image_size=SIZE, motion=motion)
    indices = batches(data)
    race(
        lambda: data.clips(next(indices)),
        {},
        check=lambda: assert_reference(data),
        ops=["moving_mnist_clips"],
        work=Work("memcpy", BATCH * FRAMES * SIZE * SIZE),
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=["uint8", "float32"])
def test_against_plain_loader(race: Race, digits: Tensor, dtype: torch.dtype) -> None:
    """Both give a batch as one tensor, (100, 15, 1, 64, 64): ours in bytes, or in float32 like the other."""
    data = MovingMNIST(digits, FRAMES, num_digits=DIGITS, image_size=SIZE)
    indices = batches(data)
    images = interpolate(digits[:, None], (28, 28), mode="bilinear")[:, 0].numpy()
    draw = np.random.default_rng(0).integers

    def ours() -> Tensor:
        frames = data.clips(next(indices)).frames
        return frames if dtype == torch.uint8 else frames.to(dtype).div_(255)

    def plain() -> Tensor:
        return torch.from_numpy(np.stack([plain_clip(images, draw) for _ in range(BATCH)]))[:, :, None]

    race(
        ours,
        {"plain loader": plain},
        check=lambda: assert_reference(data),
        ops=["moving_mnist_clips"],
        work=Work("memcpy", BATCH * FRAMES * SIZE * SIZE * dtype.itemsize),
    )
