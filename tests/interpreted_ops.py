"""What the ordinary op tests do not ask of the Triton kernels; run by test_triton.py in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_ops import FLOAT32, FLOAT64, assert_close, call, evaluate, floating, map_floating
from torch import Tensor

from svg_fast import backend, triton
from svg_fast.testing import Case, Draw, Layout, channels_last, contiguous, select

FLOAT16_ULP = 2.0**-10
CASES = [
    case
    for op in ("gaussian_rsample", "gaussian_kl", "gaussian_rsample_kl", "batch_norm_act", "lstm_layer", "lstm_step")
    for case in select(op)
    if case.situation in ("odd sizes", "odd sizes, contiguous", "odd sizes, channels_last")
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float16_is_float32_rounded(case: Case) -> None:
    """Outputs to one float16 ulp of each element, gradients of the largest; what stays in float32 was not rounded."""
    inputs = case.inputs(torch.float16)
    want = evaluate(call(case.op), map_floating(inputs, lambda x: x.float()))
    got = evaluate(call(case.op), inputs)
    outputs = len(got) - len(list(floating(inputs)))
    for a, b in zip(got[:outputs], want[:outputs], strict=True):
        if a.dtype == torch.float16:
            assert ((a - b).abs() <= FLOAT16_ULP * b.abs() + torch.finfo(torch.float16).smallest_normal).all()
        else:
            assert_close([a], [b], FLOAT32)
    assert_close(got[outputs:], want[outputs:], FLOAT16_ULP)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck_along_random_directions(case: Case) -> None:
    inputs = case.inputs(torch.float64)
    leaves = [leaf.requires_grad_() for leaf in floating(inputs)]

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = {id(leaf): tensor for leaf, tensor in zip(leaves, tensors, strict=True)}
        return tuple(y for y in call(case.op)(**map_floating(inputs, lambda x: given.get(id(x), x))) if y.requires_grad)

    assert torch.autograd.gradcheck(function, leaves, fast_mode=True)


def both(op: str, inputs: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Twice the kernel's results, to the last bit; and the reference's, in float64."""
    got, again = (evaluate(call(op), map_floating(inputs, lambda x: x.detach().clone())) for _ in range(2))
    assert all(map(torch.equal, got, again))
    with backend.use_backend("reference"):
        return got, evaluate(call(op), map_floating(inputs, lambda x: x.detach().double()))


@pytest.mark.parametrize("eps", [True, False], ids=["eps", "seed"])
def test_a_time_step_of_many_blocks_that_begins_anywhere(eps: bool) -> None:
    draw = Draw(torch.float32, "cpu")
    inputs: dict[str, Any] = {name: draw(2, 3, 1501, std=0.7) for name in ("mu", "logvar", "mu_p", "logvar_p")}
    inputs |= {"eps": draw(2, 3, 1501)} if eps else {"seed": torch.tensor([2**40 + 5, 2**33 + 7])}
    got, want = both("gaussian_rsample_kl", inputs)
    assert_close(got, want, FLOAT32 if eps else 1e-5)  # as in test_ops.py


@pytest.mark.parametrize(("layout", "mean"), [(contiguous, 0.3), (channels_last, 1000.0)])
def test_statistics_of_many_tiles_and_chunks(layout: Layout, mean: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small tiles, as in a large tensor: chunks of several, and more chunks than are merged at once."""
    module = __import__(triton.host_function("batch_norm_act_fwd").__module__, fromlist=["_TILE"])
    monkeypatch.setattr(module, "_TILE", 32)
    monkeypatch.setattr(module, "_PROGRAMS", 34)
    draw = Draw(torch.float32, "cpu", layout)
    x = draw(4, 3, 16, 17, mean=mean, std=1.5)
    inputs = {"x": x, "weight": draw(3, mean=1.0), "bias": draw(3), "steps": 2}
    got, want = both("batch_norm_act", inputs)
    for a, b, roundings in zip(got[1:3], want[1:3], (1, 4), strict=True):
        assert_close([a], [b], roundings * 2.0**-24)
    assert_close(got[:1] + got[3:], want[:1] + want[3:], FLOAT32 * max(1.0, mean / 10))


@pytest.mark.parametrize("kept", ["dy", "dc"])
def test_a_gradient_left_out_is_zero(kept: str) -> None:
    inputs = select("lstm_layer", "odd sizes")[0].inputs(torch.float64)
    op = torch.ops.svg_fast
    y, c, gates = op.lstm_layer_fwd(**inputs)
    saved = (gates, y, c, inputs["h0"], inputs["c0"], inputs["w_hh"])
    ones, zeros = torch.ones_like(y), torch.zeros_like(y)
    given = (ones, None, ones, zeros) if kept == "dy" else (None, ones, zeros, ones)
    assert_close(op.lstm_layer_bwd(*given[:2], *saved), op.lstm_layer_bwd(*given[2:], *saved), FLOAT64)


def test_triton_served_every_op() -> None:
    """The last of this file: a host function is found when it is called."""
    assert triton.host_function.cache_info().currsize == len(triton.OPS)
