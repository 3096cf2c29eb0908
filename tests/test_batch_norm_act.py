"""What test_ops.py does not ask of batch_norm_act: exact statistics, signs at the kink, odd widths, the same numbers
from any number of threads, dtypes that differ, and what comes of NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import op_oracles
import pytest
import torch
from test_ops import FLOAT32, FLOAT64, assert_close, call, evaluate, map_floating
from torch import Tensor

from svg_fast import backend, ops
from svg_fast.testing import Case, Draw, Layout, channels_last, contiguous, select

LAYOUTS = (contiguous, channels_last)
EPSILON = 2.0**-24  # half the distance of float32 numbers from one on
BIAS = torch.zeros(64)


def relative_error(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


def off_centre(draw: Draw) -> Tensor:
    """Standard deviations of one about means of a thousand."""
    return draw(40, 64, 32, 32, mean=1000.0)


def with_an_outlying_image(draw: Draw) -> Tensor:
    """The first image, with which each step's sums begin, lies far from the others."""
    x = draw(40, 64, 32, 32)
    x[::20] += 1000.0
    return x


def like_a_convolution(draw: Draw) -> Tensor:
    return draw(40, 64, 32, 32, mean=0.3, std=1.5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("make", [off_centre, with_an_outlying_image, like_a_convolution])
def test_statistics_are_float64s_rounded(make: Callable[[Draw], Tensor], layout: Layout) -> None:
    """Steps of 20 x 64 x 32 x 32, to a few roundings: a running float32 sum is twenty times as far off."""
    x = make(Draw(torch.float32, "cpu", layout))
    _, mean, var = ops.batch_norm_act(x, torch.ones(64), BIAS, steps=2)
    steps = [x_t.double() for x_t in x.chunk(2)]
    want_mean = torch.stack([x_t.mean((0, 2, 3)) for x_t in steps])
    want_var = torch.stack([x_t.var((0, 2, 3), unbiased=False) for x_t in steps])
    assert relative_error(mean.double(), want_mean) <= 2 * EPSILON
    assert relative_error(var.double(), want_var) <= 4 * EPSILON


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_constant_has_no_variance(layout: Layout) -> None:
    x = layout(torch.full((4, 64, 9, 9), 0.1))
    y, mean, var = ops.batch_norm_act(x, torch.ones(64), BIAS, steps=2, eps=1e-30)
    assert torch.equal(mean, torch.full_like(mean, 0.1))
    assert (var == 0).all()
    assert (y == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3, 5, 17, 100])
@pytest.mark.parametrize("size", [(3, 3), (7, 5), (17, 19)])
def test_any_number_of_channels_and_odd_maps(channels: int, size: tuple[int, int], layout: Layout) -> None:
    draw = Draw(torch.float32, "cpu", layout)
    inputs = {
        "x": draw(6, channels, *size, mean=0.3, std=1.5),
        "weight": draw(channels, mean=1.0, std=0.2),
        "bias": draw(channels, std=0.2),
        "steps": 3,
    }
    want = evaluate(op_oracles.batch_norm_act, map_floating(inputs, lambda x: x.double()))
    assert_close(evaluate(call("batch_norm_act"), inputs), want, FLOAT32)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_backward_sees_the_signs_of_the_forward(layout: Layout) -> None:
    """Values on a lattice through zero: by the float's last bit a pre-activation is one side of the kink or the other.

    With a slope of zero and dy of ones, dbias counts the positive outputs.
    """
    draw = Draw(torch.float32, "cpu", layout)
    x = (draw(8, 64, 16, 16) * 2).round()
    weight, bias = draw(64, mean=1.0, std=0.2).requires_grad_(), torch.zeros(64, requires_grad=True)
    with torch.no_grad():
        _, mean, var = ops.batch_norm_act(x, weight, bias)
        bias.copy_(mean[0] * weight / (var[0] + 1e-5).sqrt())  # x = 0 becomes 0, but for rounding
    y, _, _ = ops.batch_norm_act(x, weight, bias, negative_slope=0.0)
    assert y[x == 0].abs().max() < 1e-6
    (dbias,) = torch.autograd.grad(y, bias, torch.ones_like(y))
    assert torch.equal(dbias, (y > 0).sum((0, 2, 3)).float())


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(backend.served_by("batch_norm_act_fwd") != "kernel", reason="a promise of the kernels")
@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(3, 20, 64, 32, 32), (6, 5, 100, 9, 9), (15, 20, 128, 1, 1), (1, 20, 3, 40, 40)])
def test_the_same_numbers_from_run_to_run_and_for_any_number_of_threads(shape: tuple[int, ...], layout: Layout) -> None:
    G, N, C, *size = shape

    def run(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        draw = Draw(torch.float32, "cpu", layout)
        inputs = {"x": draw(G * N, C, *size), "weight": draw(C), "bias": draw(C), "steps": G}
        return evaluate(call("batch_norm_act"), inputs)

    want = run(1)
    for count in (1, 2, 3, 8):
        assert all(map(torch.equal, run(count), want))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_spoil_their_channel_and_step_alone(value: float, layout: Layout) -> None:
    draw = Draw(torch.float32, "cpu", layout)
    x = draw(6, 20, 9, 9)
    x[3, 7, 4, 5] = value
    clean = torch.ones(3, 20, dtype=torch.bool)
    clean[1, 7] = False
    outputs = evaluate(call("batch_norm_act"), {"x": x, "weight": draw(20), "bias": draw(20), "steps": 3})
    y, mean, var, dx, dweight, dbias = outputs
    for tensor in (y, dx):
        assert torch.equal(tensor.isnan().view(3, 2, 20, 81).all((1, 3)), ~clean)
        assert torch.equal(tensor.isfinite().view(3, 2, 20, 81).all((1, 3)), clean)
    assert torch.equal(mean.isfinite(), clean)
    assert torch.equal(var.isnan(), ~clean)
    assert torch.equal(dweight.isnan(), ~clean.all(0))
    assert dbias[clean.all(0)].isfinite().all()


@pytest.mark.parametrize("parameters", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_parameters_may_have_another_dtype(dtype: torch.dtype, parameters: torch.dtype) -> None:
    """As autocast mixes them: y and dx are x's, dweight and dbias are the weight's, computed in float32 or float64."""
    inputs = select("batch_norm_act", "ordinary, channels_last")[0].inputs(dtype)
    inputs |= {name: inputs[name].to(parameters) for name in ("weight", "bias")}
    want = evaluate(op_oracles.batch_norm_act, map_floating(inputs, lambda x: x.double()))
    got = evaluate(call("batch_norm_act"), inputs)
    statistics = torch.float64 if dtype == torch.float64 else torch.float32
    assert [x.dtype for x in got] == [dtype, statistics, statistics, dtype, parameters, parameters]
    narrow = torch.finfo(dtype if torch.finfo(dtype).eps > torch.finfo(parameters).eps else parameters).eps
    assert_close(got, want, max(narrow, FLOAT32))


@pytest.mark.parametrize("case", select("batch_norm_act"), ids=str)
def test_the_reference_is_held_to_the_same(case: Case) -> None:
    """Where kernels serve, no other test runs it."""
    inputs = case.inputs(torch.float64)
    want = evaluate(op_oracles.batch_norm_act, inputs)
    with backend.use_backend("reference"):
        assert_close(evaluate(call("batch_norm_act"), inputs), want, FLOAT64)


X, STATISTICS = torch.zeros(6, 3, 4, 4), torch.zeros(2, 3)
FORWARD = {"x": X, "weight": torch.zeros(3), "bias": torch.zeros(3), "steps": 2, "activation": "tanh"}
FORWARD |= {"negative_slope": 0.2, "eps": 1e-5}
BACKWARD = FORWARD | {"dy": X, "mean": STATISTICS, "var": STATISTICS}


@pytest.mark.skipif(backend.served_by("batch_norm_act_fwd") != "kernel", reason="errors of the kernels")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", torch.zeros(6, 3, 4), "x must have 4 dimensions, got shape [6, 3, 4]"),
        (
            "x",
            torch.zeros(4, 4, 3, 6).permute(3, 2, 0, 1),
            "x must be contiguous or channels_last in memory, got shape",
        ),
        ("weight", torch.zeros(4), "weight must have shape [3], got [4]"),
        ("bias", torch.zeros(3, 1), "bias must have shape [3], got [3, 1]"),
        ("steps", 4, "dimension 0 of x must be a multiple of steps, got 6 images for 4 steps"),
        ("steps", 0, "steps must be at least 1, got 0"),
        ("activation", "relu", "activation must be one of leaky_relu, tanh, identity, got relu"),
        ("dy", torch.zeros(6, 3, 4, 5), "dy must have shape [6, 3, 4, 4], got [6, 3, 4, 5]"),
        ("mean", torch.zeros(3), "mean must have shape [2, 3], got [3]"),
        ("var", torch.zeros(3, 3), "var must have shape [2, 3], got [3, 3]"),
    ],
)
def test_kernels_check_what_they_are_given(name: str, value: object, message: str) -> None:
    """The ops themselves, without the public function's checks."""
    with pytest.raises(RuntimeError) as caught:
        torch.ops.svg_fast.batch_norm_act_bwd(**BACKWARD | {name: value})
    assert message in str(caught.value)
    if name in FORWARD:
        with pytest.raises(RuntimeError) as caught:
            torch.ops.svg_fast.batch_norm_act_fwd(**FORWARD | {name: value})
        assert message in str(caught.value)
