"""The compiled CUDA kernels keep to their budgets: registers, shared memory, no spills, and the instructions wanted."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import compiled_kernels
import pytest
from compiled_kernels import Kernel

import svg_fast

ROOT = Path(__file__).resolve().parents[1]
FACTS = svg_fast.backend.build_info()
NO_TOOL = compiled_kernels.missing()


@dataclass(frozen=True)
class Budget:
    """What one kernel, or all whose names begin with these words, may use and must have.

    `registers` a thread; `shared` bytes a block that are declared, without what sm_90 keeps for itself; instructions
    by their names in SASS. Of several rows for a kernel and an architecture the longest name holds.
    """

    kernel: str
    registers: int
    shared: int = 0
    instructions: tuple[str, ...] = ()
    architectures: tuple[int, ...] = (80, 90, 100)


# A row for every kernel of csrc/cuda.
_PRODUCT, _MAIL = ("HMMA", "LDSM"), ("HMMA", "LDSM", "STAS")
BUDGETS: list[Budget] = [
    Budget("lstm_cells_forward", 32),
    Budget("lstm_cells_backward", 36),
    # 64 registers of weights for each half of 256 units; 128 for the high halves of 512
    Budget("lstm_layer_forward<float, 128", 168, instructions=_PRODUCT),
    Budget("lstm_layer_forward<float, 256", 255, instructions=_PRODUCT),
    Budget("lstm_layer_forward<float, 256, svg_fast::ForwardMail>", 168, instructions=_MAIL, architectures=(90,)),
    Budget("lstm_layer_forward<float, 512", 255, instructions=_PRODUCT),
    Budget("lstm_layer_forward<svg_fast::BFloat16, 128", 136, instructions=_PRODUCT),
    Budget("lstm_layer_forward<svg_fast::BFloat16, 256", 192, instructions=_PRODUCT),
    Budget("lstm_layer_forward<svg_fast::BFloat16, 256, svg_fast::ForwardMail>", 168, 0, _MAIL, (90,)),
    Budget("lstm_layer_forward<svg_fast::BFloat16, 512", 255, instructions=_PRODUCT),
    Budget("lstm_layer_backward<float, 128", 160, instructions=_PRODUCT),
    Budget("lstm_layer_backward<float, 256", 232, instructions=_PRODUCT),
    Budget("lstm_layer_backward<float, 256, svg_fast::BackwardMail>", 200, instructions=_MAIL, architectures=(90,)),
    Budget("lstm_layer_backward<float, 512", 248, instructions=_PRODUCT),
    Budget("lstm_layer_backward<svg_fast::BFloat16, 128", 120, instructions=_PRODUCT),
    Budget("lstm_layer_backward<svg_fast::BFloat16, 256", 168, instructions=_PRODUCT),
    Budget("lstm_layer_backward<svg_fast::BFloat16, 512", 248, instructions=_PRODUCT),
    # 128 registers leave room for two blocks on a multiprocessor
    Budget("lstm_net_step<float>", 128, 10240, ("HMMA.16816.F32", "LDG.E.128.CONSTANT", "LDG.E.128.STRONG.GPU")),
    Budget("lstm_net_step<double>", 72, 2560),
]

NAMES = ("product", "spilling<100>", "for_clusters")  # of the sample below

RESERVED = 1024  # bytes of shared memory that every block of sm_90 and later has


def complaints(kernel: Kernel, budget: Budget) -> list[str]:
    """In what it is not within its budget."""
    shared = kernel.shared - (RESERVED if kernel.architecture >= 90 and kernel.shared else 0)
    return [
        *(["spills registers"] if kernel.spills() else []),
        *([f"{kernel.registers} registers"] if kernel.registers > budget.registers else []),
        *([f"{shared} bytes of shared memory"] if shared > budget.shared else []),
        *(f"no {instruction}" for instruction in budget.instructions if not kernel.count(instruction)),
    ]


def budget_of(kernel: Kernel, budgets: list[Budget]) -> Budget | None:
    fitting = [
        budget
        for budget in budgets
        if short(kernel.name).startswith(budget.kernel) and kernel.architecture in budget.architectures
    ]
    return max(fitting, key=lambda budget: len(budget.kernel), default=None)


def short(name: str) -> str:
    """Without what comes before the name and after it: "lstm_layer_forward<float, 256>"."""
    return re.sub(r"^(void )?(svg_fast::)?(\(anonymous namespace\)::)?|\(.*$", "", name)


@pytest.mark.skipif(
    not FACTS.get("cuda_architectures"), reason=f"no CUDA kernels: {FACTS.get('left_out', 'not built')}"
)
@pytest.mark.skipif(bool(NO_TOOL), reason=NO_TOOL)
def test_kernels_keep_to_their_budgets() -> None:
    kernels = compiled_kernels.read(Path(sys.modules["svg_fast._C"].__file__ or ""))
    wanted = {int(architecture) for architecture in FACTS["cuda_architectures"]}
    assert {kernel.architecture for kernel in kernels} == wanted
    wrong = []
    for kernel in kernels:
        assert kernel.is_empty() == (kernel.architecture < 90 and "Mail>" in kernel.name), kernel.name
        if kernel.is_empty():  # it needs clusters
            continue
        budget = budget_of(kernel, BUDGETS)
        found = complaints(kernel, budget) if budget else ["no budget"]
        wrong += [f"{short(kernel.name)} on sm_{kernel.architecture}: {', '.join(found)}"] if found else []
    assert not wrong, "\n".join(wrong)
    assert {budget_of(kernel, BUDGETS) for kernel in kernels} - {None} == set(BUDGETS)


SAMPLE = """
#include "primitives.h"
namespace svg_fast {
__global__ void product(const float4* x, float4* y) {
  SVG_SHARED(float[64], tile);
  const float4 v = load_read_only(x + threadIdx.x);
  store_shared(shared_address(&tile[threadIdx.x]), v.x);
  block_sync();
  const FragmentA a{{pack_half(v.x, v.y), pack_half(v.z, v.w), 0, 0}};
  FragmentC c = {};
  mma_m16n8k16(c, a, FragmentB{{a.r[0], a.r[1]}});
  y[threadIdx.x] = make_float4(c.r[0], c.r[1], c.r[2], load_shared(shared_address(&tile[63 - threadIdx.x])));
}
__global__ void for_clusters(uint32_t* y) {
#if __CUDA_ARCH__ >= 900
  *y = cluster_rank();
#endif
}
template <int kMany>
__global__ void __launch_bounds__(1024, 2) spilling(const float* x, float* y) {
  float all[kMany];
#pragma unroll
  for (int k = 0; k < kMany; ++k) all[k] = x[k * 32 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kMany; ++k) y[k * 32 + threadIdx.x] = all[k] * all[kMany - 1 - k];
}
template __global__ void spilling<100>(const float*, float*);
}
"""


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Kernel]:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    if NO_TOOL:
        pytest.skip(NO_TOOL)
    folder = tmp_path_factory.mktemp("sample")
    (folder / "sample.cu").write_text(SAMPLE)
    targets = (f"-gencode=arch=compute_{architecture},code=sm_{architecture}" for architecture in (80, 90))
    command = [nvcc, "-std=c++20", f"-I{ROOT / 'csrc' / 'cuda'}", *targets, "-shared", "-Xcompiler=-fPIC"]
    subprocess.run([*command, "sample.cu", "-o", "sample.so"], cwd=folder, check=True)
    return {(short(kernel.name), kernel.architecture): kernel for kernel in compiled_kernels.read(folder / "sample.so")}


def test_every_kernel_and_architecture_is_read(sample: dict[tuple[str, int], Kernel]) -> None:
    assert set(sample) == {(name, architecture) for name in NAMES for architecture in (80, 90)}


@pytest.mark.parametrize("architecture", [80, 90])
def test_a_kernel_within_its_budget_passes(sample: dict[tuple[str, int], Kernel], architecture: int) -> None:
    budget = Budget("product", registers=64, shared=256, instructions=("HMMA", "LDG.E.128", "STG.E.128"))
    assert complaints(sample["product", architecture], budget) == []


def test_the_longest_name_holds(sample: dict[tuple[str, int], Kernel]) -> None:
    rows = [Budget("spilling<100>", 1, architectures=(90,)), Budget("spilling", 2), Budget("product", 3)]
    chosen = {name: budget_of(sample[name], rows) for name in (("spilling<100>", 80), ("spilling<100>", 90))}
    assert chosen == {("spilling<100>", 80): rows[1], ("spilling<100>", 90): rows[0]}
    assert budget_of(sample["product", 80], rows[:2]) is None


def test_a_body_that_is_left_out_is_seen(sample: dict[tuple[str, int], Kernel]) -> None:
    empty = {name for name, kernel in sample.items() if kernel.is_empty()}
    assert empty == {("for_clusters", 80)}


@pytest.mark.parametrize("architecture", [80, 90])
def test_every_way_to_miss_a_budget_is_told(sample: dict[tuple[str, int], Kernel], architecture: int) -> None:
    product, spilling = sample["product", architecture], sample["spilling<100>", architecture]
    budget = Budget("product", registers=8, shared=255, instructions=("HMMA", "LDG.E.64"))
    registers = f"{product.registers} registers"
    assert complaints(product, budget) == [registers, "256 bytes of shared memory", "no LDG.E.64"]
    assert complaints(spilling, Budget("spilling", registers=32)) == ["spills registers"]
