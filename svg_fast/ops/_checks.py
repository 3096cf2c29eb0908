"""Checks at an op's public function: what was wanted and what came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_dense(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {value.layout}")


def check_integer(name: str, value: Any) -> None:
    if not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")


def check_number(name: str, value: Any) -> None:
    if not isinstance(value, (int, float, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")


def check_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    if tensor.shape != tuple(shape):
        raise ValueError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")


def check_rank(name: str, tensor: Tensor, axes: str) -> None:
    """`axes` names the dimensions, as in "T, B, Z"."""
    check_dense(name, tensor)
    rank = len(axes.split(","))
    if tensor.dim() != rank:
        raise ValueError(f"{name} must have {rank} dimensions ({axes}), got shape {list(tensor.shape)}")


def check_dtype(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    check_dense(name, tensor)
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")


def check_floating(name: str, tensor: Tensor) -> None:
    check_dense(name, tensor)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")


def check_like(name: str, tensor: Tensor, like: Tensor) -> None:
    """Same device, and floating point (the dtype may differ: autocast mixes them)."""
    check_floating(name, tensor)
    check_device(name, tensor, like)


def check_tensor(name: str, tensor: Tensor, like: Tensor, shape: tuple[int, ...], item: int | None = None) -> None:
    """`check_like` and `check_shape` at the cost of one; `item` is the tensor's place in a list."""
    dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided
    if not dense or tensor.shape != shape or tensor.device != like.device or not tensor.is_floating_point():
        name = name if item is None else f"{name}[{item}]"
        check_like(name, tensor, like)
        check_shape(name, tensor, shape)


def check_device(name: str, tensor: Tensor, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like.device} like the first argument, got {tensor.device}")
