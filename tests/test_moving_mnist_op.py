"""Moving MNIST's compiled kernel against the reference, bit for bit, and what the op says of wrong arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from svg_fast import backend, ops
from svg_fast.data.velocity import MOTIONS, Motion, velocity_table

# test_backend.py fails where the kernel could have been built and does not serve
needs_kernel = pytest.mark.skipif(backend.served_by("moving_mnist_clips") != "kernel", reason="no compiled kernel")
NAMES = ("frames", "positions", "velocities", "hits", "chosen")
INDICES = [*range(20), 2**32 - 1, 2**32, 2**40 + 3, 2**63 - 1]


def images(n: int = 10) -> Tensor:
    """Noise without a margin: no two alike, and most overlaps saturate somewhere."""
    return torch.randint(0, 256, (n, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def arguments(motion: Motion = "uniform", **changes: Any) -> dict[str, Any]:
    bounds, velocities = velocity_table(motion)
    numbers = {"seed": 0, "n_frames": 15, "num_digits": 2, "image_size": 64}
    tensors = {"index": torch.tensor(INDICES), "digits": images(), "bounds": bounds, "velocities": velocities}
    return tensors | numbers | changes


def call_operator(**inputs: Any) -> tuple[Tensor, ...]:
    """The operator itself, past the checks of the public function."""
    return torch.ops.svg_fast.moving_mnist_clips(*inputs.values())


def assert_kernel_is_reference(inputs: dict[str, Any]) -> None:
    got = ops.moving_mnist_clips(**inputs)
    with backend.use_backend("reference"):
        want = ops.moving_mnist_clips(**inputs)
    for name, a, b in zip(NAMES, got, want, strict=True):
        assert a.dtype == b.dtype, name
        assert a.is_contiguous(), name
        assert b.is_contiguous(), name
        assert torch.equal(a, b), name


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("num_digits", [1, 2, 3])
@pytest.mark.parametrize("image_size", [33, 34, 47, 64, 100])
@pytest.mark.parametrize(("n_frames", "seed"), [(1, 0), (4, 2**63 - 1), (15, 2**63), (40, 2**64 - 1)])
def test_kernel_is_the_reference(motion: Motion, num_digits: int, image_size: int, n_frames: int, seed: int) -> None:
    numbers = {"num_digits": num_digits, "image_size": image_size, "n_frames": n_frames, "seed": seed}
    assert_kernel_is_reference(arguments(motion, **numbers))


def test_kernel_reads_tensors_that_are_not_contiguous() -> None:
    inputs = arguments()
    digits = images().transpose(1, 2)
    bounds, velocities = (inputs[name].t().contiguous().t() for name in ("bounds", "velocities"))
    index = torch.arange(40)[::2]
    assert_kernel_is_reference(arguments(index=index, digits=digits, bounds=bounds, velocities=velocities))


@pytest.mark.parametrize("motion", MOTIONS)
def test_one_image_and_an_empty_batch(motion: Motion) -> None:
    assert_kernel_is_reference(arguments(motion, digits=images(1)))
    assert_kernel_is_reference(arguments(motion, index=torch.zeros(0, dtype=torch.int64)))


def test_clips_do_not_depend_on_the_number_of_threads() -> None:
    inputs = arguments(index=torch.arange(300))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = ops.moving_mnist_clips(**inputs)
        torch.set_num_threads(2)
        got = ops.moving_mnist_clips(**inputs)
    finally:
        torch.set_num_threads(threads)
    for name, a, b in zip(NAMES, got, want, strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("motion", ["uniform", "deterministic"])
def test_opcheck(motion: Motion) -> None:
    operator = torch.ops.svg_fast.moving_mnist_clips.default
    torch.library.opcheck(operator, tuple(arguments(motion).values()))


INT = torch.int64
WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"index": torch.zeros(2, 2, dtype=INT)}, ValueError, "index must have 1 dimensions"),
    ({"index": torch.zeros(2)}, TypeError, "index must be "),
    ({"digits": torch.zeros(4, 28, 28, dtype=torch.uint8)}, ValueError, "digits must have shape [4, 32, 32], got ["),
    ({"digits": torch.zeros(4, 32, 32)}, TypeError, "digits must be "),
    ({"digits": torch.zeros((), dtype=torch.uint8)}, ValueError, "digits must have "),
    ({"digits": images(0)}, ValueError, "at least 1, got 0"),
    ({"bounds": torch.zeros(81, dtype=INT)}, ValueError, "bounds must have 2 dimensions"),
    ({"bounds": torch.full((2, 81), 2**32)}, ValueError, "bounds must have 1 or 9 rows, got 2"),
    ({"bounds": torch.full((9, 80), 2**32)}, ValueError, "velocities must have shape [80, 2], got [81, 2]"),
    ({"bounds": torch.full((9, 81), 2.0**32)}, TypeError, "bounds must be "),
    ({"velocities": torch.zeros(81, 3, dtype=INT)}, ValueError, "velocities must have shape [81, 2], got [81, 3]"),
    ({"velocities": torch.zeros(81, 2)}, TypeError, "velocities must be "),
    ({"n_frames": 0}, ValueError, "n_frames"),
    ({"num_digits": -1}, ValueError, "num_digits"),
    ({"image_size": 32}, ValueError, "image_size must be "),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG)
def test_wrong_arguments_are_told(wrong: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        ops.moving_mnist_clips(**arguments(**wrong))
    assert message in str(caught.value)


@needs_kernel
@pytest.mark.parametrize(("wrong", "message"), [(wrong, message) for wrong, _, message in WRONG])
def test_the_kernel_itself_tells_of_wrong_arguments(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        call_operator(**arguments(**wrong))
    assert message in str(caught.value)


@needs_kernel
def test_the_kernel_itself_tells_of_words_without_a_velocity() -> None:
    with pytest.raises(RuntimeError, match=r"must ascend from 0 or more to 2\*\*32, got 7 to 7 in row 0"):
        call_operator(**arguments(bounds=torch.full((9, 81), 7)))


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_outside_is_told(seed: int) -> None:
    with pytest.raises(ValueError, match=rf"seed must be in \[0, 2\*\*64\), got {seed}"):
        ops.moving_mnist_clips(**arguments(seed=seed))


def test_clips_that_no_memory_holds_are_told() -> None:
    with pytest.raises(ValueError, match="the clips must fit into memory, got n_frames=1099511627776, num_digits=2"):
        ops.moving_mnist_clips(**arguments(n_frames=2**40))


def test_a_number_that_is_no_int_is_told() -> None:
    with pytest.raises(TypeError, match="image_size must be an int, got float"):
        ops.moving_mnist_clips(**arguments(image_size=64.0))


def test_tensor_on_another_device_is_told() -> None:
    with pytest.raises(ValueError, match="digits must be on cpu like the first argument, got meta"):
        ops.moving_mnist_clips(**arguments(digits=images().to("meta")))
