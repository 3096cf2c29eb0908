"""Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).

Every number is a function of a key and a counter alone, so any device, chunk or order of evaluation draws
the same noise. 32-bit words are held in int64 tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def _multiply(multiplier: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low words of the 64-bit product (the sign of a wrapped int64 is masked away)."""
    product = word * multiplier
    return (product >> 32) & _WORD, product & _WORD


def philox4x32(
    counter: tuple[Tensor | int, Tensor | int, Tensor | int, Tensor | int],
    key: tuple[Tensor | int, Tensor | int],
) -> Tensor:
    """Four random 32-bit words for each counter.

    Counter and key words are in [0, 2**32) and broadcast together; returns (..., 4) int64.
    """
    c0, c1, c2, c3, k0, k1 = torch.broadcast_tensors(*(torch.as_tensor(word) for word in (*counter, *key)))
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _WORD, (k1 + _KEY_STEPS[1]) & _WORD
    return torch.stack((c0, c1, c2, c3), dim=-1)
