"""Which kernel serves which op, and forcing the reference."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from svg_fast import backend, ops

OP = "gaussian_rsample_fwd"
ZEROS, SEVEN = torch.zeros(3), torch.full((3,), 7.0)


@pytest.fixture
def kernel() -> Iterator[None]:
    """A CPU kernel whose result is recognisable, attached as a compiled one would be."""
    library = torch.library.Library("svg_fast", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says that it replaces a kernel, where one was loaded
        library.impl(OP, lambda mu, logvar, eps, seed: torch.full_like(mu, 7.0), "CPU")
    yield
    library._destroy()


def sample() -> torch.Tensor:
    return ops.gaussian_rsample(ZEROS, ZEROS, eps=ZEROS)


def test_ops_are_the_declared_ones() -> None:
    names = ("batch_norm_act", "gaussian_kl", "gaussian_rsample", "gaussian_rsample_kl", "lstm_layer", "lstm_step")
    differentiable = [f"{name}_{way}" for name in names for way in ("bwd", "fwd")]
    convolution = [f"frame_conv_{part}" for part in ("bwd", "fwd", "pack")]
    without_gradient = ["frame_scores_fwd", "lstm_net_step_fwd", "moving_mnist_clips"]
    assert backend.ops() == sorted([*differentiable, *convolution, *without_gradient])


def test_table_has_every_op_on_cpu_and_cuda() -> None:
    table = backend.table()
    assert list(table) == backend.ops()
    assert all(set(row) == {"cpu", "cuda"} for row in table.values())
    assert {served for row in table.values() for served in row.values()} <= {"kernel", "reference"}


def test_kernels_serve_every_op_where_they_could_be_built() -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler: the references serve")
    assert [op for op in backend.ops() if backend.served_by(op) != "kernel"] == []


def test_kernels_serve_a_gpu_where_they_could_be_built() -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc: Triton and PyTorch serve")
    assert backend.build_info()["cuda_architectures"], backend.build_info()["left_out"]
    left_to_pytorch = ("frame_conv", "frame_scores", "lstm_step_bwd", "moving_mnist")
    assert [
        op for op in backend.ops() if backend.served_by(op, "cuda") != "kernel" and not op.startswith(left_to_pytorch)
    ] == []


@pytest.mark.usefixtures("kernel")
def test_an_attached_kernel_serves_its_device_only() -> None:
    cuda = backend.served_by("gaussian_kl_bwd", "cuda")
    assert backend.served_by(OP) == backend.served_by(OP, torch.device("cpu")) == "kernel"
    assert backend.table()[OP]["cpu"] == "kernel"
    assert backend.served_by("gaussian_kl_bwd", "cuda:0") == cuda
    assert torch.equal(sample(), SEVEN)


@pytest.mark.usefixtures("kernel")
def test_use_backend_forces_the_reference_and_gives_the_kernel_back() -> None:
    with backend.use_backend("reference"):
        assert backend.served_by(OP) == "reference"
        assert {served for row in backend.table().values() for served in row.values()} == {"reference"}
        assert torch.equal(sample(), ZEROS)
        with backend.use_backend("reference"):
            assert torch.equal(sample(), ZEROS)
        assert backend.served_by(OP) == "reference"
        assert torch.equal(sample(), ZEROS)
    assert backend.served_by(OP) == "kernel"
    assert torch.equal(sample(), SEVEN)


@pytest.mark.usefixtures("kernel")
def test_an_error_in_the_block_gives_the_kernel_back() -> None:
    def fail() -> None:
        with backend.use_backend("reference"):
            raise KeyError(OP)

    with pytest.raises(KeyError):
        fail()
    assert backend.served_by(OP) == "kernel"
    assert torch.equal(sample(), SEVEN)


@pytest.mark.usefixtures("kernel")
def test_forcing_the_reference_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with backend.use_backend("reference"):
            sample()


def test_gradients_flow_inside_the_block() -> None:
    mu = torch.zeros(3, requires_grad=True)
    with backend.use_backend("reference"):
        ops.gaussian_rsample(mu, ZEROS, seed=0).sum().backward()
    assert mu.grad is not None
    assert torch.equal(mu.grad, torch.ones(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: backend.served_by("lstm"), "unknown op 'lstm'; the ops are batch_norm_act_bwd, "),
        (lambda: backend.use_backend("triton").__enter__(), "backend must be \"reference\", got 'triton'"),  # type: ignore[arg-type]
    ],
)
def test_wrong_use(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"unknown op|backend must") as caught:
        call()
    assert message in str(caught.value)
