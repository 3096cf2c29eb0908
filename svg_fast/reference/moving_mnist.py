"""Clips of Stochastic Moving MNIST (section 4.1 and appendix B of the paper), whole batches at once in NumPy.

B clips, T frames, D digits, S side of the square canvas; R tables of C velocities each. A position is that of a
digit's top-left corner in pixels, x to the right and y down; velocities are in pixels per frame.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .philox import philox4x32

DIGIT_SIZE = 32
# One table of velocities for each way of touching walls, or a single one where digits reflect.
WALL_TABLES, REFLECTING_TABLES = 9, 1

# Sets these counters apart from those of other users of Philox with the same seed ("MNST").
_STREAM = 0x4D4E5354
_WORD = 0xFFFFFFFF

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
ByteArray = npt.NDArray[np.uint8]


def moving_mnist_clips(
    index: Tensor,
    digits: Tensor,
    bounds: Tensor,
    velocities: Tensor,
    seed: int,
    n_frames: int,
    num_digits: int,
    image_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """index (B,), digits (N, 32, 32), bounds (R, C), velocities (C, 2)
    -> frames (B, T, 1, S, S), positions and velocities (B, T, D, 2), hits (B, T, D), digits (B, D).
    """
    words = _words(index.cpu(), num_digits, n_frames, seed)
    chosen = words[..., 0] * len(digits) >> 32
    sampler = _Sampler(bounds.cpu().numpy(), velocities.cpu().numpy())
    flights = _fly(words[..., 1:], image_size - DIGIT_SIZE, sampler)
    frames = _render(digits.cpu().numpy()[chosen], flights[0], image_size)
    arrays = (frames, *flights, chosen)
    made = [torch.from_numpy(np.ascontiguousarray(array)).to(index.device) for array in arrays]
    return made[0], made[1], made[2], made[3], made[4]


class _Sampler:
    """Draws velocities by inverting the cumulative distributions whose upper bounds are given: a word each."""

    def __init__(self, bounds: IntArray, velocities: IntArray) -> None:
        n_tables, n_cells = bounds.shape
        if (np.diff(bounds, prepend=0) < 0).any() or (bounds[:, -1] != 1 << 32).any():
            raise ValueError("each row of bounds must ascend from 0 or more to 2**32")
        # Shifted by r * 2**32 for table r the tables are one sorted array, and a single searchsorted serves
        # digits at any mixture of walls.
        self._bounds = (bounds + (np.arange(n_tables)[:, None] << 32)).reshape(-1)
        self._velocities, self._n_cells = velocities, n_cells
        self._reflects, self._no_wall = n_tables == REFLECTING_TABLES, n_tables // 2

    def start(self, words: IntArray) -> IntArray:
        """words (N,) in [0, 2**32) -> first velocities (N, 2), (dx, dy) in pixels per frame."""
        return self._draw((self._no_wall << 32) + words)

    def rebound(self, velocities: IntArray, walls: IntArray, words: IntArray) -> IntArray:
        """velocities (N, 2) before a hit, walls (N, 2) of -1, 0 or +1, words (N,) -> velocities after it."""
        if self._reflects:
            return np.where(walls != 0, -velocities, velocities)
        table = 3 * walls[:, 0] + walls[:, 1] + self._no_wall
        return self._draw((table << 32) + words)

    def _draw(self, keys: IntArray) -> IntArray:
        return self._velocities[np.searchsorted(self._bounds, keys, side="right") % self._n_cells]


def _words(index: Tensor, num_digits: int, n_frames: int, seed: int) -> IntArray:
    """Random 32-bit words of B clips, (B, D, 4 + T): image, x, y and velocity of a digit, then one a frame.

    Philox's counter is (index, two words; block of four words; digit), so each word has its own meaning for
    ever: whatever else is drawn, it belongs to this seed, index, digit and frame.
    """
    blocks = 1 + -(-n_frames // 4)
    counter = (
        (index & _WORD)[:, None, None],
        (index >> 32 & _WORD)[:, None, None],
        torch.arange(blocks),
        (_STREAM + torch.arange(num_digits))[:, None],
    )
    words: IntArray = philox4x32(counter, (seed & _WORD, seed >> 32 & _WORD)).numpy()  # (B, D, blocks, 4)
    return words.reshape(len(index), num_digits, 4 * blocks)[..., : 4 + n_frames]


def _fly(words: IntArray, places: int, sampler: _Sampler) -> tuple[IntArray, IntArray, BoolArray]:
    """Trajectories of digits whose x and y stay in 0 .. places - 1.

    words (B, D, 3 + T) for x, y, velocity and the frames -> positions and velocities (B, T, D, 2), hits (B, T, D).
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
