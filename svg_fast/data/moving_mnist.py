"""Stochastic Moving MNIST (section 4.1 and appendix B of the paper), whole batches at once.

B clips, T frames, D digits, S side of the square canvas. A position is that of a digit's top-left corner in
pixels, x to the right and y down; velocities are in pixels per frame.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..ops import moving_mnist_clips
from ..reference.moving_mnist import DIGIT_SIZE
from .velocity import MOTIONS, Motion, velocity_table


class Clips(NamedTuple):
    """A batch of clips and how they came about."""

    frames: Tensor  # (B, T, 1, S, S) uint8
    positions: Tensor  # (B, T, D, 2) int64: (x, y) of each digit in frame t
    velocities: Tensor  # (B, T, D, 2) int64: (dx, dy) with which each digit leaves frame t
    hits: Tensor  # (B, T, D) bool: whether it touched a wall at frame t, which gave it that velocity
    digits: Tensor  # (B, D) int64: which images they are


class MovingMNIST(Dataset[Tensor]):
    """Digits that fly straight and leave the walls with a new random velocity; an item is (T, 1, S, S) uint8.

    Per frame a digit beyond a wall is put back inside (to 0, or to S - 33) and gets a new velocity, drawn as
    `velocity_probabilities` says or, in deterministic motion, reflected; then it is drawn, then it moves.
    Digits add up where they overlap, up to 255.

    A clip depends on the arguments below and its index alone, not on its batch, worker or process; a longer
    clip begins with the shorter one.

    Args:
        digits: (N, 32, 32) uint8, as `load_digits` gives them.
        n_frames: T, frames per clip.
        num_digits: D, digits per clip.
        image_size: S, side of the canvas in pixels, more than 32.
        motion: "uniform", "nonuniform" or "deterministic".
        seed: 0 <= seed < 2**64. Give test clips another seed than training clips, as well as other digits.
        length: clips in the data set, indices 0 to length - 1.

    Raises:
        ValueError: an argument out of its range, or digits of another shape or type.
    """

    def __init__(
        self,
        digits: Tensor,
        n_frames: int = 15,
        *,
        num_digits: int = 2,
        image_size: int = 64,
        motion: Motion = "uniform",
        seed: int = 0,
        length: int = 60_000,
    ) -> None:
        if digits.dtype != torch.uint8 or digits.shape[1:] != (DIGIT_SIZE, DIGIT_SIZE) or len(digits) == 0:
            raise ValueError(
                f"digits must be uint8 of shape (N, {DIGIT_SIZE}, {DIGIT_SIZE}) with N >= 1, "
                f"got {digits.dtype} of shape {tuple(digits.shape)}"
            )
        if n_frames < 1 or num_digits < 1 or length < 1:
            raise ValueError(
                f"n_frames, num_digits and length must be at least 1, got {n_frames}, {num_digits} and {length}"
            )
        if image_size <= DIGIT_SIZE:
            raise ValueError(f"image_size must be more than the digits' {DIGIT_SIZE} pixels, got {image_size}")
        if motion not in MOTIONS:
            raise ValueError(f"motion must be one of {', '.join(MOTIONS)}, got {motion!r}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed must be in [0, 2**64), got {seed}")
        self.n_frames, self.num_digits, self.image_size = n_frames, num_digits, image_size
        self.motion, self.seed, self.length = motion, seed, length
        self._images = digits.cpu()
        self._table = velocity_table(motion)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        return self.clips([operator.index(index)]).frames[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """What a DataLoader calls for a batch: made together, much faster than clip by clip."""
        return list(self.clips(indices).frames)

    def fingerprint(self) -> int:
        """CRC-32 of the digits: it tells one data set from another."""
        return zlib.crc32(self._images.numpy().tobytes())

    def clips(self, indices: Sequence[int] | Tensor) -> Clips:
        """The clips of these indices (B,), with their trajectories.

        Raises:
            IndexError: an index is not in [0, length).
        """
        index = torch.as_tensor(indices, dtype=torch.int64)
        outside = index[(index < 0) | (index >= self.length)]
        if len(outside):
            raise IndexError(f"index must be in [0, {self.length}), got {outside[0].item()}")
        made = moving_mnist_clips(
            index,
            self._images,
            *self._table,
            seed=self.seed,
            n_frames=self.n_frames,
            num_digits=self.num_digits,
            image_size=self.image_size,
        )
        return Clips(*made)
