"""The frame networks' convolutions against stock torch in float64: values, gradients, layouts, and who serves what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from svg_fast import backend, ops
from svg_fast.ops.frame_conv import prepare_conv

# Relative to the norm of the float64 result. Winograd's transforms cost a factor of a few over the 3e-7 to 1.2e-6 of a
# direct float32 sum; the largest seen is 1.6e-6.
FLOAT32 = 3e-6


class Shape(NamedTuple):
    """kernel k, images, channels of the small and of the large map, height and width of the small map."""

    kernel: int
    images: int
    d0: int
    d1: int
    height: int
    width: int


SHAPES = {
    "dcgan, wide maps": Shape(4, 3, 128, 64, 16, 16),
    "dcgan, narrow maps": Shape(4, 5, 512, 256, 4, 4),
    "dcgan, few channels": Shape(4, 3, 32, 16, 8, 8),
    "dcgan, odd tiles": Shape(4, 2, 48, 80, 3, 5),
    "dcgan, one pixel": Shape(4, 2, 16, 16, 1, 1),
    "dcgan, one frame channel": Shape(4, 3, 64, 1, 32, 32),
    "dcgan, three frame channels": Shape(4, 2, 48, 3, 5, 7),
    "vgg, wide maps": Shape(3, 2, 64, 64, 32, 32),
    "vgg, many channels": Shape(3, 3, 512, 512, 8, 8),
    "vgg, odd tiles": Shape(3, 2, 64, 128, 9, 7),
    "vgg, one pixel": Shape(3, 2, 16, 16, 1, 1),
    "vgg, one frame channel": Shape(3, 2, 64, 1, 8, 8),
    "vgg, three frame channels": Shape(3, 2, 64, 3, 16, 16),
    "one image": Shape(4, 1, 64, 32, 8, 8),
    "more tiles than a block": Shape(4, 40, 32, 16, 16, 16),
    "no image": Shape(4, 0, 32, 16, 8, 8),
}
BOTH_WAYS = pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
EVERY_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
SMALL = SHAPES["dcgan, few channels"]


def draw(shape: Shape, transposed: bool, addend_images: int | None = None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    factor = 2 if shape.kernel == 4 else 1
    large = (factor * shape.height, factor * shape.width)
    sizes = {"small": (shape.d0, shape.height, shape.width), "large": (shape.d1, *large)}
    given, made = ("small", "large") if transposed else ("large", "small")

    def normal(*size: int, std: float = 1.0) -> Tensor:
        return std * torch.randn(size, generator=generator)

    inputs: dict[str, Any] = {
        "x": normal(shape.images, *sizes[given]).contiguous(memory_format=torch.channels_last),
        "weight": normal(shape.d0, shape.d1, shape.kernel, shape.kernel, std=0.02),
        "bias": normal(sizes[made][0]),
    }
    if addend_images is not None:
        inputs["addend"] = normal(addend_images, *sizes[made])
    return inputs


def stock(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, addend: Tensor | None = None, transposed: bool = False
) -> Tensor:
    convolve = F.conv_transpose2d if transposed else F.conv2d
    y = convolve(x, weight, bias, stride=2 if weight.shape[2] == 4 else 1, padding=1)
    return y if addend is None else y + addend.repeat(len(y) // max(len(addend), 1), 1, 1, 1)


def evaluate(function: Callable[..., Tensor], inputs: dict[str, Any], transposed: bool, **options: Any) -> list[Tensor]:
    """The output and the gradient of every input, for one fixed cotangent."""
    leaves = [value.clone().requires_grad_() for value in inputs.values()]
    y = function(**dict(zip(inputs, leaves, strict=True)), transposed=transposed, **options)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def assert_near(got: list[Tensor], want: list[Tensor], bound: float = FLOAT32) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        error, size = (a.double() - b).norm().item(), b.norm().item()
        assert error <= bound * size, f"error {error:.1e} of {size:.1e}"


@BOTH_WAYS
@EVERY_SHAPE
def test_values_and_gradients(shape: Shape, transposed: bool) -> None:
    inputs = draw(shape, transposed)
    want = evaluate(stock, {name: value.double() for name, value in inputs.items()}, transposed)
    got = evaluate(ops.frame_conv, inputs, transposed)
    assert_near(got, want)
    assert got[0].is_contiguous(memory_format=torch.channels_last)
    assert got[1].is_contiguous(memory_format=torch.channels_last)


@BOTH_WAYS
@pytest.mark.parametrize("images", [1, 2, 4], ids=lambda n: f"{n} of 4 images")
@pytest.mark.parametrize("shape", [SMALL._replace(images=4), Shape(4, 4, 16, 1, 8, 8)], ids=["winograd", "thin"])
def test_addend_repeats_over_the_images(shape: Shape, images: int, transposed: bool) -> None:
    inputs = draw(shape, transposed, images)
    want = evaluate(stock, {name: value.double() for name, value in inputs.items()}, transposed)
    assert_near(evaluate(ops.frame_conv, inputs, transposed), want)


@BOTH_WAYS
@EVERY_SHAPE
def test_a_prepared_weight_gives_the_same_bits(shape: Shape, transposed: bool) -> None:
    inputs = draw(shape, transposed)
    want = evaluate(ops.frame_conv, inputs, transposed)

    def prepared(x: Tensor, weight: Tensor, bias: Tensor, transposed: bool) -> Tensor:
        return ops.frame_conv(x, prepare_conv(weight, transposed=transposed), bias, transposed=transposed)

    assert all(map(torch.equal, evaluate(prepared, inputs, transposed), want))


@BOTH_WAYS
@EVERY_SHAPE
def test_any_number_of_threads_and_any_run_give_the_same_bits(shape: Shape, transposed: bool) -> None:
    inputs, threads = draw(shape, transposed), torch.get_num_threads()
    want = evaluate(ops.frame_conv, inputs, transposed)
    try:
        for count in (1, 2, 3, 24):  # with 24 the work is cut differently
            torch.set_num_threads(count)
            assert all(map(torch.equal, evaluate(ops.frame_conv, inputs, transposed), want))
    finally:
        torch.set_num_threads(threads)


@BOTH_WAYS
def test_inputs_and_cotangents_may_lie_anyhow_in_memory(transposed: bool) -> None:
    inputs = draw(SMALL, transposed)
    want = evaluate(ops.frame_conv, inputs, transposed)
    inputs["x"] = inputs["x"].contiguous()
    inputs["weight"] = inputs["weight"].transpose(0, 3).contiguous().transpose(0, 3)
    assert all(map(torch.equal, evaluate(ops.frame_conv, inputs, transposed), want))
    x = inputs["x"].requires_grad_()
    y = ops.frame_conv(x, inputs["weight"], transposed=transposed)
    (got,) = torch.autograd.grad(y, x, torch.ones(()).expand(y.shape), retain_graph=True)
    (want_dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(got, want_dx)


def test_gradients_that_nobody_asks_for_are_not_made() -> None:
    inputs = draw(SMALL, False)
    weight = inputs["weight"].requires_grad_()
    y = ops.frame_conv(inputs["x"], weight)
    (got,) = torch.autograd.grad(y.sum(), weight)
    assert got.shape == weight.shape
    with torch.no_grad():
        assert not ops.frame_conv(inputs["x"], weight).requires_grad


@BOTH_WAYS
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_precisions_are_stock_convolutions(dtype: torch.dtype, transposed: bool) -> None:
    inputs = {name: value.to(dtype) for name, value in draw(SMALL, transposed, 1).items()}
    want = evaluate(stock, inputs, transposed)
    for a, b in zip(evaluate(ops.frame_conv, inputs, transposed), want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("d0", "d1"), [(20, 7), (16, 4112), (4112, 16)])
def test_channels_that_do_not_fit_are_stock_convolutions(d0: int, d1: int) -> None:
    inputs = draw(SMALL._replace(d0=d0, d1=d1, height=2, width=2), False)
    assert_near(evaluate(ops.frame_conv, inputs, False), evaluate(stock, inputs, False), 1e-6)


def test_the_reference_computes_the_same() -> None:
    inputs = draw(SMALL, True, 1)
    got = evaluate(ops.frame_conv, inputs, True)
    with backend.use_backend("reference"):
        want = evaluate(ops.frame_conv, inputs, True)
    assert_near(got, [x.double() for x in want])


def test_not_a_number_stays_in_its_neighbourhood() -> None:
    """The transforms of a tile mix its pixels, so a whole tile is lost, but not its image, nor its neighbours'."""
    inputs = draw(SMALL, False)
    inputs["x"][1, 0, 0, 0] = torch.nan
    y = ops.frame_conv(inputs["x"], inputs["weight"])
    assert y[1, :, 0, 0].isnan().all()
    assert y[[0, 2]].isfinite().all()
    assert y[1, :, 4:, 4:].isfinite().all()


@BOTH_WAYS
@pytest.mark.parametrize("shape", [SMALL, Shape(3, 2, 16, 3, 4, 4)], ids=["winograd", "thin"])
def test_opcheck(shape: Shape, transposed: bool) -> None:
    inputs = draw(shape, transposed, shape.images)
    x, weight, bias, addend = inputs.values()
    packed = torch.ops.svg_fast.frame_conv_pack(weight, transposed, True)
    torch.library.opcheck(torch.ops.svg_fast.frame_conv_fwd.default, (x, weight, bias, addend, packed, transposed))
    dy = torch.ops.svg_fast.frame_conv_fwd(x, weight, bias, addend, packed, transposed)
    for needed in ((True, True, True), (False, True, False)):
        torch.library.opcheck(torch.ops.svg_fast.frame_conv_bwd.default, (dy, x, weight, packed, transposed, *needed))


def test_compiles_without_a_graph_break() -> None:
    torch.compiler.reset()
    inputs = draw(SMALL, True, 1)
    want = evaluate(ops.frame_conv, inputs, True)
    compiled = torch.compile(ops.frame_conv, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, evaluate(compiled, inputs, True), want))


X, WEIGHT = torch.zeros(4, 16, 8, 8), torch.zeros(32, 16, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X[0], WEIGHT), "x must have 4 dimensions"),
        ((X.int(), WEIGHT), "x must be a floating-point tensor"),
        ((X, WEIGHT[..., :2]), r"weight must have shape \(C, C, 4, 4\) or \(C, C, 3, 3\), got \[32, 16, 4, 2\]"),
        ((X[:, :3], WEIGHT), r"x must have 16 channels for a weight of \[32, 16, 4, 4\], got \[4, 3, 8, 8\]"),
        ((X[..., :7], WEIGHT), "x must have a height and width that are multiples of 2"),
        ((X, WEIGHT.double()), "weight must be torch.float32, got torch.float64"),
        ((X, WEIGHT, torch.zeros(5)), r"bias must have shape \[32\], got \[5\]"),
    ],
)
def test_wrong_use(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        ops.frame_conv(*arguments)


@pytest.mark.parametrize(
    ("addend", "message"),
    [
        (torch.zeros(3, 32, 4, 4), "addend must hold a divisor of the 4 images of x, got 3"),
        (torch.zeros(0, 32, 4, 4), "addend must hold a divisor of the 4 images of x, got 0"),
        (torch.zeros(2, 32, 4, 5), r"addend must have shape \[2, 32, 4, 4\], got \[2, 32, 4, 5\]"),
    ],
)
def test_wrong_addend(addend: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.frame_conv(X, WEIGHT, addend=addend)


def test_a_weight_packed_for_another_is_refused() -> None:
    if backend.served_by("frame_conv_fwd") == "reference":
        pytest.skip("the reference packs nothing")
    packed = torch.ops.svg_fast.frame_conv_pack(torch.zeros(64, 16, 4, 4), False, True)
    with pytest.raises(RuntimeError, match="packed must be what frame_conv_pack made of this weight"):
        torch.ops.svg_fast.frame_conv_fwd(X, WEIGHT, None, None, packed, False)
