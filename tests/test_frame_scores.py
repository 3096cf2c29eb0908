"""`frame_scores` beyond the table of cases that test_ops.py runs: edges, threads, dtypes, PyTorch's own checks."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from test_ops import Recorder, call, compare_with_float64
from torch import Tensor

from svg_fast import backend, ops
from svg_fast.testing import Case, select

CASES = select("frame_scores")
LARGE = select("frame_scores", "large")[0]
run = call("frame_scores")
operator = torch.ops.svg_fast.frame_scores_fwd

# test_backend.py fails where the kernel could have been built and does not serve
needs_kernel = pytest.mark.skipif(backend.served_by("frame_scores_fwd") != "kernel", reason="no compiled kernel")


def assert_equal(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> None:
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_reference_is_right_too(case: Case) -> None:
    with backend.use_backend("reference"):
        compare_with_float64(case, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equal_planes_score_exactly_so(dtype: torch.dtype) -> None:
    truth = torch.rand(3, 20, 24, dtype=dtype)
    mse, ssim, published = ops.frame_scores(truth[None].clone(), truth)
    assert (mse == 0).all()
    if backend.served_by("frame_scores_fwd") == "kernel":
        assert (ssim == 1).all()
        assert (published == 1).all()


@pytest.mark.parametrize("size", [(6, 20), (20, 6), (1, 1)])
def test_planes_without_a_window_have_no_ssim(size: tuple[int, int]) -> None:
    prediction, truth = torch.rand(2, 3, *size), torch.rand(3, *size)
    got = ops.frame_scores(prediction, truth)
    with backend.use_backend("reference"):
        referred = ops.frame_scores(prediction, truth)
    for mse, ssim, published in (got, referred):
        torch.testing.assert_close(mse, (prediction - truth).square().mean((2, 3)))
        assert torch.stack((ssim, published)).isnan().all()


@pytest.mark.parametrize("size", [(0, 2**60), (2**60, 0), (0, 0)])
def test_planes_without_a_pixel_have_no_scores(size: tuple[int, int]) -> None:
    for scores in ops.frame_scores(torch.rand(2, 3, *size), torch.rand(3, *size)):
        assert scores.shape == (2, 3)
        assert scores.isnan().all()


def test_what_is_not_a_number_stays_in_its_plane() -> None:
    inputs = select("frame_scores", "ordinary")[0].inputs()
    want = run(**inputs)
    inputs["prediction"][1, 2, 3, 4] = math.nan
    for got, before in zip(run(**inputs), want, strict=True):
        assert got.isnan().nonzero().tolist() == [[1, 2]]
        before[1, 2] = got[1, 2]
        torch.testing.assert_close(got, before, rtol=0, atol=0, equal_nan=True)


def test_scores_do_not_depend_on_the_number_of_threads_nor_on_other_samples() -> None:
    inputs, threads = LARGE.inputs(), torch.get_num_threads()
    prediction, truth = inputs["prediction"], inputs["truth"]
    try:
        torch.set_num_threads(1)
        want = ops.frame_scores(prediction, truth)
        for n in (2, 3):
            torch.set_num_threads(n)
            assert_equal(ops.frame_scores(prediction, truth), want)
    finally:
        torch.set_num_threads(threads)
    alone = [ops.frame_scores(sample[None], truth) for sample in prediction]
    assert_equal(tuple(map(torch.cat, zip(*alone, strict=True))), want)


def test_several_python_threads_at_once() -> None:
    """Each keeps memory for its planes, of other sizes from call to call."""
    cases = [case for case in CASES if case.situation in ("ordinary", "odd sizes", "tall", "large")] * 3
    want = [run(**case.inputs()) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for got, scores in zip(pool.map(lambda case: run(**case.inputs()), cases), want, strict=True):
            assert_equal(got, scores)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits_are_taken_as_float32(dtype: torch.dtype) -> None:
    inputs = select("frame_scores", "odd sizes")[0].inputs(dtype)
    got = run(**inputs)
    assert all(scores.dtype == torch.float32 for scores in got)
    assert_equal(got, run(**{name: x.float() for name, x in inputs.items()}))


@pytest.mark.parametrize("name", ["prediction", "truth"])
def test_one_of_float64_makes_it_float64(name: str) -> None:
    inputs = select("frame_scores", "odd sizes")[0].inputs()
    got = run(**inputs | {name: inputs[name].double()})
    assert_equal(got, run(**{name: x.double() for name, x in inputs.items()}))


def test_a_call_that_wants_a_gradient_is_told_what_to_do() -> None:
    inputs = select("frame_scores", "ordinary")[0].inputs()
    inputs["prediction"].requires_grad_()
    with pytest.raises(RuntimeError, match=r"frame_scores has no gradient.*torch\.no_grad"):
        ops.frame_scores(**inputs)
    with torch.no_grad():
        assert not any(scores.requires_grad for scores in ops.frame_scores(**inputs))
    mse, _, _ = operator(*inputs.values())
    with pytest.raises(RuntimeError, match="frame_scores has no gradient"):
        mse.sum().backward()


@needs_kernel
@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        ((3, 9, 9), (3, 9, 9), r"prediction must have 4 dimensions, got shape \[3, 9, 9\]"),
        ((2, 3, 9, 9), (2, 9, 9), r"truth must have shape \[3, 9, 9\], got \[2, 9, 9\]"),
        ((2, 3, 9, 9), (9, 9), r"truth must have shape \[3, 9, 9\], got \[9, 9\]"),
    ],
)
def test_the_kernel_itself_tells_of_wrong_shapes(
    prediction: tuple[int, ...], truth: tuple[int, ...], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        operator(torch.rand(prediction), torch.rand(truth))


@pytest.mark.parametrize("situation", ["odd sizes", "one window", "no samples", "no planes", "transposed", "spaced"])
def test_opcheck(situation: str) -> None:
    with Recorder() as recorder:
        run(**select("frame_scores", situation)[0].inputs())
    ((_, arguments),) = recorder.calls
    torch.library.opcheck(operator.default, tuple[Any, ...](arguments))
