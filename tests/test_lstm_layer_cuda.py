"""The CUDA kernels of lstm_layer, run by the emulator: numbers, orders of threads, devices, and planted faults."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import emulation
import op_suite
import planted_faults
import pytest
import torch
from planted_faults import Fault, sound
from test_fuzz import WITHOUT_AMX
from torch import Tensor

import svg_fast
from svg_fast.testing import Draw

pytestmark = pytest.mark.skipif(bool(emulation.MISSING), reason=emulation.MISSING)

NAMES = ("y", "c", "gates", "dgates_x", "dh0", "dc0", "dw_hh")
CLUSTERS, COOPERATIVE, STEP_BY_STEP = "sm_90 32", "sm_80 32", "sm_80 3"
FLOAT32 = 32 * 2.0**-24  # as in test_ops.py


def draw(T: int, B: int, H: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    normal = Draw(dtype, "cpu")
    return {
        "gates_x": normal(T, B, 4 * H),
        "h0": normal(B, H, std=0.5),
        "c0": normal(B, H),
        "w_hh": normal(4 * H, H, std=H**-0.5),
        "dy": normal(T, B, H),
        "dc": normal(T, B, H),
    }


def run(ops: Any, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Everything that the two ops return."""
    gates_x, h0, c0, w_hh, dy, dc = inputs.values()
    y, c, gates = ops.lstm_layer_fwd(gates_x, h0, c0, w_hh)
    return [y, c, gates, *ops.lstm_layer_bwd(dy, dc.to(c), gates, y, c, h0, c0, w_hh)]


def exact(inputs: dict[str, Tensor]) -> list[Tensor]:
    """In float64, by the reference."""
    with svg_fast.backend.use_backend("reference"):
        return run(torch.ops.svg_fast, {name: x.double() for name, x in inputs.items()})


def errors(got: list[Tensor], want: list[Tensor]) -> list[float]:
    """Relative to the largest element."""
    return [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(got, want, strict=True)]


def bits(tensors: list[Tensor]) -> list[bytes]:
    return [x.contiguous().view(torch.uint8).numpy().tobytes() for x in tensors]


# 128, 256 and 512 units have kernels; others are filled up with units that do nothing.
@pytest.mark.parametrize("size", [(3, 17, 128), (3, 13, 256), (2, 8, 512)], ids=str)
def test_no_further_from_float64_than_the_kernel_of_the_cpu(size: tuple[int, int, int]) -> None:
    inputs = draw(*size)
    want = exact(inputs)
    emulated, cpu = (errors(run(ops, inputs), want) for ops in (emulation.kernels(), torch.ops.svg_fast))
    for name, error, bound in list(zip(NAMES, emulated, cpu, strict=True))[:-1]:  # dw_hh is PyTorch's product
        assert error <= bound, name


@pytest.mark.parametrize("device", [CLUSTERS, COOPERATIVE])
def test_op_suite(device: str) -> None:
    """The tests that every kernel passes: values, gradients, dtypes, layouts, empty and odd sizes, wrong arguments."""
    packages, tests = Path(svg_fast.__file__).parents[1], Path(__file__).parent
    variables = {"SVG_EMULATED_DEVICE": device, "PYTHONPATH": os.pathsep.join((str(tests), str(packages)))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "emulation", *op_suite.EMULATED_ARGUMENTS],
        env=os.environ | WITHOUT_AMX | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    emulated = "lstm_layer_bwd, lstm_layer_fwd, lstm_net_step_fwd, lstm_step_fwd"
    assert emulated in done.stdout.partition("emulated: ")[2].partition("\n")[0]


def test_bfloat16_sequences_lose_less_than_their_own_rounding() -> None:
    """What is returned in bfloat16 to a unit in its last place; cell states and gates, in float32, to a tenth of it."""
    packages = Path(svg_fast.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | WITHOUT_AMX | {"PYTHONPATH": str(packages)},
        capture_output=True,
        text=True,
        check=True,
    )
    ulp = torch.finfo(torch.bfloat16).eps
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, _, _ in lines] == [*NAMES, *NAMES, *NAMES]
    for name, dtype, error in lines:
        assert dtype == ("torch.float32" if name in ("c", "gates") else "torch.bfloat16")
        assert float(error) <= (ulp / 10 if dtype == "torch.float32" else ulp), name


def print_errors_of_bfloat16() -> None:
    for size in ((6, 9, 40), (3, 8, 256), (2, 9, 512)):
        inputs = draw(*size, dtype=torch.bfloat16)
        got = run(emulation.kernels(), inputs)
        for name, x, error in zip(NAMES, got, errors(got, exact(inputs)), strict=True):
            print(name, x.dtype, error)


def test_any_order_of_threads_and_any_device_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters or a cooperative launch; one group for all sequences in turn, or one for every eight."""
    inputs = draw(3, 19, 40)
    results = []
    for device in (CLUSTERS, "sm_90 4", COOPERATIVE, "sm_80 9"):
        monkeypatch.setenv("SVG_EMULATED_DEVICE", device)
        for seed in (1, 5, 6):
            monkeypatch.setenv("SVG_EMULATED_SEED", str(seed))
            results.append(bits(run(emulation.kernels(), inputs)))
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize(
    ("device", "size"),
    [(STEP_BY_STEP, (3, 5, 40)), (CLUSTERS, (2, 3, 520)), ("sm_86 32", (2, 3, 300))],
    ids=["few multiprocessors", "many units", "little shared memory"],
)
def test_what_does_not_stay_on_chip_is_computed_step_by_step(
    device: str, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVG_EMULATED_DEVICE", device)
    inputs = draw(*size)
    assert max(errors(run(emulation.kernels(), inputs), exact(inputs))) < FLOAT32


@pytest.mark.parametrize("scale", [2.0**-60, 1e-6, 1e6, 2.0**60])
def test_gradients_of_any_size_are_as_exact(scale: float) -> None:
    """They are multiplied as pairs of halves, whose own range is 2^-24 to 2^16."""
    inputs = draw(3, 9, 40)
    inputs |= {"dy": inputs["dy"] * scale, "dc": inputs["dc"] * scale}
    assert max(errors(run(emulation.kernels(), inputs), exact(inputs))) < FLOAT32


def test_states_and_weights_of_any_size_are_as_exact() -> None:
    inputs = draw(3, 9, 40)
    rows = torch.logspace(-8, 5, 160)[:, None]
    inputs |= {"h0": inputs["h0"] * torch.logspace(-6, 5, 9)[:, None], "w_hh": inputs["w_hh"] * 1e-4 * rows}
    got, want = run(emulation.kernels(), inputs), exact(inputs)
    assert max(errors(got[:3], want[:3])) < FLOAT32


def test_not_a_number_stays_in_its_sequence() -> None:
    inputs = draw(2, 9, 40)
    inputs["h0"][3, 7] = torch.nan
    y = run(emulation.kernels(), inputs)[0]
    assert y[:, 3].isnan().all()
    assert y[:, [b for b in range(9) if b != 3]].isfinite().all()


FORWARD, BACKWARD, SHARED, PAIRS, STEPWISE = (
    f"csrc/cuda/{name}.cuh"
    for name in ("lstm_layer_forward", "lstm_layer_backward", "lstm_layer", "half_pair", "lstm_stepwise")
)
UNIT = "csrc/cuda/lstm_layer.cu"


def planted(name: str, file: str, text: str) -> Fault:
    """A fault from a piece of source in which {{this -> becomes that}}."""
    before, _, rest = text.partition("{{")
    (old, new), after = rest.partition("}}")[0].split(" -> "), rest.partition("}}")[2]
    return Fault(name, file, before + old + after, before + new + after, UNIT)


FAULTS = [
    (device, planted(*fault))
    for device, faults in {
        CLUSTERS: [
            ("another sender's mail waited for", FORWARD, "exchange.await_part(buffer, from{{ ->  ^ 1}}, times)"),
            ("no wait for the mail", SHARED, "  {{mbarrier_wait(shared_address(&arrival), times & 1); -> }}\n"),
            ("the parity of the phase before", SHARED, "(&arrival), times {{ -> + 1 }}& 1)"),
            ("armed for too few bytes", SHARED, "expect_tx(shared_address(&arrival), bytes{{ ->  - 8}})"),
            ("init not fenced", SHARED, "  {{fence_mbarrier_init(); -> }}\n"),
            ("no barrier of the cluster", SHARED, "  {{cluster_arrive();\n  cluster_wait(); -> block_sync();}}\n"),
            ("a peer forgotten", FORWARD, "int first = {{0 -> 4}}; first < kBlocks<kHidden>"),
            ("data to another peer", FORWARD, "peer_address(to, peer{{ ->  ^ 1}})"),
            ("parts to the sender's own place", BACKWARD, "parts[buffer][{{rank -> owner}}][unit"),
            ("one buffer forward", FORWARD, "int next = (received & 1){{ ^ 1 -> }};"),
            ("one buffer backward", BACKWARD, "next = {{(received & 1) ^ 1 -> 0}}, pair"),
            ("no barrier after h0", FORWARD, "p.batch, p.hidden);\n    {{block_sync(); -> }}"),
            ("the largest read too early", BACKWARD, "largest);\n  }\n  {{block_sync(); -> }}"),
            ("the product begun too early", BACKWARD, "scale.inverse);\n  }\n  {{block_sync(); -> }}"),
            ("registers of A exchanged", PAIRS, "high[k].r[r{{ ->  ^ 3}}] = pairs.high"),
            ("the low halves lost", PAIRS, "second - {{half_high(high) -> second}})"),
            ("columns of the next tile", FORWARD, "part[i][lane % 8][lane / {{8 -> 16}} * 8]"),
            ("lanes of other units swapped", FORWARD, "shuffle_xor(h, {{4 -> 8}})"),
            ("rows of a tile swapped", BACKWARD, "lane / 4 + 8 * {{ -> !}}half;\n        const float"),
            ("c of the wrong step", BACKWARD, "c_prev = cell_at(t{{ - 1 -> }})"),
        ],
        COOPERATIVE: [
            ("no wait for the flag", SHARED, "    {{wait_at_least(flag, kBlocks<kHidden> * (times + 1)); -> }}\n"),
            ("a wait for the step before", SHARED, "kBlocks<kHidden> * {{(times + 1) -> times}}"),
            ("the flag raised too early", SHARED, "uint32_t times) {\n  {{block_sync(); -> }}"),
            ("the state read while it is copied", FORWARD, "load_global(from + i));\n    }\n    {{block_sync(); -> }}"),
            ("half of the state copied", FORWARD, "i < kHalves / kPerLoad{{ ->  / 2}}"),
        ],
        STEP_BY_STEP: [
            ("c of the neighbour", STEPWISE, "lstm_cell_state(gates, p.c_prev[cell{{ ->  ^ 1}}]"),
            ("dc for the neighbour", STEPWISE, "p.dc[cell{{ ->  ^ 1}}] = d.c_prev"),
        ],
    }.items()
    for fault in faults
]


@pytest.fixture(scope="module")
def libraries() -> dict[Fault, Path]:
    return planted_faults.compile_all([sound(FORWARD, UNIT), *(fault for _, fault in FAULTS)])


def check(ops: Any) -> None:
    inputs = draw(4, 11, 136)
    assert max(errors(run(ops, inputs), exact(inputs))) < FLOAT32 / 2


@pytest.mark.parametrize("device", [CLUSTERS, COOPERATIVE, STEP_BY_STEP])
def test_the_sound_kernel_passes(libraries: dict[Fault, Path], device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVG_EMULATED_DEVICE", device)
    kernel = sound(FORWARD, UNIT)
    assert planted_faults.noticed(libraries[kernel], kernel, check) == ["", "", ""]


@pytest.mark.parametrize(("device", "fault"), FAULTS, ids=[fault.name for _, fault in FAULTS])
def test_planted_faults_are_noticed(
    libraries: dict[Fault, Path], device: str, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SVG_EMULATED_DEVICE", device)
    for what in planted_faults.noticed(libraries[fault], fault, check):
        assert re.search("race|deadlock|mbarrier|AssertionError", what), what


if __name__ == "__main__":
    print_errors_of_bfloat16()
