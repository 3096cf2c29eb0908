"""Checks at an op's public function: what was wanted and what came."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    if tensor.shape != tuple(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")


def check_rank(name: str, tensor: Tensor, axes: str) -> None:
    """`axes` names the dimensions, as in "T, B, Z"."""
    rank = len(axes.split(","))
    if tensor.dim() != rank:
        raise ValueError(f"{name} must have {rank} dimensions ({axes}), got shape {list(tensor.shape)}")


def check_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")


def check_floating(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")


def check_like(name: str, tensor: Tensor, like: Tensor) -> None:
    """Same device, and floating point (the dtype may differ: autocast mixes them)."""
    check_floating(name, tensor)
    check_device(name, tensor, like)


def check_device(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the first argument, got {tensor.device}")
