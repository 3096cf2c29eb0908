"""Compile what the host functions of the Triton kernels launch, for GPUs that need not be there: prints JSON.

`python tests/compile_triton.py sm_90 gfx942`. The host functions get fake tensors on a fake GPU, whose launches are
recorded instead of made: kernel, arguments and configuration are those that a GPU would be given. On fake tensors
nothing can be read back, so a host function that waited for the device would fail here.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

from svg_fast import triton as kernels

TARGETS = {f"sm_{arch}": GPUTarget("cuda", arch, 32) for arch in (80, 86, 89, 90, 100, 120)}
TARGETS["gfx942"] = GPUTarget("hip", "gfx942", 64)
# Relatives of sm_80 and sm_100, which are spared the minute of float32: what bfloat16's kernels compute in.
IN_BFLOAT16 = ("sm_86", "sm_89", "sm_120")
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True)
class Launch:
    """A kernel as a host function would launch it."""

    kernel: JITFunction[Any]
    arguments: dict[str, Any]
    options: dict[str, Any]
    programs: int

    def source(self) -> ASTSource:
        """With what Triton itself specialises on: None and one are constants, and multiples of 16 are known."""
        signature, constants, attributes = {}, {}, {}
        for index, (parameter, value) in enumerate(zip(self.kernel.params, self.arguments.values(), strict=True)):
            if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
                signature[parameter.name], constants[(index,)] = "constexpr", value
                continue
            signature[parameter.name] = mangle_type(value)
            at = value.storage_offset() * value.element_size() if isinstance(value, Tensor) else value
            if at % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        return ASTSource(self.kernel, signature, constants, attributes)


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    launches: list[Launch] = []

    def run(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = [parameter.name for parameter in self.params]
        given = dict(zip(names, args, strict=False)) | kwargs
        arguments = {name: given.pop(name) for name in names}
        (programs,) = grid(arguments) if callable(grid) else grid
        launches.append(Launch(self, arguments, {k: v for k, v in given.items() if v is not None}, programs))

    with patch.object(JITFunction, "run", run):
        yield launches


def launches_of(op: str, make: Callable[[], dict[str, Any]]) -> list[Launch]:
    """Of an op, given its arguments by name."""
    with FakeTensorMode(), recorded() as launches:
        kernels.host_function(op)(**make())
    return launches


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def gaussian(way: str, dtype: torch.dtype, *shape: int) -> dict[str, Any]:
    names = ["mu", "logvar", "mu_p", "logvar_p"]
    inputs: dict[str, Any] = {name: empty(*shape, dtype=dtype) for name in names}
    if way == "bwd":
        inputs |= {"dz": empty(*shape, dtype=dtype), "dkl": empty(shape[0])}
    return inputs | {"eps": None, "seed": empty(2, dtype=torch.int64)}


def batch_norm_act(way: str, dtype: torch.dtype, steps: int, *shape: int) -> dict[str, Any]:
    x, dy = (empty(*shape, dtype=dtype).to(memory_format=torch.channels_last) for _ in range(2))
    names = ["weight", "bias"]
    inputs: dict[str, Any] = {"x": x} | {name: empty(shape[1]) for name in names}
    if way == "bwd":
        inputs |= {"dy": dy, "mean": empty(steps, shape[1]), "var": empty(steps, shape[1])}
    return inputs | {"steps": steps, "activation": "leaky_relu", "negative_slope": 0.2, "eps": 1e-5}


def lstm_layer(way: str, dtype: torch.dtype, T: int, B: int, H: int) -> dict[str, Any]:
    inputs = {"h0": empty(B, H), "c0": empty(B, H), "w_hh": empty(4 * H, H, dtype=dtype)}
    if way == "fwd":
        return inputs | {"gates_x": empty(T, B, 4 * H, dtype=dtype)}
    saved = {"gates": empty(T, B, 4 * H), "y": empty(T, B, H, dtype=dtype), "c": empty(T, B, H)}
    return inputs | saved | {"dy": empty(T, B, H, dtype=dtype), "dc": None}


def lstm_step(way: str, dtype: torch.dtype, L: int, B: int, H: int) -> dict[str, Any]:
    inputs: dict[str, Any] = {"x": empty(B, H, dtype=dtype), "h": empty(L, B, H), "c": empty(L, B, H)}
    inputs |= {name: [empty(4 * H, H, dtype=dtype) for _ in range(L)] for name in ("w_ih", "w_hh")}
    return inputs | {name: [empty(4 * H, dtype=dtype) for _ in range(L)] for name in ("b_ih", "b_hh")}


# op -> its arguments at the sizes of training on Stochastic Moving MNIST with a batch of 100
OPS: dict[str, Callable[[torch.dtype], dict[str, Any]]] = {
    "gaussian_rsample_kl_fwd": lambda dtype: gaussian("fwd", dtype, 15, 1024, 128),
    "gaussian_rsample_kl_bwd": lambda dtype: gaussian("bwd", dtype, 15, 1024, 128),
    "batch_norm_act_fwd": lambda dtype: batch_norm_act("fwd", dtype, 15, 1500, 64, 32, 32),
    "batch_norm_act_bwd": lambda dtype: batch_norm_act("bwd", dtype, 15, 1500, 64, 32, 32),
    "lstm_layer_fwd": lambda dtype: lstm_layer("fwd", dtype, 2, 100, 256),
    "lstm_layer_bwd": lambda dtype: lstm_layer("bwd", dtype, 2, 100, 256),
    "lstm_step_fwd": lambda dtype: lstm_step("fwd", dtype, 1, 100, 256),
}


@dataclass
class Compiled:
    """A kernel for a target. `instructions` of the machine, those that reach memory, are NVIDIA's alone."""

    op: str
    dtype: str
    kernel: str
    target: str
    programs: int
    warps: int
    registers: int
    shared: int
    spilled: int  # bytes of a thread that lie in local memory
    instructions: dict[str, int]


def tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


def number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match is not None, f"no {pattern} in {text[:2000]}"
    return int(match[1])


def inspect_nvidia(cubin: bytes) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = tool("cuobjdump", "-res-usage", file.name), tool("nvdisasm", "-c", file.name)
    spilled = number(r"STACK:(\d+)", usage) + number(r"LOCAL:(\d+)", usage)
    memory = Counter(re.findall(r"\b((?:LDG|LDGSTS|STG|LDL|STL|ATOM|RED)\b[\w.]*)", code))
    return {"registers": number(r"REG:(\d+)", usage), "spilled": spilled, "instructions": dict(memory)}


def inspect_amd(code: str) -> dict[str, Any]:
    return {
        "registers": number(r"\.vgpr_count:\s+(\d+)", code),
        "spilled": number(r"\.private_segment_fixed_size:\s+(\d+)", code),
        "instructions": {},
    }


def inspect(op: str, dtype: torch.dtype, launch: Launch, target: str) -> Compiled:
    kernel = triton.compile(launch.source(), target=TARGETS[target], options=dict(launch.options))
    facts = inspect_nvidia(kernel.asm["cubin"]) if target.startswith("sm") else inspect_amd(kernel.asm["amdgcn"])
    return Compiled(
        op=op,
        dtype=str(dtype).removeprefix("torch."),
        kernel=launch.kernel.__name__,
        target=target,
        programs=launch.programs,
        warps=kernel.metadata.num_warps,
        shared=kernel.metadata.shared,
        **facts,
    )


def launches_for(target: str) -> Iterator[tuple[str, torch.dtype, Launch]]:
    """Of every op; each kernel once for arguments of the same types."""
    seen = set()
    for dtype in (torch.bfloat16,) if target in IN_BFLOAT16 else (torch.float32, torch.bfloat16):
        for op, make in OPS.items():
            for launch in launches_of(op, functools.partial(make, dtype)):
                key = launch.kernel.__name__, *launch.source().signature.items()
                if key not in seen:
                    seen.add(key)
                    yield op, dtype, launch


def main(targets: list[str]) -> None:
    rows = [inspect(*found, target) for target in targets for found in launches_for(target)]
    print(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main(sys.argv[1:])
