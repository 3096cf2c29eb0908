"""The precision in which every op computes, whatever it reads and writes."""

import torch


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 computes in float64; float32, bfloat16 and float16 in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
