"""A pytest plugin, for a process with TRITON_INTERPRET=1: the Triton kernels serve the CPU, in Triton's interpreter."""

from __future__ import annotations

import warnings

import torch

from svg_fast import triton

_LIBRARY = torch.library.Library("svg_fast", "IMPL")

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Warning only once for all operators", category=UserWarning)
    for op in triton.OPS:
        _LIBRARY.impl(op, triton.kernel(op), "CPU", allow_override=True)
