"""Ops that several Python threads call at once give each the numbers that one alone would get."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_moving_mnist_op import arguments
from test_ops import DIFFERENTIABLE, call, evaluate

from svg_fast import ops
from svg_fast.testing import Case

N_THREADS, N_CALLS = 4, 3
CASES = [case for case in DIFFERENTIABLE if case.situation.startswith(("large", "ordinary", "seed"))]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_gradients(case: Case) -> None:
    def work(_: int) -> list[torch.Tensor]:
        return evaluate(call(case.op), case.inputs())

    with ThreadPoolExecutor(N_THREADS) as pool:
        want = pool.submit(work, 0).result()  # in such a thread too: it may use another number of cores than this one
        for got in pool.map(work, range(N_THREADS * N_CALLS)):
            for k, (a, b) in enumerate(zip(got, want, strict=True)):
                assert torch.equal(a, b), f"tensor {k}"


def test_clips_of_different_indices() -> None:
    indices = [torch.arange(64) + 64 * k for k in range(N_THREADS * N_CALLS)]
    want = [ops.moving_mnist_clips(**arguments(index=index)) for index in indices]
    with ThreadPoolExecutor(N_THREADS) as pool:
        got = list(pool.map(lambda index: ops.moving_mnist_clips(**arguments(index=index)), indices))
    for a, b in zip(got, want, strict=True):
        assert all(map(torch.equal, a, b))
