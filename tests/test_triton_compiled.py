"""What the compilers make of the Triton kernels for GPUs that are not there: registers, spills, width of memory access.

Each kernel as its host function launches it (see compile_triton.py), forward and backward, float32 and bfloat16.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import svg_fast

if find_spec("triton") is None:
    pytest.skip("no Triton", allow_module_level=True)

import compile_triton
from compile_triton import Compiled, Launch, empty, gaussian, launches_of, lstm_layer, lstm_step

PACKAGES = Path(svg_fast.__file__).parents[1]
TARGETS = list(compile_triton.TARGETS)

# Registers of a thread: with 4 warps a block, 128 leave room for 4 blocks on an NVIDIA processor's 65536, 64 for 8.
REGISTERS = {
    "forward_kernel": 64,
    "backward_kernel": 64,
    "moments_kernel": 128,
    "statistics_kernel": 128,
    "normalise_kernel": 96,
    "sums_kernel": 128,
    "gradients_kernel": 64,
    "input_gradient_kernel": 128,
    "cell_kernel": 128,
    "cell_gradient_kernel": 128,
}
SHARED = 16384  # bytes of a block: several fit in any of the GPUs
ELEMENT = {"float32": 4, "bfloat16": 2}


@pytest.fixture(scope="module")
def compiled() -> list[Compiled]:
    """Of all targets, by two processes, which see no GPU: its timings would choose other configurations."""
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "TRITON_INTERPRET": "0",
        "PYTHONPATH": str(PACKAGES),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, compile_triton.__file__, *targets],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for targets in (TARGETS[:4], TARGETS[4:])
    ]
    told = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, told, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return [Compiled(**row) for output, _ in told for row in json.loads(output)]


def of(compiled: list[Compiled], kernel: str, dtype: str) -> list[Compiled]:
    rows = [row for row in compiled if (row.kernel, row.dtype) == (kernel, dtype) and row.target.startswith("sm")]
    assert rows
    return rows


def bytes_of(row: Compiled, instruction: str, width: int) -> int:
    """That a program's instructions of this width move, each executed once by every thread."""
    name = f"{instruction}.E" + (f".{width}" if width != 32 else "")
    return row.instructions.get(name, 0) * width // 8 * 32 * row.warps


def test_every_kernel_is_compiled_for_every_target(compiled: list[Compiled]) -> None:
    for target in TARGETS:
        rows = [row for row in compiled if row.target == target]
        assert {row.dtype for row in rows} >= {"bfloat16"}
        assert {row.kernel for row in rows} == set(REGISTERS)
        assert {row.op for row in rows} == set(compile_triton.OPS)


@pytest.mark.parametrize("kernel", REGISTERS)
def test_registers_and_shared_memory_stay_in_their_budgets(compiled: list[Compiled], kernel: str) -> None:
    rows = [row for row in compiled if row.kernel == kernel]
    assert [row for row in rows if row.spilled] == []
    assert [row for row in rows if row.registers > REGISTERS[kernel]] == []
    assert [row for row in rows if row.shared > SHARED] == []
    assert [
        row for row in rows if any(name.startswith(("LDL", "STL", "ATOM", "RED")) for name in row.instructions)
    ] == []


@pytest.mark.parametrize("dtype", ELEMENT)
def test_each_input_of_a_sample_and_its_kl_is_read_once(compiled: list[Compiled], dtype: str) -> None:
    """Counted in the machine's code, which has no loop: four tensors read and one written, 16 bytes at a time.

    Beside them a block reads the two words of the seed and writes its sum.
    """
    for row in of(compiled, "forward_kernel", dtype):
        block = 1024 * ELEMENT[dtype]
        assert bytes_of(row, "LDG", 128) == 4 * block
        assert bytes_of(row, "STG", 128) == block
        others = {name: n for name, n in row.instructions.items() if not name.endswith(".128")}
        assert others == {"LDG.E.64": 2, "STG.E": 1}, row


@pytest.mark.parametrize("dtype", ELEMENT)
def test_each_gradient_of_a_sample_and_its_kl_is_written_once(compiled: list[Compiled], dtype: str) -> None:
    """Five tensors read and four written; beside them the seed, and dkl of the step."""
    for row in of(compiled, "backward_kernel", dtype):
        block = 1024 * ELEMENT[dtype]
        assert bytes_of(row, "LDG", 128) == 5 * block
        assert bytes_of(row, "STG", 128) == 4 * block
        others = {name: n for name, n in row.instructions.items() if not name.endswith(".128")}
        assert others == {"LDG.E.64": 2, "LDG.E": 1}, row


@pytest.mark.parametrize("dtype", ELEMENT)
@pytest.mark.parametrize(
    ("kernel", "read", "written"),
    [("moments_kernel", 1, 0), ("sums_kernel", 2, 0), ("normalise_kernel", 1, 1), ("input_gradient_kernel", 2, 1)],
)
def test_batch_norm_act_moves_16_bytes_at_a_time(
    compiled: list[Compiled], kernel: str, read: int, written: int, dtype: str
) -> None:
    """A tile of each tensor, read once and written once, beside what there is of each channel."""
    for row in of(compiled, kernel, dtype):
        tile = 4096 * ELEMENT[dtype]
        channels = bytes_of(row, "LDG", 128) - read * tile
        assert 0 <= channels <= (0 if kernel == "moments_kernel" else 6 * 4 * 8 * 32 * row.warps), row
        assert bytes_of(row, "STG", 128) == written * tile
        assert all(name.endswith(".128") for name in row.instructions if name.startswith("LDG")), row


def launched(op: str, make: Any) -> list[tuple[str, int]]:
    return [(launch.kernel.__name__, launch.programs) for launch in launches_of(op, make)]


def test_launches_of_a_sample_and_its_kl() -> None:
    """One program a step up to 4096 elements; above, a program for 1024, whose sums are added by PyTorch."""
    for shape, programs in (((15, 100, 10), 15), ((15, 64, 64), 15), ((15, 65, 64), 15 * 5), ((3, 7, 600), 3 * 5)):
        op = "gaussian_rsample_kl_fwd"
        assert launched(op, lambda shape=shape: gaussian("fwd", torch.float32, *shape)) == [
            ("forward_kernel", programs)
        ]


def test_launches_of_the_lstm_ops() -> None:
    """One for each step of a layer, forward and backward, and one for each layer of a step."""
    for way, kernel in (("fwd", "cell_kernel"), ("bwd", "cell_gradient_kernel")):
        launches = launched(f"lstm_layer_{way}", lambda way=way: lstm_layer(way, torch.float32, 7, 100, 256))
        assert launches == [(kernel, 7 * 16)] * 7
    assert launched("lstm_step_fwd", lambda: lstm_step("fwd", torch.float32, 2, 1, 256)) == [("cell_kernel", 16)] * 2


def ones(op: str) -> dict[str, Any]:
    """Arguments of one element: Triton makes constants of sizes that are one."""
    if op.startswith("gaussian"):
        return gaussian(op[-3:], torch.float64, 1, 1, 1)
    if op.startswith("batch_norm"):
        return compile_triton.batch_norm_act(op[-3:], torch.float64, 1, 2, 1, 1, 1)
    if op.startswith("lstm_step"):
        return lstm_step("fwd", torch.float16, 1, 1, 1)
    return lstm_layer(op[-3:], torch.float64, 1, 1, 1) | ({"dc": empty(1, 1, 1)} if op.endswith("bwd") else {})


@pytest.mark.parametrize("op", compile_triton.OPS)
def test_sizes_of_one_and_other_types_compile(op: str) -> None:
    """The interpreter knows no constants of that kind, and would not tell."""
    launches: list[Launch] = launches_of(op, lambda: ones(op))
    assert launches
    for launch in launches:
        assert compile_triton.inspect(op, torch.float64, launch, "sm_90").spilled == 0
