"""Clips of Stochastic Moving MNIST that share trajectories and differ in their digits (section 4 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference.moving_mnist import DIGIT_SIZE
from .moving_mnist import Clips, MovingMNIST
from .velocity import Motion

_SEARCHED, _BLOCK = 2**14, 2**8  # indices, and how many of them at once


def synchronised_clips(
    digits: Tensor,
    n_clips: int,
    n_frames: int,
    *,
    index: int,
    num_digits: int = 1,
    image_size: int = 64,
    motion: Motion = "uniform",
    seed: int = 0,
) -> Clips:
    """B = n_clips clips on the trajectories of clip `index` of `MovingMNIST` with the same arguments.

    Clip b shows the images of that data set's clip b, so that clip `index` is the data set's own.

    digits (N, 32, 32) uint8 -> `Clips` with frames (B, T, 1, S, S), whose positions, velocities and hits repeat those
    of one clip.

    Raises ValueError for an argument out of its range, as `MovingMNIST` does; IndexError for a negative index.
    """
    if n_clips < 1:
        raise ValueError(f"n_clips must be at least 1, got {n_clips}")

    def data(frames: int, length: int) -> MovingMNIST:
        return MovingMNIST(
            digits, frames, num_digits=num_digits, image_size=image_size, motion=motion, seed=seed, length=length
        )

    flight = data(n_frames, max(1, index + 1)).clips([index])
    shown = data(1, n_clips).clips(range(n_clips)).digits
    images = digits.cpu()[shown]  # (B, D, 32, 32)
    frames = images.new_zeros(n_clips, *flight.frames.shape[1:])
    for t, places in enumerate(flight.positions[0].tolist()):
        for d, (x, y) in enumerate(places):
            window = frames[:, t, 0, y : y + DIGIT_SIZE, x : x + DIGIT_SIZE]
            window += torch.minimum(images[:, d], 255 - window)  # digits add up to white and no further
    positions, velocities, hits = (field.expand(n_clips, *field.shape[1:]) for field in flight[1:4])
    return Clips(frames, positions, velocities, hits, shown)


def find_first_hits(
    count: int, first: int, last: int, *, image_size: int = 64, motion: Motion = "uniform", seed: int = 0
) -> list[int]:
    """The smallest `count` indices whose clips of one digit touch a wall first at a frame of first .. last, from 0.

    Until then the digit flies straight: whoever sees two of the frames before knows where it is going.

    Raises ValueError where there are fewer among the first 16,384.
    """
    if not 1 <= first <= last:
        raise ValueError(f"first and last must be frames with 1 <= first <= last, got {first} and {last}")
    blank = torch.zeros(1, DIGIT_SIZE, DIGIT_SIZE, dtype=torch.uint8)
    data = MovingMNIST(blank, last + 1, num_digits=1, image_size=image_size, motion=motion, seed=seed, length=_SEARCHED)
    found: list[int] = []
    for start in range(0, _SEARCHED, _BLOCK):
        hits = data.clips(range(start, start + _BLOCK)).hits[:, :, 0]
        wanted = hits[:, first:].any(1) & ~hits[:, :first].any(1)
        found += (start + wanted.nonzero()[:, 0]).tolist()
        if len(found) >= count:
            return found[:count]
    raise ValueError(
        f"a first hit at a frame from {first} to {last} must be in {count} of {_SEARCHED} clips "
        f"of {image_size}x{image_size} pixels, got {len(found)}"
    )
