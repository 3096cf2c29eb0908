"""The CUDA kernel of `lstm_net_step` and `lstm_step` on the emulator: values, orders of threads, planted faults."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import emulation
import planted_faults
import pytest
import torch
from planted_faults import Fault, sound
from test_ops import FLOAT32, Recorder, assert_close, call
from torch import Tensor

from svg_fast.ops._declare import REFERENCE_KERNELS
from svg_fast.testing import Draw, _lstm_net_step, _lstm_step

KERNEL, PRODUCTS, UNIT = (f"csrc/cuda/{name}" for name in ("lstm_step.cuh", "tile_products.cuh", "lstm_step.cu"))
Arguments = tuple[Any, ...]

pytestmark = pytest.mark.skipif(bool(emulation.MISSING), reason=emulation.MISSING)


def arguments(op: str, inputs: dict[str, Any]) -> Arguments:
    """What the operator beneath a public function gets."""
    with Recorder() as recorder:
        call(op)(**inputs)
    ((_, given),) = recorder.calls
    return tuple(given)


def widened(value: Any) -> Any:
    if isinstance(value, list):
        return [widened(item) for item in value]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def flat(results: Any) -> list[Tensor]:
    return [x for result in results for x in (result if isinstance(result, list) else [result])]


def reference(op: str, given: Arguments) -> list[Tensor]:
    """In float64."""
    return flat(REFERENCE_KERNELS[f"{op}_fwd"](*map(widened, given)))


def check(op: str, given: Arguments) -> Callable[[Any], None]:
    want = reference(op, given)
    seeded = op == "lstm_net_step" and given[-1] is not None

    def compare(ops: Any) -> None:
        os.environ["SVG_EMULATED_DEVICE"] = "sm_80 3"  # several tiles for every block
        assert_close(flat(getattr(ops, f"{op}_fwd")(*given)), want, 1e-5 if seeded else FLOAT32)

    return compare


def net(*sizes: int, dtype: torch.dtype = torch.float32, **options: Any) -> Arguments:
    """Sizes L, B, I, H, O."""
    return arguments("lstm_net_step", _lstm_net_step(*sizes, **options)(Draw(dtype, "cpu")))


def cells(*sizes: int) -> Arguments:
    """Sizes L, B, I, H."""
    return arguments("lstm_step", _lstm_step(*sizes)(Draw(torch.float32, "cpu")))


@pytest.fixture(scope="module")
def emulated() -> Any:
    return emulation.kernels()


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVG_EMULATED_DEVICE", "sm_90 132")


CASES: dict[str, tuple[str, Arguments]] = {
    "smallest": ("lstm_net_step", net(1, 1, 1, 1, 1, heads=1)),
    "predictor": ("lstm_net_step", net(2, 3, 10, 16, 12, heads=1)),
    "posterior": ("lstm_net_step", net(1, 17, 70, 40, 6)),
    "prior, seed": ("lstm_net_step", net(1, 17, 16, 40, 7, seed=3)),
    "prior, eps": ("lstm_net_step", net(2, 33, 5, 3, 17, eps=True)),
    "float64": ("lstm_net_step", net(2, 17, 9, 20, 6, seed=3, dtype=torch.float64)),
    "more layers than a launch has": ("lstm_net_step", net(10, 2, 4, 4, 3, eps=True)),
    "cells alone": ("lstm_step", cells(2, 17, 70, 40)),
    "more cells than a launch has": ("lstm_step", cells(17, 2, 3, 5)),
}


@pytest.mark.parametrize("seed", [0, 1, 5, 8])
@pytest.mark.parametrize("name", CASES)
def test_values_in_several_orders_of_threads(
    emulated: Any, name: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVG_EMULATED_SEED", str(seed))
    check(*CASES[name])(emulated)


def test_errors_are_those_of_the_cpu_kernel(emulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root mean squares, to within a fifth, which the two kernels' different sums leave to chance."""
    monkeypatch.setenv("SVG_EMULATED_DEVICE", "sm_90 8")
    given = net(2, 24, 138, 256, 128, heads=1)
    want = reference("lstm_net_step", given)
    ours, cpus = (
        [(got.double() - exact).square().mean().sqrt() for got, exact in zip(flat(results), want, strict=True)]
        for results in (emulated.lstm_net_step_fwd(*given), torch.ops.svg_fast.lstm_net_step_fwd(*given))
    )
    assert all(our <= 1.2 * cpu for our, cpu in zip(ours, cpus, strict=True))


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_numbers_beyond_the_range_of_halves(emulated: Any, scale: float) -> None:
    """Large rows by small ones: the products are as ever."""
    given = list(net(1, 5, 70, 16, 4, heads=1))
    given[0], given[3] = given[0] * scale, given[3] / scale
    check("lstm_net_step", tuple(given))(emulated)


def test_rows_of_very_different_sizes(emulated: Any) -> None:
    """Each has a scale of its own."""
    given = list(net(1, 5, 10, 70, 16))
    given[9] = [w * torch.logspace(-40, 40, 16, base=2).unsqueeze(1) for w in given[9]]
    given[10] = [torch.zeros(16)] * 2
    (_, _, mu, _), (_, _, want, _) = flat(emulated.lstm_net_step_fwd(*given)), reference("lstm_net_step", tuple(given))
    for column in range(16):
        assert_close([mu[:, column]], [want[:, column]], FLOAT32)


@pytest.mark.parametrize("at", [0, 3, 5, 9], ids=["x", "w_embed", "w_ih", "w_head"])
def test_operands_that_are_not_aligned(emulated: Any, at: int) -> None:
    given = list(net(2, 5, 16, 16, 8, heads=1))
    shifted = [torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape) for x in flat([given[at]])]
    given[at] = shifted if isinstance(given[at], list) else shifted[0]
    check("lstm_net_step", tuple(given))(emulated)


def fault(name: str, text: str, instead: str = "", file: str = KERNEL) -> Fault:
    return Fault(name, file, text, instead, UNIT)


WAIT, SYNC = "wait_at_least(arrived_, expected_);", "block_sync();"
IN_TILE, TO_SCALE = "if (tile + static_cast<int>(gridDim.x) < tiles) {", "lane ^ 4 * (lane % 4 * 2"
LOW = "mma_m16n8k16(rest[t], low, {{b.first[t].high, b.last[t].high}});"
# What must be told of each, as a pattern.
FAULTS = {
    fault("no wait for the other blocks", WAIT): "race",
    fault("a block arrives before its threads have stored", f"end_stage() {{\n    {SYNC}", "end_stage() {"): "race",
    fault("threads do not wait for the one that waits", f"{WAIT}\n      }}\n      {SYNC}", f"{WAIT} }}"): "race",
    fault("layers run into each other", "k, below);\n    stages.end_stage();", "k, below);"): "race",
    fault("sums read too early", f"products.store(partial);\n    {SYNC}", "products.store(partial);"): "race",
    fault("sums overwritten too early", f"{IN_TILE}\n      {SYNC}", IN_TILE): "race",
    fault("a row too many", "row + r < batch)", "row + r <= batch)"): "",
    fault("a chunk too few", "(width + kChunk - 1) / kChunk", "width / kChunk", PRODUCTS): "error",
    fault("the scale of another column", f"{TO_SCALE} + r % 2)", f"{TO_SCALE} + 1 - r % 2)", PRODUCTS): "error",
    fault("no low halves of the inputs", LOW, "", PRODUCTS): "error",
    fault("an exchange read as if constant", "load_global(p); })", "load_read_only(p); })", PRODUCTS): "read-only",
    fault("a counter that is not reset", "const Tensor arrived", "static const Tensor arrived", UNIT): "race",
    fault("blocks not alive together", ".cooperative = true", ".cooperative = false", UNIT): "deadlock",
}


@pytest.fixture(scope="module")
def libraries() -> dict[Fault, Path]:
    return planted_faults.compile_all([sound(KERNEL, UNIT), *FAULTS])


check_once = check("lstm_net_step", net(2, 17, 70, 11, 9, eps=True))


def check_faults(ops: Any) -> None:
    """Two calls: the second may find what the first left behind."""
    for _ in range(2):
        check_once(ops)


def test_the_sound_kernel_passes(libraries: dict[Fault, Path]) -> None:
    kernel = sound(KERNEL, UNIT)
    assert planted_faults.noticed(libraries[kernel], kernel, check_faults) == ["", "", ""]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_planted_faults_are_noticed(libraries: dict[Fault, Path], fault: Fault) -> None:
    for what in planted_faults.noticed(libraries[fault], fault, check_faults):
        assert what
        assert re.search(FAULTS[fault], what)
