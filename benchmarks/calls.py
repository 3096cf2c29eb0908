"""Calls of an op as they are timed, forward alone or with backward over prepared leaves, and their common check."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from measure import Run
from test_ops import FLOAT32, assert_close
from torch import Tensor, nn

Forward = Callable[[], Sequence[Tensor]]
Module = TypeVar("Module", bound=nn.Module)

PEER_BOUND = 1e-4  # of the largest element: ATen's sums with channels last are running ones in float32


def rounding(terms: int) -> float:
    """The tests' float32 bound, which is stated for sums of a thousand terms, for longer ones: as a random walk."""
    return FLOAT32 * max(1.0, (terms / 1000) ** 0.5)


def wide(x: Tensor) -> Tensor:
    """As an oracle takes it."""
    return x.detach().cpu().double()


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def holding(module: Module, *parameters: Tensor) -> Module:
    """`module` with these parameters, in its own order."""
    for parameter, value in zip(module.parameters(), parameters, strict=True):
        parameter.data.copy_(value)
    return module


def training(forward: Forward, leaves: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    """A call that gives the outputs, then the gradient of each leaf."""

    def call() -> list[Tensor]:
        outputs = forward()
        return [*outputs, *torch.autograd.grad(outputs, leaves, cotangents)]

    return call


def inference(forward: Forward) -> Callable[[], Sequence[Tensor]]:
    return torch.no_grad()(forward)


def assert_right(ours: Run, peers: Iterable[Run], want: Sequence[Tensor], bound: float) -> None:
    """Ours gives `want` to within `bound` of each tensor's largest element; peers compute the same, if less exactly."""
    _assert_gives(ours, want, bound)
    for peer in peers:
        _assert_gives(peer, want, max(bound, PEER_BOUND))


def _assert_gives(run: Run, want: Sequence[Tensor], bound: float) -> None:
    """Whoever works step by step gives each tensor in pieces along its first dimension: they are put together."""
    got = run()
    assert isinstance(got, Sequence)
    flat = torch.cat([tensor.detach().flatten().double() for tensor in got]).to(want[0].device)
    whole = flat.split([tensor.numel() for tensor in want])
    assert_close([a.view(b.shape) for a, b in zip(whole, want, strict=True)], list(want), bound)
