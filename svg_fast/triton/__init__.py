"""Triton kernels, for the ops that no compiled kernel serves on a GPU.

An op's host function has the op's name, in the file of its family. It is attached here and imported, with Triton, when
it is first called: to import svg_fast costs nothing where there is no GPU.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("svg_fast")

_LIBRARY = torch.library.Library("svg_fast", "IMPL")

# file -> the ops that it serves
_FAMILIES = {
    "gaussian": [f"gaussian_{name}_{way}" for name in ("rsample", "kl", "rsample_kl") for way in ("fwd", "bwd")],
    "batch_norm_act": ["batch_norm_act_fwd", "batch_norm_act_bwd"],
    "lstm": ["lstm_layer_fwd", "lstm_layer_bwd", "lstm_step_fwd"],
}
OPS = {op: family for family, ops in _FAMILIES.items() for op in ops}


@functools.cache
def host_function(op: str) -> Callable[..., Any]:
    """The host function of a Triton kernel; imports Triton."""
    function: Callable[..., Any] = getattr(importlib.import_module(f"{__name__}.{OPS[op]}"), op)
    return function


def kernel(op: str) -> Callable[..., Any]:
    """What the dispatcher calls: the host function, found late, on the device of its tensors."""

    def serve(*arguments: Any) -> Any:
        tensor = next(argument for argument in arguments if isinstance(argument, Tensor))
        with torch.cuda.device_of(tensor):  # Triton launches on the current one
            return host_function(op)(*arguments)

    return serve


def attach() -> None:
    """Serve, from the CUDA dispatch key, every op that has no kernel there."""
    if find_spec("triton") is None:
        if torch.cuda.is_available():
            logger.warning("triton is not installed: the slower references serve on the GPU what nothing else does")
        return
    for op in OPS:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"svg_fast::{op}", "CUDA"):
            _LIBRARY.impl(op, kernel(op), "CUDA")
