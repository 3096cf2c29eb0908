"""The Gaussian ops beyond the table of cases: sums over large steps, extreme and empty inputs, mixed types, threads."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_ops import FLOAT32, assert_close, evaluate, map_floating
from torch import Tensor

from svg_fast import backend, ops
from svg_fast.testing import Draw

KERNELS = ("gaussian_rsample", "gaussian_kl", "gaussian_rsample_kl")
BIG = [0.0, 1.0, -1.0, 85.0, -85.0, 100.0, -100.0, 170.0, -170.0, 300.0, -300.0, 800.0, -800.0, 2000.0, -2000.0]
EXTREMES = [*BIG, math.inf, -math.inf, math.nan]


def inputs(op: str, *shape: int, dtype: torch.dtype = torch.float32, prior: bool = True) -> dict[str, Any]:
    draw = Draw(dtype, "cpu")
    names = ["mu", "logvar", *(["mu_p", "logvar_p"] if prior and op != "gaussian_rsample" else [])]
    given: dict[str, Any] = {name: draw(*shape, std=0.7) for name in names}
    return given if op == "gaussian_kl" else given | {"eps": draw(*shape)}


def run(op: str, given: dict[str, Any]) -> list[Tensor]:
    def function(**arguments: Any) -> tuple[Tensor, ...]:
        outputs = getattr(ops, op)(**arguments)
        return (outputs,) if isinstance(outputs, Tensor) else outputs

    return evaluate(function, given)


def copied(given: dict[str, Any]) -> dict[str, Any]:
    return map_floating(given, lambda x: x.detach().clone())


def run_reference(op: str, given: dict[str, Any]) -> list[Tensor]:
    with backend.use_backend("reference"):
        return run(op, given)


@pytest.mark.parametrize("prior", [True, False], ids=["learned prior", "standard normal"])
def test_kl_of_large_steps_is_summed_accurately(prior: bool) -> None:
    given = inputs("gaussian_kl", 6, 1024, 128, prior=prior)
    want = run_reference("gaussian_kl", map_floating(given, lambda x: x.double()))
    assert_close(run("gaussian_kl", given), want, FLOAT32)


@pytest.mark.parametrize("size", [2100, 2103])
def test_results_too_large_for_caches_are_those_of_their_time_steps(size: int) -> None:
    """Those are written in another way, where they lie on whole vectors."""
    given = inputs("gaussian_rsample_kl", 2, 500, size)
    dz, dkl = torch.randn(2, 500, size), torch.randn(2)

    def both_ways(begin: int, end: int) -> list[Tensor]:
        steps = map_floating(given, lambda x: x.detach()[begin:end].clone())
        return evaluate(ops.gaussian_rsample_kl, steps, lambda _: [dz[begin:end], dkl[begin:end]])

    parts = [torch.cat(part) for part in zip(both_ways(0, 1), both_ways(1, 2), strict=True)]
    assert all(map(torch.equal, both_ways(0, 2), parts))


@pytest.fixture(params=[(7, 5, 300), (1, 40, 1000), (3, 1, 2050)], ids=str)
def shape(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    """Many steps, one large step, and steps that are not whole vectors."""
    shape: tuple[int, int, int] = request.param
    return shape


@pytest.fixture
def threads() -> Iterator[list[int]]:
    before = torch.get_num_threads()
    yield [1, 2, 3, 2]
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("op", KERNELS)
def test_results_are_the_same_run_to_run_and_for_any_number_of_threads(
    op: str, shape: tuple[int, int, int], dtype: torch.dtype, threads: list[int]
) -> None:
    given = inputs(op, *shape, dtype=dtype)
    results = []
    for count in threads:
        torch.set_num_threads(count)
        results.append(run(op, copied(given)))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("prior", [True, False], ids=["learned prior", "standard normal"])
@pytest.mark.parametrize("op", KERNELS)
def test_extreme_values_go_the_way_of_the_reference(op: str, prior: bool, dtype: torch.dtype) -> None:
    """Every pair of extremes as posterior's and prior's logvar, each in a step of its own."""
    values = torch.tensor(EXTREMES, dtype=dtype)
    logvar, logvar_p = (x.reshape(-1, 1, 1) for x in torch.meshgrid(values, values, indexing="ij"))
    for mu in (0.5, math.nan, math.inf):
        given = inputs(op, *logvar.shape, dtype=dtype, prior=prior)
        given |= {"mu": torch.full_like(logvar, mu), "logvar": logvar.clone()}
        if "mu_p" in given:
            given["logvar_p"] = logvar_p.clone()
        want = run_reference(op, copied(given))
        for a, b in zip(run(op, given), want, strict=True):
            if mu == math.inf:  # times a number too small to be normal, which is zero to the kernels: infinity or NaN
                assert torch.equal(a.isfinite(), b.isfinite())
            else:
                torch.testing.assert_close(a, b, rtol=1e-5, atol=2 * torch.finfo(dtype).tiny, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("prior", [True, False], ids=["learned prior", "standard normal"])
@pytest.mark.parametrize("op", KERNELS)
def test_empty_steps_batches_and_latents(op: str, shape: tuple[int, int, int], prior: bool) -> None:
    given = inputs(op, *shape, prior=prior)
    got, want = run(op, given), run_reference(op, copied(given))
    assert [x.shape for x in got] == [x.shape for x in want]
    assert all(map(torch.equal, got, want))


@pytest.mark.parametrize("types", ["float32 bfloat16", "bfloat16 float32", "float32 float64", "float64 float16"])
@pytest.mark.parametrize("op", KERNELS)
def test_mixed_types_are_computed_in_that_of_mu(op: str, types: str) -> None:
    first, second = (getattr(torch, name) for name in types.split())
    given = inputs(op, 3, 4, 9, dtype=first)
    given |= {name: given[name].to(second) for name in ("logvar", "mu_p") if name in given}
    want = run_reference(op, copied(given))
    got = run(op, given)
    assert [x.dtype for x in got] == [x.dtype for x in want]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("op", "arguments", "message"),
    [
        ("gaussian_rsample_fwd", (zeros(3), zeros(4), zeros(3), None), "logvar must have shape [3], got [4]"),
        ("gaussian_rsample_fwd", (zeros(3), zeros(3), zeros(3, 1), None), "eps must have shape [3], got [3, 1]"),
        ("gaussian_rsample_fwd", (zeros(3), zeros(3), None, None), "eps or seed must be given"),
        ("gaussian_rsample_fwd", (zeros(3), zeros(3), None, zeros(2)), "seed must be Long, got Float"),
        (
            "gaussian_rsample_bwd",
            (zeros(3), zeros(3), None, zeros(3, dtype=torch.int64)),
            "seed must have shape [2], got [3]",
        ),
        ("gaussian_rsample_bwd", (zeros(2), zeros(3), zeros(3), None), "dz must have shape [3], got [2]"),
        ("gaussian_kl_fwd", (zeros(3), zeros(3), None, None), "mu must have 3 dimensions, got shape [3]"),
        (
            "gaussian_kl_fwd",
            (zeros(3, 1, 1), zeros(3, 1, 1), zeros(3, 1, 1), None),
            "mu_p and logvar_p must both be given",
        ),
        (
            "gaussian_kl_bwd",
            (zeros(2), zeros(3, 1, 1), zeros(3, 1, 1), None, None),
            "dkl must have shape [3], got [2]",
        ),
    ],
)
def test_the_kernels_themselves_refuse_what_does_not_fit(op: str, arguments: tuple[Any, ...], message: str) -> None:
    if backend.served_by(op) != "kernel":
        pytest.skip("the reference serves")
    with pytest.raises(RuntimeError) as caught:
        getattr(torch.ops.svg_fast, op)(*arguments)
    assert message in str(caught.value)
