"""`lstm_net_step` beyond the table of cases that test_ops.py runs: precision, layouts, noise, PyTorch's own checks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_ops import BFLOAT16_ULP, FLOAT32, Recorder, assert_close, call, map_floating
from torch import Tensor

from svg_fast import backend, ops
from svg_fast.testing import Case, Draw, select

CASES = select("lstm_net_step")
ORDINARY = select("lstm_net_step", "ordinary")[0]
SEED = select("lstm_net_step", "seed")[0]
run = call("lstm_net_step")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bfloat16_is_float32_rounded(case: Case) -> None:
    """Nothing is rounded in between: neither the embedding nor a lower layer's output."""
    inputs = case.inputs(torch.bfloat16)
    want = run(**map_floating(inputs, lambda x: x.float()))
    for a, b in zip(run(**inputs), want, strict=True):
        assert a.dtype == torch.bfloat16
        assert ((a - b).abs() <= BFLOAT16_ULP * b.abs()).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_results_follow_their_inputs_dtypes(dtype: torch.dtype) -> None:
    inputs = ORDINARY.inputs()
    h, c, *outputs = run(**inputs | {"h": inputs["h"].to(dtype)})
    assert (h.dtype, c.dtype) == (dtype, torch.float32)
    assert {y.dtype for y in outputs} == {torch.float32}


@pytest.mark.parametrize("case", [ORDINARY, SEED], ids=str)
def test_it_is_its_parts(case: Case) -> None:
    inputs = case.inputs()
    drawn = {name: inputs.pop(name) for name in ("eps", "seed") if name in inputs}
    embed, heads = ((inputs.pop(f"w_{name}"), inputs.pop(f"b_{name}")) for name in ("embed", "head"))
    x = torch.nn.functional.linear(inputs["x"], *embed)
    h, c = ops.lstm_step(**inputs | {"x": x})
    mu, logvar = (torch.nn.functional.linear(h[-1], w, b) for w, b in zip(*heads, strict=True))
    want = [h, c, mu, logvar, ops.gaussian_rsample(mu, logvar, **drawn)]
    assert_close(list(run(**case.inputs())), want, FLOAT32)


def test_noise_is_read_from_memory_at_every_call() -> None:
    """As a captured graph does, whose seed is advanced in place."""
    inputs = SEED.inputs() | {"seed": torch.tensor([7, 0])}
    first = run(**inputs)
    again = run(**inputs)
    inputs["seed"][1] += 1
    other = run(**inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first[:4], other[:4], strict=True))
    assert not torch.isclose(first[4], other[4]).any()
    _, _, mu, logvar, z = other
    torch.testing.assert_close(z, ops.gaussian_rsample(mu, logvar, seed=torch.tensor([7, 1])), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("H", [1, 2, 5, 8, 31, 33])
@pytest.mark.parametrize("B", [1, 3, 4, 7])
def test_sizes_around_a_tile(B: int, H: int) -> None:
    draw = Draw(torch.float64, "cpu")
    inputs: dict[str, Any] = {"x": draw(B, H + 1), "h": draw(1, B, H), "c": draw(1, B, H)}
    inputs |= {"w_embed": draw(H, H + 1), "b_embed": draw(H), "b_head": [draw(H + 2)], "w_head": [draw(H + 2, H)]}
    inputs |= {name: [draw(4 * H, H, std=H**-0.5)] for name in ("w_ih", "w_hh")}
    inputs |= {name: [draw(4 * H)] for name in ("b_ih", "b_hh")}
    got = run(**inputs)
    with backend.use_backend("reference"):
        assert_close(list(got), list(run(**inputs)), 1e-10)


def test_a_call_that_wants_a_gradient_is_told_what_to_do() -> None:
    inputs = ORDINARY.inputs()
    inputs["w_ih"][1].requires_grad_()
    with pytest.raises(RuntimeError, match=r"no gradient.*torch\.no_grad.*compose torch\.nn\.functional\.linear"):
        ops.lstm_net_step(**inputs)
    with torch.no_grad():
        assert not any(y.requires_grad for y in ops.lstm_net_step(**inputs))


def operator_arguments(case: Case) -> tuple[Any, ...]:
    with Recorder() as recorder:
        run(**case.inputs())
    ((_, arguments),) = recorder.calls
    return tuple(arguments)


def test_a_gradient_of_the_operator_is_refused() -> None:
    arguments = list(operator_arguments(ORDINARY))
    arguments[0] = arguments[0].requires_grad_()
    h, _, _ = torch.ops.svg_fast.lstm_net_step_fwd(*arguments)
    with pytest.raises(RuntimeError, match="lstm_net_step has no gradient"):
        h.sum().backward()


@pytest.mark.parametrize("situation", ["odd sizes", "predictor", "posterior", "seed", "empty batch", "transposed"])
def test_opcheck(situation: str) -> None:
    arguments = operator_arguments(select("lstm_net_step", situation)[0])
    torch.library.opcheck(torch.ops.svg_fast.lstm_net_step_fwd.default, arguments)


@pytest.mark.parametrize("situation", ["predictor", "posterior", "seed"])
def test_compiles_without_a_graph_break(situation: str) -> None:
    torch.compiler.reset()
    inputs = select("lstm_net_step", situation)[0].inputs()
    if "seed" in inputs:
        inputs["seed"] = torch.tensor([3, 0])
    got: tuple[Tensor, ...] = torch.compile(run, fullgraph=True, backend="aot_eager")(**inputs)
    assert all(torch.equal(a, b) for a, b in zip(got, run(**inputs), strict=True))
