"""Every op over the table of cases: values, gradients, precision, and PyTorch's own checks of its declaration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import op_oracles
import pytest
import torch
from torch import Tensor

from svg_fast import backend, ops
from svg_fast.testing import CASES, Case, Layout, select, spaced, transposed

# Largest error, relative to the largest element of the tensor. float32: roundings of 2^-24 add up like a random walk
# over sums of up to a thousand terms. Seeded: float32 noise is that of float64 to 1e-5 (see test_noise.py).
FLOAT64, FLOAT32, FLOAT32_SEEDED = 1e-10, 32 * 2.0**-24, 1e-5
FLOAT32_WINOGRAD = 3e-6  # as in test_frame_conv.py
BFLOAT16_ULP = 2.0**-7

# frame_conv leaves other precisions than float32, and autocast, to stock torch: see test_frame_conv.py
NO_GRADIENT = ("frame_scores", "lstm_net_step", "update_running_statistics")
DIFFERENTIABLE = [case for case in CASES if case.op not in ("frame_conv", *NO_GRADIENT)]
SMALL = [case for case in DIFFERENTIABLE if case.situation.startswith(("odd sizes", "one number", "seed"))]
ORDINARY = [case for case in CASES if case.situation in ("ordinary", "ordinary, channels_last")]

Op = Callable[..., Any]


def call(op: str) -> Op:
    """The public op, returning a tuple of tensors; an op that works in place returns what it changed."""

    def run(**inputs: Any) -> tuple[Tensor, ...]:
        with torch.set_grad_enabled(op not in NO_GRADIENT):
            outputs = getattr(ops, op)(**inputs)
        if outputs is None:
            return inputs["running_mean"], inputs["running_var"]
        return (outputs,) if isinstance(outputs, Tensor) else outputs

    return run


def map_floating(inputs: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    def visit(value: Any) -> Any:
        if isinstance(value, list):
            return [visit(item) for item in value]
        return change(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    return {name: visit(value) for name, value in inputs.items()}


def floating(inputs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors that have a gradient: noise has none."""
    for name, value in inputs.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Tensor) and item.is_floating_point() and name != "eps":
                yield item


def cotangents(outputs: list[Tensor]) -> list[Tensor]:
    """One fixed random cotangent for each output, of numbers that every dtype holds exactly."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(y.shape, generator=generator).bfloat16().to(y) for y in outputs]


def evaluate(
    function: Op, inputs: dict[str, Any], cotangents: Callable[[list[Tensor]], list[Tensor]] = cotangents
) -> list[Tensor]:
    """Outputs, then the gradient of every floating input."""
    leaves = [leaf.requires_grad_() for leaf in floating(inputs)]
    outputs = function(**inputs)
    differentiable = [y for y in outputs if y.grad_fn is not None]
    gradients: tuple[Tensor, ...] = ()
    if differentiable:
        gradients = torch.autograd.grad(
            differentiable, leaves, cotangents(differentiable), allow_unused=True, materialize_grads=True
        )
    return [y.detach() for y in outputs] + list(gradients)


def assert_close(got: list[Tensor], want: list[Tensor], bound: float) -> None:
    """Each tensor to within `bound` of its largest element."""
    assert len(got) == len(want)
    for k, (a, b) in enumerate(zip(got, want, strict=True)):
        assert a.shape == b.shape
        if a.numel():
            error, scale = (a.double() - b.double()).abs().max().item(), b.double().abs().max().item()
            assert error <= bound * scale, f"tensor {k}: error {error:.2e} of {scale:.2e}"


def compare_with_float64(case: Case, dtype: torch.dtype, device: str = "cpu") -> None:
    """float64 or float32 on a device against the oracle on the CPU."""
    inputs = case.inputs(dtype, device)
    wide = map_floating(case.inputs(dtype), lambda x: x.double().contiguous())
    want = evaluate(getattr(op_oracles, case.op), wide)
    got = [x.cpu() for x in evaluate(call(case.op), inputs)]
    assert all(x.dtype == dtype for x in got)
    narrow = FLOAT32_SEEDED if "seed" in inputs else FLOAT32_WINOGRAD if case.op == "frame_conv" else FLOAT32
    assert_close(got, want, FLOAT64 if dtype == torch.float64 else narrow)


def compare_with_float32(case: Case, dtype: torch.dtype, device: str = "cpu", *, rounded_between: bool = False) -> None:
    """A 16-bit dtype against float32, both there: outputs to one ulp of each element; gradients, whose saved outputs
    are rounded too, of the largest. What stays in float32 (cell states, statistics, KL) was never rounded.

    rounded_between: a kernel that rounds what goes from step to step has outputs to one ulp of the largest.
    """
    inputs = case.inputs(dtype, device)
    want = evaluate(call(case.op), map_floating(inputs, lambda x: x.float()))
    got = evaluate(call(case.op), inputs)
    n_outputs = len(got) - (0 if case.op in NO_GRADIENT else len(list(floating(inputs))))
    ulp = torch.finfo(dtype).eps
    for a, b in zip(got[:n_outputs], want[:n_outputs], strict=True):
        if rounded_between:
            assert_close([a], [b], ulp)
        elif a.dtype == dtype:
            assert ((a - b).abs() <= ulp * b.abs()).all()
        else:
            assert_close([a], [b], FLOAT32)
    assert all(x.dtype == dtype for x in got[n_outputs:])
    assert_close(got[n_outputs:], want[n_outputs:], ulp)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case: Case, dtype: torch.dtype) -> None:
    compare_with_float64(case, dtype)


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=str)
def test_bfloat16_is_float32_rounded(case: Case) -> None:
    compare_with_float32(case, torch.bfloat16)


@pytest.mark.parametrize("case", ORDINARY, ids=str)
def test_autocast_does_not_reach_into_an_op(case: Case) -> None:
    want = evaluate(call(case.op), case.inputs())
    with torch.autocast("cpu", torch.bfloat16):
        got = evaluate(call(case.op), case.inputs())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_lstm_under_autocast_keeps_its_cell_state_in_float32() -> None:
    embed, h = torch.nn.Linear(6, 16), torch.zeros(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        gates_x = embed(torch.randn(3, 2, 6))
        y, c = ops.lstm_layer(gates_x, h, h, torch.randn(16, 4, requires_grad=True))
    assert (gates_x.dtype, y.dtype, c.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    (y.sum() + c.sum()).backward()
    assert embed.weight.grad is not None
    assert embed.weight.grad.isfinite().all()


@pytest.mark.parametrize("layout", [transposed, spaced])
@pytest.mark.parametrize("case", [case for case in ORDINARY if case in DIFFERENTIABLE], ids=str)
def test_cotangents_may_lie_anyhow_in_memory(case: Case, layout: Layout) -> None:
    want = evaluate(call(case.op), case.inputs())
    got = evaluate(call(case.op), case.inputs(), lambda outputs: [layout(dy) for dy in cotangents(outputs)])
    assert_close(got, want, FLOAT32)


@pytest.mark.parametrize("case", [case for case in ORDINARY if case in DIFFERENTIABLE], ids=str)
def test_cotangent_of_a_sum_is_one_number_expanded(case: Case) -> None:
    want = evaluate(call(case.op), case.inputs(), lambda outputs: [torch.ones_like(y) for y in outputs])
    got = evaluate(call(case.op), case.inputs(), lambda outputs: [y.new_ones(()).expand(y.shape) for y in outputs])
    assert_close(got, want, FLOAT32)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck(case: Case) -> None:
    inputs = case.inputs(torch.float64)
    leaves = [leaf.requires_grad_() for leaf in floating(inputs)]

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = {id(leaf): tensor for leaf, tensor in zip(leaves, tensors, strict=True)}
        outputs = call(case.op)(**map_floating(inputs, lambda x: given.get(id(x), x)))
        return tuple(y for y in outputs if y.requires_grad)

    assert torch.autograd.gradcheck(function, leaves)


def test_only_the_output_of_batch_norm_act_is_differentiable() -> None:
    inputs = select("batch_norm_act")[0].inputs()
    y, mean, var = ops.batch_norm_act(inputs.pop("x").requires_grad_(), **inputs)
    assert (y.requires_grad, mean.requires_grad, var.requires_grad) == (True, False, False)


@pytest.mark.parametrize("op", ["gaussian_rsample", "gaussian_rsample_kl"])
def test_backward_draws_the_noise_of_the_forward(op: str) -> None:
    """With mu = 0 and logvar = 0 the sample is the noise: given as eps it must lead to the same gradients."""
    inputs = select(op, "seed")[0].inputs()
    eps = ops.gaussian_rsample(torch.zeros(5, 4, 10), torch.zeros(5, 4, 10), seed=inputs["seed"])
    drawn = evaluate(call(op), inputs)
    del inputs["seed"]
    given = evaluate(call(op), inputs | {"eps": eps})
    for a, b in zip(drawn, given, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """The arguments that each op of the library receives."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "svg_fast":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


OPCHECKED = [
    case
    for case in DIFFERENTIABLE
    if case.situation.startswith(("odd sizes", "transposed", "standard normal", "seed", "empty batch"))
]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.float32) for case in OPCHECKED]
    + [(case, torch.bfloat16) for case in OPCHECKED if case.situation.startswith("odd sizes")],
    ids=str,
)
def test_opcheck(case: Case, dtype: torch.dtype) -> None:
    """Schema, shape function and autograd of the forward and the backward op, with the arguments they get in use."""
    with Recorder() as recorder:
        evaluate(call(case.op), case.inputs(dtype))
    assert [func.name() for func, _ in recorder.calls] == [f"svg_fast::{case.op}_fwd", f"svg_fast::{case.op}_bwd"]
    for func, args in recorder.calls:
        arguments = tuple(
            [x.detach() for x in a] if isinstance(a, list) else a.detach() if isinstance(a, Tensor) else a for a in args
        )
        if func.name().endswith("_fwd"):
            for x in floating({str(k): argument for k, argument in enumerate(arguments)}):
                x.requires_grad_()
        torch.library.opcheck(func, arguments)


def test_opcheck_covers_every_declared_op() -> None:
    checked = {f"{case.op}_{way}" for case in OPCHECKED for way in ("fwd", "bwd")}
    in_files_of_their_own = ("frame_conv", "frame_scores", "lstm_net_step", "moving_mnist")
    elsewhere = {op for op in backend.ops() if op.startswith(in_files_of_their_own)}
    assert set(backend.ops()) == checked | elsewhere


@pytest.mark.parametrize("case", ORDINARY, ids=str)
def test_compiles_without_a_graph_break(case: Case) -> None:
    torch.compiler.reset()
    want = evaluate(call(case.op), case.inputs())
    got = evaluate(torch.compile(call(case.op), fullgraph=True, backend="aot_eager"), case.inputs())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_inductor_compiles_an_op_of_transposed_inputs() -> None:
    """Inductor relies on the strides that the shape functions promise."""
    torch.compiler.reset()

    def function(**inputs: Any) -> tuple[Tensor, ...]:
        z, kl = ops.gaussian_rsample_kl(**inputs)
        return z * 2 + 1, kl

    case = select("gaussian_rsample_kl", "transposed, seed")[0]
    want = evaluate(function, case.inputs())
    assert_close(evaluate(torch.compile(function, fullgraph=True), case.inputs()), want, FLOAT32)
