"""Which kernel serves which op, and how to force the reference."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from .kernels import build_info
from .ops._declare import REFERENCE_KERNELS

__all__ = ["build_info", "ops", "served_by", "table", "use_backend"]

_DISPATCH_KEYS = ("CPU", "CUDA")


def ops() -> list[str]:
    """Names of the declared ops, forward and backward, sorted."""
    return sorted(REFERENCE_KERNELS)


def served_by(op: str, device: str | torch.device = "cpu") -> Literal["kernel", "reference"]:
    """Whether a kernel written for the device, compiled or Triton's, serves `op` ("lstm_layer_fwd"), or the plain
    PyTorch reference.

    Raises ValueError for an op that is not declared.
    """
    if op not in REFERENCE_KERNELS:
        raise ValueError(f"unknown op {op!r}; the ops are {', '.join(ops())}")
    key = torch.device(device).type.upper()
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"svg_fast::{op}", key)
    return "kernel" if has_kernel and not _overrides else "reference"


def table() -> dict[str, dict[str, str]]:
    """{op: {device: "kernel" | "reference"}} for every op on cpu and cuda."""
    return {op: {key.lower(): served_by(op, key.lower()) for key in _DISPATCH_KEYS} for op in ops()}


_overrides: list[torch.library.Library] = []


@contextmanager
def use_backend(name: Literal["reference"]) -> Iterator[None]:
    """Inside the block every op runs its reference, whatever kernels are loaded: for tests and debugging.

    Raises ValueError for another name.
    """
    if name != "reference":
        raise ValueError(
            f'backend must be "reference", got {name!r}; kernels need no request: they serve where they are loaded'
        )
    override = torch.library.Library("svg_fast", "IMPL")
    _overrides.append(override)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Warning only once for all operators", category=UserWarning)
            for op, kernel in REFERENCE_KERNELS.items():
                for key in _DISPATCH_KEYS:
                    override.impl(op, kernel, key, allow_override=True)
        yield
    finally:
        _overrides.remove(override)
        override._destroy()
