"""The LSTM kernels against the references, in every size that changes their way through a tile, a panel or a block."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from svg_fast import backend
from svg_fast.testing import Draw

OPS = torch.ops.svg_fast
WIDTHS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 48, 63, 65, 100]  # hidden units: around the vectors' widths
Results = tuple[Any, ...]


def flat(results: Results) -> list[Tensor]:
    return [x for result in results for x in (result if isinstance(result, list) else [result])]


def assert_equal(got: Results, want: Results) -> None:
    assert all(torch.equal(a, b) for a, b in zip(flat(got), flat(want), strict=True))


def assert_close(got: Results, want: Results) -> None:
    for a, b in zip(flat(got), flat(want), strict=True):
        scale = b.abs().max().item() if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10 * scale)


def layer(T: int, B: int, H: int, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Any], list[Tensor]]:
    """The arguments of the forward op, and gradients of its outputs."""
    draw = Draw(dtype, "cpu")
    inputs = {"gates_x": draw(T, B, 4 * H), "h0": draw(B, H), "c0": draw(B, H), "w_hh": draw(4 * H, H, std=H**-0.5)}
    return inputs, [draw(T, B, H), draw(T, B, H)]


def step(L: int, B: int, I: int, H: int, dtype: torch.dtype = torch.float64) -> tuple[dict[str, Any], list[Tensor]]:  # noqa: E741
    draw = Draw(dtype, "cpu")
    inputs: dict[str, Any] = {"x": draw(B, I), "h": draw(L, B, H), "c": draw(L, B, H)}
    inputs["w_ih"] = [draw(4 * H, width, std=width**-0.5) for width in (I, *(H,) * (L - 1))]
    inputs["w_hh"] = [draw(4 * H, H, std=H**-0.5) for _ in range(L)]
    for bias in ("b_ih", "b_hh"):
        inputs[bias] = [draw(4 * H) for _ in range(L)]
    return inputs, [draw(L, B, H), draw(L, B, H)]


def forward(op: str, inputs: dict[str, Any]) -> Results:
    return tuple(getattr(OPS, f"{op}_fwd")(**inputs))


def backward(op: str, inputs: dict[str, Any], outputs: Results, gradients: list[Tensor | None]) -> Results:
    y, c, gates = outputs
    if op == "lstm_layer":
        saved = (gates, y, c, inputs["h0"], inputs["c0"], inputs["w_hh"])
    else:
        saved = (gates, y, c, *(inputs[name] for name in ("x", "h", "c", "w_ih", "w_hh")))
    return tuple(getattr(OPS, f"{op}_bwd")(*gradients, *saved))


def check(op: str, inputs: dict[str, Any], gradients: list[Tensor]) -> None:
    """Each kernel against its reference, and each with the other's counterpart."""
    with backend.use_backend("reference"):
        outputs = forward(op, inputs)
        want = backward(op, inputs, outputs, list(gradients))
    ours = forward(op, inputs)
    assert_close(ours, outputs)
    assert_close(backward(op, inputs, outputs, list(gradients)), want)
    with backend.use_backend("reference"):
        assert_close(backward(op, inputs, ours, list(gradients)), want)


# One of each op, larger than a block of the kernels in every direction.
SITUATIONS = [
    ("lstm_layer", *layer(9, 40, 70, torch.float32)),
    ("lstm_step", *step(2, 50, 30, 70, torch.float32)),
]


@pytest.mark.parametrize("H", WIDTHS)
def test_layer_of_any_width(H: int) -> None:
    check("lstm_layer", *layer(4, 7, H))


@pytest.mark.parametrize("H", WIDTHS)
def test_step_of_any_width(H: int) -> None:
    check("lstm_step", *step(2, 7, 5, H))
    check("lstm_step", *step(1, 7, H + 1, 6))


@pytest.mark.parametrize("B", range(21))
def test_any_batch(B: int) -> None:
    check("lstm_layer", *layer(3, B, 19))
    check("lstm_step", *step(2, B, 11, 19))


@pytest.mark.parametrize("L", [1, 2, 3, 5])
def test_stacks_of_any_height(L: int) -> None:
    check("lstm_step", *step(L, 3, 6, 9))


@pytest.mark.parametrize("T", [0, 1, 2, 30])
def test_any_number_of_steps(T: int) -> None:
    check("lstm_layer", *layer(T, 20, 10))


def test_sizes_beyond_a_block() -> None:
    check("lstm_layer", *layer(15, 41, 150))
    check("lstm_step", *step(2, 130, 70, 150))


@pytest.mark.parametrize(("op", "inputs", "gradients"), SITUATIONS, ids=["lstm_layer", "lstm_step"])
def test_a_gradient_left_out_is_zero(op: str, inputs: dict[str, Any], gradients: list[Tensor]) -> None:
    outputs = forward(op, inputs)
    for kept in itertools.product([False, True], repeat=2):
        zeros = [g if keep else torch.zeros_like(g) for keep, g in zip(kept, gradients, strict=True)]
        absent = [g if keep else None for keep, g in zip(kept, gradients, strict=True)]
        want = backward(op, inputs, outputs, list(zeros))
        assert_equal(backward(op, inputs, outputs, absent), want)
        with backend.use_backend("reference"):
            assert_equal(backward(op, inputs, outputs, absent), backward(op, inputs, outputs, list(zeros)))


@pytest.mark.parametrize(("op", "inputs", "gradients"), SITUATIONS, ids=["lstm_layer", "lstm_step"])
def test_results_are_identical_from_run_to_run_and_for_any_number_of_threads(
    op: str, inputs: dict[str, Any], gradients: list[Tensor]
) -> None:
    def run() -> Results:
        outputs = forward(op, inputs)
        return *outputs, *backward(op, inputs, outputs, list(gradients))

    threads = torch.get_num_threads()
    want = run()
    try:
        for n in (1, 1, 2, 2, 3, 5, 16):
            torch.set_num_threads(n)
            assert_equal(run(), want)
    finally:
        torch.set_num_threads(threads)
