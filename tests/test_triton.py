"""The Triton kernels: where they serve, and what they compute, as Triton's interpreter runs them on the CPU."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import svg_fast
from svg_fast import backend, ops, triton

PACKAGES = Path(svg_fast.__file__).parents[1]
HERE = Path(__file__).parent
WITH_TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")

# A program takes the interpreter some 20 ms, however large it is: of the op tests those that ask each thing once.
SELECTED = [
    "values_and_gradients and (float64 or ordinary or odd or seed)",
    "bfloat16_is_float32_rounded and ordinary",
    "cotangents and ordinary",
    "draws_the_noise",
    "documented_mapping",
    "published",
    "mixed_types and float64",
    "refuse and not Long",  # C++ has other names for dtypes
    "empty_steps",
    "another_dtype and (dtype0 or dtype3)",
    "nan_and_infinity and inf-channels_last",
    "sees_the_signs and channels_last",
    "constant_has",
    "check_what",
    "interpreted_ops",
]
LEFT_OUT = [
    *("frame_conv", "running_statistics"),  # other ops
    "large",  # minutes: interpreted_ops.py has many blocks of small ones
    *("test_ops and gradcheck", "opcheck", "compile"),  # as in op_suite.py
]


def start(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": f"{PACKAGES}:{HERE}"} | variables
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@WITH_TRITON
def test_ops_are_right_in_the_interpreter() -> None:
    """In two processes."""
    chosen = f"({' or '.join(f'({name})' for name in SELECTED)}) and not ({' or '.join(LEFT_OUT)})"
    pytest_command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "interpreted", "-k", chosen)
    groups = ("test_ops",), ("test_noise", "test_gaussian", "test_batch_norm_act", "interpreted_ops")
    paths = ([str(HERE / f"{name}.py") for name in names] for names in groups)
    processes = [start(*pytest_command, *files, TRITON_INTERPRET="1") for files in paths]
    told = [process.communicate() for process in processes]
    for process, (output, errors) in zip(processes, told, strict=True):
        assert process.returncode == 0, output[-5000:] + errors[-2000:]


@WITH_TRITON
@pytest.mark.parametrize("op", triton.OPS)
def test_every_op_is_served_on_a_gpu(op: str) -> None:
    assert backend.served_by(op, "cuda") == "kernel"
    with backend.use_backend("reference"):
        assert backend.served_by(op, "cuda") == "reference"
    assert backend.served_by(op, "cuda") == "kernel"


@WITH_TRITON
def test_an_import_leaves_triton_alone_and_compiled_kernels_in_place() -> None:
    script = """
import sys, torch
has = torch._C._dispatch_has_kernel_for_dispatch_key
compiled = [f"svg_fast::{op}" for op in ("gaussian_kl_fwd", "batch_norm_act_fwd")]
torch._C._dispatch_has_kernel_for_dispatch_key = lambda op, key: (key == "CUDA" and op in compiled) or has(op, key)
import svg_fast
print("triton" in sys.modules, [op for op in svg_fast.triton.OPS if not has(f"svg_fast::{op}", "CUDA")])
"""
    output, errors = start("-c", script).communicate()
    assert output.strip() == "False ['gaussian_kl_fwd', 'batch_norm_act_fwd']", errors


@pytest.mark.parametrize("gpu", [True, False])
def test_a_gpu_without_triton_is_told_once(
    gpu: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    with caplog.at_level(logging.WARNING, "svg_fast"):
        triton.attach()
    sentence = "triton is not installed: the slower references serve on the GPU what nothing else does"
    assert caplog.messages == [sentence] * gpu


X = torch.zeros(4, 3, 2, 2)
CPU_TENSORS = {
    "gaussian_kl_fwd": (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), None, None),
    "gaussian_rsample_bwd": (torch.zeros(2), torch.zeros(2), torch.zeros(2), None),
    "batch_norm_act_fwd": (X, torch.ones(3), torch.zeros(3), 2, "tanh", 0.2, 1e-5),
    "lstm_layer_fwd": (torch.zeros(2, 3, 8), torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(8, 2)),
}


@WITH_TRITON
@pytest.mark.parametrize("op", CPU_TENSORS)
def test_tensors_on_the_cpu_are_refused(op: str) -> None:
    with pytest.raises(ValueError, match="must be on a cuda device, where the Triton kernels run, got cpu"):
        triton.kernel(op)(*CPU_TENSORS[op])


@WITH_TRITON
def test_tensors_on_two_devices_are_refused() -> None:
    with FakeTensorMode():
        x, y = torch.empty(2, 3, 4, device="cuda"), torch.empty(2, 3, 4)
        with pytest.raises(ValueError, match="logvar must be on cuda:0 like the first argument, got cpu"):
            triton.host_function("gaussian_kl_fwd")(x, y, None, None)


@WITH_TRITON
@pytest.mark.parametrize("gpu", [True, False])
def test_configurations_are_measured_where_there_is_a_gpu(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton import Config, jit

    from svg_fast.triton.launch import tuned

    def kernel(n: int, BLOCK: int) -> None:
        pass

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    configs = [Config({"BLOCK": block}) for block in (1, 2)]
    assert tuned(*configs, key=["n"])(jit(kernel)).configs == configs[: 2 if gpu else 1]


def test_shapes_on_a_gpu_are_found_without_one() -> None:
    with FakeTensorMode():
        mu = torch.empty(5, 4, 10, device="cuda", dtype=torch.bfloat16)
        z, kl = ops.gaussian_rsample_kl(mu, mu, seed=torch.empty(2, device="cuda", dtype=torch.int64))
    assert (z.shape, z.dtype, z.device) == (mu.shape, torch.bfloat16, mu.device)
    assert (kl.shape, kl.dtype) == ((5,), torch.float32)
