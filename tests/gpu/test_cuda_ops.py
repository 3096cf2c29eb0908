"""Every op on a GPU, over the table of cases: served by a kernel, right, the same each time, with the CPU's noise."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from device_checks import no_synchronisation, noise, tf32
from test_ops import DIFFERENTIABLE, FLOAT32_SEEDED, call, compare_with_float32, compare_with_float64, evaluate

from svg_fast import backend, ops
from svg_fast.testing import CASES, Case, select

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

CUDA = torch.device("cuda")
# Convolutions are cuDNN's there, clips are made on the CPU, nothing differentiates a rollout's step, and frames are
# scored by PyTorch's operations.
LEFT_TO_PYTORCH = ["frame_conv", "frame_scores", "moving_mnist", "lstm_step_bwd"]
if not backend.build_info().get("cuda_architectures"):
    LEFT_TO_PYTORCH.append("lstm_net_step")  # without nvcc
SERVED = [op for op in backend.ops() if not op.startswith(tuple(LEFT_TO_PYTORCH))]
ORDINARY = [case for case in DIFFERENTIABLE if case.situation.startswith(("ordinary", "odd sizes", "large"))]


@pytest.fixture(autouse=True)
def float32_is_float32() -> Iterator[None]:
    with tf32(False):
        yield


@pytest.mark.parametrize("op", SERVED)
def test_a_kernel_serves(op: str) -> None:
    assert backend.served_by(op, CUDA) != "reference"


# What a convolution's error may be is cuDNN's affair.
@pytest.mark.parametrize("case", [case for case in CASES if case.op != "frame_conv"], ids=str)
def test_float32_against_float64(case: Case) -> None:
    compare_with_float64(case, torch.float32, "cuda")


@pytest.mark.parametrize("case", [case for case in ORDINARY if "large" not in case.situation], ids=str)
def test_float64(case: Case) -> None:
    compare_with_float64(case, torch.float64, "cuda")


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(case, torch.bfloat16) for case in DIFFERENTIABLE + select("lstm_net_step")]
    + [(case, torch.float16) for case in ORDINARY],
    ids=str,
)
def test_16_bits_are_float32_rounded(case: Case, dtype: torch.dtype) -> None:
    compiled = bool(backend.build_info().get("cuda_architectures"))
    sends_h_in_11_bits = compiled and case.op == "lstm_layer" and dtype == torch.bfloat16
    compare_with_float32(case, dtype, "cuda", rounded_between=sends_h_in_11_bits)


@pytest.mark.parametrize("case", [case for case in ORDINARY if case.situation.startswith("large")], ids=str)
def test_every_run_gives_the_same_bits(case: Case) -> None:
    runs = [evaluate(call(case.op), case.inputs(torch.float32, CUDA)) for _ in range(3)]
    for other in runs[1:]:
        for a, b in zip(other, runs[0], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("case", ORDINARY, ids=str)
def test_the_host_does_not_wait(case: Case) -> None:
    inputs = case.inputs(torch.float32, CUDA)
    outputs = call(case.op)(**inputs)  # kernels are compiled and tuned at the first call
    with no_synchronisation(CUDA):
        outputs = call(case.op)(**inputs)
    assert all(y.device.type == "cuda" for y in outputs)


@pytest.mark.parametrize("op", ["lstm_layer_fwd", "gaussian_kl_fwd", "batch_norm_act_fwd"])
def test_a_tensor_of_the_cpu_among_those_of_a_gpu_is_refused(op: str) -> None:
    name = op.removesuffix("_fwd")
    here, there = (list(select(name)[0].inputs(device=device).values()) for device in ("cpu", CUDA))
    arguments = {"lstm_layer": 4, "gaussian_kl": 4, "batch_norm_act": 3}[name]
    mixed = [there[0], *here[1:arguments], *((3, "tanh", 0.2, 1e-5) if name == "batch_norm_act" else ())]
    with pytest.raises((RuntimeError, ValueError), match="must be on cuda"):
        getattr(torch.ops.svg_fast, op)(*mixed)


@pytest.mark.parametrize("shape", [(1,), (1025,), (14, 100, 10), (3, 7, 1153)], ids=str)
def test_noise_is_the_cpus(shape: tuple[int, ...]) -> None:
    here, there = noise(torch.device("cpu"), torch.float32, *shape), noise(CUDA, torch.float32, *shape)
    assert (there.cpu() - here).abs().max() <= FLOAT32_SEEDED * here.abs().max()


@pytest.mark.parametrize("hidden", [1, 16, 64, 128, 200, 256, 512])
@pytest.mark.parametrize("batch", [1, 7, 128, 300])
def test_an_lstm_layer_of_any_size(hidden: int, batch: int) -> None:
    """Also where the groups of blocks take several turns, and where units do not fill the last block."""

    def layer(device: torch.device) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        shapes = ((9, batch, 4 * hidden), (batch, hidden), (batch, hidden), (4 * hidden, hidden))
        tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        tensors[3] *= hidden**-0.5
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        leaves = [tensor.to(device, dtype).requires_grad_() for tensor in tensors]
        y, c = ops.lstm_layer(*leaves)
        gradients = torch.autograd.grad((y.square().sum() + c.square().sum()), leaves)
        return [x.detach().cpu().double() for x in (y, c, *gradients)]

    for got, want in zip(layer(CUDA), layer(torch.device("cpu")), strict=True):
        assert (got - want).abs().max() <= 32 * 2.0**-24 * max(1.0, (batch / 64) ** 0.5) * want.abs().max()
