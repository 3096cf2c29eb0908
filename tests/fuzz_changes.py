"""Random changes of an argument: some keep a call right, some make it wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from svg_fast.testing import spaced, transposed

FLOATING = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OTHER = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64]
SIZES = [0, 1, -1, 2, 3, 100, 2**62, 2**63 - 1, -(2**63), 2**64]
NUMBERS = [*SIZES, 0.0, -0.5, 1e30, float("nan"), float("inf")]


def changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, Tensor):
        return rng.choice(_RELAID if rng.random() < 0.6 else _SPOILT)(value, rng)
    if isinstance(value, list):
        return _changed_list(value, rng)
    return rng.choice([None, "", "relu", True, *NUMBERS])


def _changed_list(value: list[Any], rng: random.Random) -> Any:
    k = rng.randrange(len(value)) if value else 0
    before, here, after = value[:k], value[k : k + 1], value[k + 1 :]
    ways = [
        [*before, *(changed(item, rng) for item in here), *after],
        [*before, *after],
        [*before, None, *after],
        [*value, *here],
        [],
        None,
    ]
    return rng.choice([*ways[:1] * 3, *ways])


def _resized(x: Tensor, rng: random.Random) -> Tensor:
    """Another shape, of numbers from the same tensor."""
    shape = list(x.shape) or [1]
    k = rng.randrange(len(shape))
    way = rng.choice(["grow", "shrink", "drop", "add", "shuffle"])
    if way == "grow":
        shape[k] += rng.choice([1, 2, 7])
    elif way == "shrink":
        shape[k] = rng.choice([0, max(shape[k] - 1, 0)])
    elif way == "drop":
        del shape[k]
    elif way == "add":
        shape.insert(k, rng.choice([0, 1, 3]))
    else:
        rng.shuffle(shape)
    count = torch.Size(shape).numel()
    return x.flatten().repeat(-(-count // max(x.numel(), 1)))[:count].reshape(shape) if x.numel() else x.new_ones(shape)


def _expanded(x: Tensor, rng: random.Random) -> Tensor:
    """One slice over and over, with a stride of 0."""
    dim = rng.randrange(max(x.dim(), 1))
    return x.narrow(dim, 0, 1).expand(x.shape) if x.dim() and x.numel() else x


def _overlapping(x: Tensor, rng: random.Random) -> Tensor:
    """Rows that begin one element after another."""
    return x.contiguous().as_strided(x.shape, [1] * x.dim()) if x.numel() else x


def _relaid(layout: Callable[[Tensor], Tensor]) -> Callable[[Tensor, random.Random], Tensor]:
    return lambda x, rng: layout(x) if x.dim() and x.numel() else x


def _unaligned(x: Tensor, rng: random.Random) -> Tensor:
    """Memory that begins one element after where an allocation does."""
    return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)


def _negative_view(x: Tensor, rng: random.Random) -> Tensor:
    """A tensor whose minus sign is still to be applied."""
    return torch.complex(x, -x).conj().imag if x.dtype in (torch.float32, torch.float64) else x


def _floating(x: Tensor, rng: random.Random) -> Tensor:
    return x.to(rng.choice(FLOATING)) if x.is_floating_point() else x


_RELAID: list[Callable[[Tensor, random.Random], Any]] = [
    *(_relaid(transposed), _relaid(spaced), _expanded, _overlapping, _unaligned, _negative_view, _floating),
    lambda x, rng: x[:0] if x.dim() else x,
]
_SPOILT: list[Callable[[Tensor, random.Random], Any]] = [
    *([_resized] * 4),
    lambda x, rng: x.to(rng.choice(FLOATING + OTHER)),
    lambda x, rng: x.to_sparse(),
    lambda x, rng: x.to("meta"),
    lambda x, rng: x.float().to_mkldnn() if x.dim() else x,
    lambda x, rng: torch.quantize_per_tensor(x.float(), 0.1, 10, torch.quint8),
    lambda x, rng: rng.choice([None, 1.5, "x", [x], x.tolist(), torch.nn.Identity()]),
]
