"""What the host functions share: which configuration a kernel is launched with, and checks of what they are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference.precision import compute_dtype
from .maths import INTERPRETED

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_COMPUTE = {torch.float32: tl.float32, torch.float64: tl.float64}

# The interpreter reads the memory of the CPU and no other.
_DEVICE = "cpu" if INTERPRETED else "cuda"


def tuned(*configs: triton.Config, key: list[str]) -> Callable[[Any], Any]:
    """With a GPU, the fastest of the configs for each value of the arguments `key`; offline, the first.

    For kernels whose results are the same with each: one that adds up in blocks has a fixed configuration, or its
    results would depend on a stopwatch.
    """
    measured = torch.cuda.is_available() and not INTERPRETED
    return triton.autotune(configs=list(configs if measured else configs[:1]), key=key)


def precision(tensor: Tensor) -> Any:
    """The Triton type that an op computes in, where `tensor` is its first."""
    return _COMPUTE[compute_dtype(tensor.dtype)]


def check(condition: bool, message: str) -> None:
    """Raises RuntimeError, as the compiled kernels do."""
    if not condition:
        raise RuntimeError(message)


def check_tensor(name: str, tensor: Tensor, shape: Sequence[int], device: torch.device) -> None:
    """Floating point, of that shape, and on `device`, which is a GPU unless the interpreter runs the kernels."""
    if tensor.dtype not in _DTYPES:
        raise RuntimeError(f"{name} must be float32, float64, bfloat16 or float16, got {tensor.dtype}")
    check_shape(name, tensor, shape)
    check_device(name, tensor, device)


def check_rank(name: str, tensor: Tensor, rank: int) -> None:
    if tensor.dim() != rank:
        raise RuntimeError(f"{name} must have {rank} dimensions, got shape {list(tensor.shape)}")


def check_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    if tensor.shape != tuple(shape):
        raise RuntimeError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device} like the first argument, got {tensor.device}")
    if device.type != _DEVICE:
        raise ValueError(f"{name} must be on a {_DEVICE} device, where the Triton kernels run, got {device}")
