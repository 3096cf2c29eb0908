"""Whole clips of Stochastic Moving MNIST from their indices alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ..reference import moving_mnist as reference
from ..reference.moving_mnist import DIGIT_SIZE, REFLECTING_TABLES, WALL_TABLES
from ._checks import check_device, check_dtype, check_integer, check_rank, check_shape
from ._declare import declare

_ADDRESSES = 2**47  # bytes that a process can address


def moving_mnist_clips(
    index: Tensor,
    digits: Tensor,
    bounds: Tensor,
    velocities: Tensor,
    *,
    seed: int,
    n_frames: int,
    num_digits: int,
    image_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Digits that fly straight and leave the walls with a new velocity: see `svg_fast.data.MovingMNIST`.

    B clips, T = n_frames, D = num_digits, S = image_size in pixels; N images; R tables of C velocities.

    index (B,) int64, digits (N, 32, 32) uint8, bounds (R, C) and velocities (C, 2) int64
    -> frames (B, T, 1, S, S) uint8, positions (B, T, D, 2) int64 in pixels, velocities (B, T, D, 2) int64 in pixels
    per frame, hits (B, T, D) bool, chosen (B, D) int64.

    A random word below bounds[r, c], and not below the bound before it, draws velocities[c]; each row of bounds
    ascends to 2**32. Row r = 3 * wall_x + wall_y + 4 serves a digit that touches the walls (wall_x, wall_y), each
    -1, 0 or +1. With R = 1 the row serves the start alone, and at a wall a digit reflects.

    Raises ValueError on a shape, device or number that does not fit, TypeError on a dtype.
    """
    check_rank("index", index, "B")
    check_rank("digits", digits, f"N, {DIGIT_SIZE}, {DIGIT_SIZE}")
    check_rank("bounds", bounds, "R, C")
    check_rank("velocities", velocities, "C, 2")
    check_shape("digits", digits, (digits.shape[0], DIGIT_SIZE, DIGIT_SIZE))
    check_shape("velocities", velocities, (bounds.shape[1], 2))
    check_dtype("index", index, torch.int64)
    for name, tensor, dtype in (
        ("digits", digits, torch.uint8),
        ("bounds", bounds, torch.int64),
        ("velocities", velocities, torch.int64),
    ):
        check_dtype(name, tensor, dtype)
        check_device(name, tensor, index)
    numbers = {"seed": seed, "n_frames": n_frames, "num_digits": num_digits, "image_size": image_size}
    for name, number in numbers.items():
        check_integer(name, number)
    if bounds.shape[0] not in (REFLECTING_TABLES, WALL_TABLES):
        raise ValueError(f"bounds must have {REFLECTING_TABLES} or {WALL_TABLES} rows, got {bounds.shape[0]}")
    if digits.shape[0] < 1 or n_frames < 1 or num_digits < 1:
        raise ValueError(
            f"digits, n_frames and num_digits must be at least 1, got {digits.shape[0]}, {n_frames} and {num_digits}"
        )
    if image_size <= DIGIT_SIZE:
        raise ValueError(f"image_size must be more than the digits' {DIGIT_SIZE} pixels, got {image_size}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be in [0, 2**64), got {seed}")
    if index.shape[0] * n_frames * max(image_size**2, 16 * num_digits) >= _ADDRESSES:
        raise ValueError(f"the clips must fit into memory, got {n_frames=}, {num_digits=} and {image_size=}")
    # An op's int is signed: the same 64 bits.
    signed_seed = seed - 2**64 if seed >= 2**63 else seed
    clips: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _clips(
        index, digits, bounds, velocities, signed_seed, n_frames, num_digits, image_size
    )
    return clips


def _fake(
    index: Tensor,
    digits: Tensor,
    bounds: Tensor,
    velocities: Tensor,
    seed: int,
    n_frames: int,
    num_digits: int,
    image_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    flights = index.shape[0], n_frames, num_digits
    return (
        index.new_empty((index.shape[0], n_frames, 1, image_size, image_size), dtype=torch.uint8),
        index.new_empty((*flights, 2)),
        index.new_empty((*flights, 2)),
        index.new_empty(flights, dtype=torch.bool),
        index.new_empty((index.shape[0], num_digits)),
    )


_clips = declare(
    "moving_mnist_clips(Tensor index, Tensor digits, Tensor bounds, Tensor velocities, int seed, int n_frames,"
    " int num_digits, int image_size)"
    " -> (Tensor frames, Tensor positions, Tensor velocities_out, Tensor hits, Tensor chosen)",
    reference=reference.moving_mnist_clips,
    fake=_fake,
)
