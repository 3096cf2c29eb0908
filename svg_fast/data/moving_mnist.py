"""Stochastic Moving MNIST (section 4.1 and appendix B of the paper), whole batches at once.

B clips, T frames, D digits, S side of the square canvas. A position is that of a digit's top-left corner in
pixels, x to the right and y down; velocities are in pixels per frame.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..reference.philox import philox4x32
from .digits import DIGIT_SIZE
from .velocity import MOTIONS, IntArray, Motion, VelocitySampler

# Sets these counters apart from those of other users of Philox with the same seed ("MNST").
_STREAM = 0x4D4E5354
_WORD = 0xFFFFFFFF

BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]


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
        self._images = digits.cpu().numpy()
        self._sampler = VelocitySampler(motion)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        return self.clips([operator.index(index)]).frames[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Tensor]:
        """What a DataLoader calls for a batch: made together, much faster than clip by clip."""
        return list(self.clips(indices).frames)

    def clips(self, indices: Sequence[int] | Tensor) -> Clips:
        """The clips of these indices (B,), with their trajectories.

        Raises:
            IndexError: an index is not in [0, length).
        """
        index = torch.as_tensor(indices, dtype=torch.int64)
        outside = index[(index < 0) | (index >= self.length)]
        if len(outside):
            raise IndexError(f"index must be in [0, {self.length}), got {outside[0].item()}")
        words = _words(index, self.num_digits, self.n_frames, self.seed)
        chosen = words[..., 0] * len(self._images) >> 32
        positions, velocities, hits = _fly(words[..., 1:], self.image_size - DIGIT_SIZE, self._sampler)
        frames = _render(self._images[chosen], positions, self.image_size)
        return Clips(*map(torch.from_numpy, (frames, positions, velocities, hits, chosen)))


def _words(index: Tensor, num_digits: int, n_frames: int, seed: int) -> IntArray:
    """Random 32-bit words of B clips, (B, D, 4 + T): image, x, y and velocity of a digit, then one a frame.

    Philox's counter is (index, two words; block of four words; digit), so each word has its own meaning for
    ever: whatever else is drawn, it belongs to this seed, index, digit and frame.
    """
    blocks = 1 + -(-n_frames // 4)
    counter = (
        (index & _WORD)[:, None, None],
        (index >> 32)[:, None, None],
        torch.arange(blocks),
        (_STREAM + torch.arange(num_digits))[:, None],
    )
    words: IntArray = philox4x32(counter, (seed & _WORD, seed >> 32)).numpy()  # (B, D, blocks, 4)
    return words.reshape(len(index), num_digits, 4 * blocks)[..., : 4 + n_frames]


def _fly(words: IntArray, places: int, sampler: VelocitySampler) -> tuple[IntArray, IntArray, BoolArray]:
    """Trajectories of digits whose x and y stay in 0 .. places - 1.

    words (B, D, 3 + T) for x, y, velocity and the frames -> positions, velocities and hits as in `Clips`.
    """
    n_clips, num_digits, n_words = words.shape
    n_digits, n_frames = n_clips * num_digits, n_words - 3
    place = (words[..., :2] * places >> 32).reshape(-1, 2)
    velocity = sampler.start(words[..., 2].reshape(-1))
    hit_words = words[..., 3:].reshape(-1)
    # Between walls a digit flies straight, so the loop goes from hit to hit of all digits at once (a few
    # rounds), not from frame to frame. It notes where flights start; the other frames follow from that.
    starts = np.zeros(n_digits * n_frames, dtype=np.bool_)
    positions = np.zeros((n_digits * n_frames, 2), dtype=np.int64)
    velocities = np.zeros_like(positions)
    frame = np.arange(n_digits * n_frames)  # of all the digits' frames in a row
    now = frame[::n_frames]
    end = now + n_frames
    while now.size:
        starts[now], positions[now], velocities[now] = True, place, velocity
        flight = _frames_to_wall(place, velocity, places, never=n_frames)
        goes_on = now + flight < end
        now, end, flight, place, velocity = (a[goes_on] for a in (now, end, flight, place, velocity))
        now = now + flight
        beyond = place + velocity * flight[:, None]
        place = np.minimum(np.maximum(beyond, 0), places - 1)
        velocity = sampler.rebound(velocity, np.sign(beyond - place), hit_words[now])
    start = np.maximum.accumulate(np.where(starts, frame, 0))
    velocities = velocities[start]
    positions = positions[start] + velocities * (frame - start)[:, None]
    starts[::n_frames] = False
    shape = n_clips, num_digits, n_frames
    positions, velocities = (a.reshape(*shape, 2).swapaxes(1, 2) for a in (positions, velocities))
    return positions, velocities, starts.reshape(shape).swapaxes(1, 2)


def _frames_to_wall(place: IntArray, velocity: IntArray, places: int, never: int) -> IntArray:
    """Frames until a digit at place (N, 2) is first outside 0 .. places - 1 in x or y, or never: (N,)."""
    distance = np.where(velocity > 0, places - place, place + 1)
    speed = abs(velocity)
    frames: IntArray = np.where(speed > 0, -(-distance // np.maximum(speed, 1)), never)
    return np.minimum(frames[:, 0], frames[:, 1])


def _render(images: ByteArray, positions: IntArray, size: int) -> ByteArray:
    """Digits images (B, D, 32, 32) at positions (B, T, D, 2), added up to 255 -> frames (B, T, 1, S, S)."""
    n_clips, n_frames, num_digits, _ = positions.shape
    # With its rows S pixels apart a digit is one strip of memory: drawing it anywhere is one contiguous copy.
    strip = (DIGIT_SIZE - 1) * size + DIGIT_SIZE
    rows = np.zeros((n_clips, num_digits, DIGIT_SIZE, size), dtype=np.uint8)
    rows[..., :DIGIT_SIZE] = images
    strips = rows.reshape(n_clips, num_digits, 1, DIGIT_SIZE * size)[..., :strip]
    frames = np.zeros((n_clips, n_frames, 1, size, size), dtype=np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(
        frames.reshape(n_clips, n_frames, size * size), strip, axis=-1, writeable=True
    )
    clip, frame = np.ogrid[:n_clips, :n_frames]
    for d in range(num_digits):
        at = clip, frame, positions[:, :, d, 1] * size + positions[:, :, d, 0]
        digit = strips[:, d]
        if d == 0:
            windows[at] = digit
            continue
        # Bytes wrap at 256, so what is there leaves room for the digit first: a saturating add.
        total = windows[at]
        np.minimum(total, 255 - digit, out=total)
        total += digit
        windows[at] = total
    return frames
