"""BatchNorm over the images of several processes is BatchNorm over all of them in one.

The judges are stock torch.nn in one process with the whole batch, and the published loop in one. `nn.SyncBatchNorm` is
none: it refuses tensors on the CPU.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import op_oracles
import pytest
import torch
import torch.distributed as dist
from processes import in_processes
from test_batch_norm_act import EPSILON
from test_ops import FLOAT32, assert_close
from test_parity import SMALL, clip, free_biases, pair, relative
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from svg_fast import SVG, SVGConfig, ops
from svg_fast.models import chunks
from svg_fast.models.frame_network import synchronise_norms
from svg_fast.ops.synchronised_norm import synchronised_batch_norm_act
from svg_fast.testing import Draw, Layout, channels_last, contiguous

G = 3
SHARES = [(3, 1), (1, 3, 2)]  # images of each process


def share(whole: Tensor, counts: Sequence[int], rank: int, steps: int = G) -> Tensor:
    """A process's images of every step: (G * N, ...) -> (G * n, ...)."""
    return whole.unflatten(0, (steps, -1)).split(list(counts), 1)[rank].flatten(0, 1)


def everyone() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group


class Part(NamedTuple):
    """What a process sees."""

    y: Tensor
    mean: Tensor
    var: Tensor
    n_values: Tensor
    dx: Tensor
    dweight: Tensor
    dbias: Tensor


def run(inputs: dict[str, Any], dy: Tensor, counts: Sequence[int], layout: Layout = contiguous) -> Part:
    rank = dist.get_rank()
    x = layout(share(inputs["x"], counts, rank)).requires_grad_()
    weight, bias = (inputs[name].requires_grad_() for name in ("weight", "bias"))
    outputs = synchronised_batch_norm_act(**inputs | {"x": x}, steps=G, group=everyone())
    dy = share(dy, counts, rank)
    part = Part(*(y.detach() for y in outputs), *torch.autograd.grad(outputs[0], (x, weight, bias), dy))
    assert part.y.stride() == part.dx.stride() == torch.empty_like(x).stride()  # x itself may be spaced
    return part


def check(parts: list[Part], inputs: dict[str, Any], dy: Tensor, bound: float) -> None:
    """The parts of all processes, put together, against stock torch.nn with the whole batch in float64."""
    whole: dict[str, Any] = {
        name: value.double() if isinstance(value, Tensor) else value for name, value in inputs.items()
    }
    leaves = [whole[name].requires_grad_() for name in ("x", "weight", "bias")]
    y, *statistics = op_oracles.batch_norm_act(**whole, steps=G)
    want = [y.detach(), *statistics, *torch.autograd.grad(y, leaves, dy.double())]
    first = parts[0]
    assert first.n_values == y.numel() // first.mean.numel()
    for part in parts[1:]:
        assert all(map(torch.equal, part[1:4], first[1:4]))  # the same bits everywhere
    y, dx = (
        torch.cat([getattr(part, name).unflatten(0, (G, -1)) for part in parts], 1).flatten(0, 1)
        for name in ("y", "dx")
    )
    dweight, dbias = (sum(getattr(part, name).double() for part in parts) for name in ("dweight", "dbias"))
    assert_close([y, first.mean, first.var, dx, dweight, dbias], want, bound)


def draw_inputs(draw: Draw, images: int, size: tuple[int, int] = (5, 3), channels: int = 8) -> dict[str, Any]:
    x, weight, bias = draw(G * images, channels, *size, mean=0.3, std=1.5), draw(channels, mean=1.0), draw(channels)
    return {"x": x, "weight": weight, "bias": bias}


@pytest.mark.parametrize("activation", ["leaky_relu", "tanh", "identity"])
@pytest.mark.parametrize("layout", [contiguous, channels_last])
@pytest.mark.parametrize("counts", SHARES, ids=str)
def test_processes_with_unequal_shares_are_one(counts: tuple[int, ...], layout: Layout, activation: str) -> None:
    draw = Draw(torch.float64, "cpu")
    inputs = draw_inputs(draw, sum(counts)) | {"activation": activation, "negative_slope": 0.1, "eps": 1e-3}
    dy = draw(*inputs["x"].shape)
    check(in_processes(len(counts), run, inputs, dy, counts, layout), inputs, dy, 1e-12)


@pytest.mark.parametrize("counts", [(1, 1), (1, 2)], ids=str)
def test_a_process_may_have_one_value_of_a_channel(counts: tuple[int, ...]) -> None:
    draw = Draw(torch.float64, "cpu")
    inputs = draw_inputs(draw, sum(counts), (1, 1)) | {"activation": "tanh"}
    dy = draw(*inputs["x"].shape)
    check(in_processes(len(counts), run, inputs, dy, counts), inputs, dy, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_types_compute_in_float32(dtype: torch.dtype) -> None:
    """Parameters stay float32, as under autocast."""
    draw, counts = Draw(torch.float32, "cpu"), (3, 1)
    inputs = draw_inputs(draw, sum(counts))
    inputs["x"] = inputs["x"].to(dtype)
    dy = draw(*inputs["x"].shape).to(dtype)
    parts = in_processes(2, run, inputs, dy, counts)
    check(parts, inputs, dy, max(2 * torch.finfo(dtype).eps, FLOAT32))
    for part in parts:
        assert [value.dtype for value in part] == [dtype, *[torch.float32] * 3, dtype, *[torch.float32] * 2]


def test_statistics_are_float64s_rounded() -> None:
    """Standard deviations of about one at a hundred thousand: to a few roundings, as of `batch_norm_act`."""
    draw, counts = Draw(torch.float32, "cpu"), (3, 1)
    inputs = draw_inputs(draw, sum(counts), (16, 16))
    inputs["x"] += 100_000.0
    part, _ = in_processes(2, run, inputs, draw(*inputs["x"].shape), counts)
    x = inputs["x"].double().unflatten(0, (G, -1))
    assert relative(part.mean.double(), x.mean((1, 3, 4))) < 2 * EPSILON
    assert relative(part.var.double(), x.var((1, 3, 4), correction=0)) < 4 * EPSILON


def test_one_process_is_batch_norm_act() -> None:
    draw = Draw(torch.float32, "cpu", channels_last)
    inputs = draw_inputs(draw, 4)
    dy = draw(*inputs["x"].shape)
    (part,) = in_processes(1, run, inputs, dy, (4,), channels_last)
    leaves = [inputs[name].requires_grad_() for name in ("x", "weight", "bias")]
    y, mean, var = ops.batch_norm_act(**inputs, steps=G)
    want = [y.detach(), mean, var, *torch.autograd.grad(y, leaves, dy)]
    assert_close([*part[:3], *part[4:]], want, FLOAT32)


def test_one_value_of_a_channel_in_all_has_no_variance() -> None:
    inputs = draw_inputs(Draw(torch.float32, "cpu"), 1, (1, 1))
    with pytest.raises(RuntimeError, match="ValueError: batch statistics need more than one value per channel"):
        in_processes(1, run, inputs, inputs["x"], (1,))


def test_no_process_may_come_without_images() -> None:
    inputs = draw_inputs(Draw(torch.float32, "cpu"), 2)
    with pytest.raises(RuntimeError, match="ValueError: every process must hold some images of each step"):
        in_processes(2, run, inputs, inputs["x"], (2, 0))


class Step(NamedTuple):
    """A training step's loss, this process's part of it; averaged gradients, and buffers after it."""

    loss: Tensor
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def train_twice(config: SVGConfig, counts: Sequence[int], images_at_once: int) -> Step:
    """Two steps on the same clips; DistributedDataParallel orders its own collectives anew after the first."""
    chunks._CPU_ACTIVATION_BYTES = images_at_once * chunks.activation_bytes(config, 8)
    rank, n_clips = dist.get_rank(), sum(counts)
    model, _ = pair(config)
    synchronise_norms(model, everyone())
    parallel = DistributedDataParallel(model)
    frames, eps, _ = clip(config, batch=n_clips)
    frames, eps = frames.split(list(counts))[rank], eps.split(list(counts), 1)[rank]
    for _ in range(2):
        model.zero_grad()
        loss = parallel(frames, eps).loss * (len(counts) * counts[rank] / n_clips)
        loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return Step(loss.detach(), gradients, dict(model.named_buffers()))


@pytest.mark.parametrize(
    ("counts", "change", "images_at_once"),
    [
        ((2, 1), {}, 1000),
        ((1, 3, 2), {}, 1000),
        ((1, 3), {}, 4),  # by itself, the first process would take four steps at once, the second one
        ((2, 1), {"backbone": "vgg"}, 1000),
        ((2, 1), {"recompute": True, "time_chunk": 1}, 1000),
        ((2, 1), {"backbone": "vgg", "recompute": True, "last_frame_skip": True, "variant": "fp"}, 12),
    ],
    ids=str,
)
def test_training_over_processes_is_training_in_one(
    counts: tuple[int, ...], change: dict[str, Any], images_at_once: int
) -> None:
    config = replace(SMALL, **change)
    steps = in_processes(len(counts), train_twice, config, counts, images_at_once)
    _, oracle = pair(config)
    frames, eps, _ = clip(config, batch=sum(counts))
    for _ in range(2):
        oracle.zero_grad()
        want = oracle(frames, eps)
        want.loss.backward()

    loss = torch.stack([step.loss for step in steps]).mean()
    assert relative(loss, want.loss) < 1e-10
    for step in steps:
        assert all(torch.equal(buffer, step.buffers[name]) for name, buffer in steps[0].buffers.items())
        compare_gradients(step.gradients, oracle)
        for name, buffer in oracle.named_buffers():
            assert relative(step.buffers[name].double(), buffer.double()) < 1e-10, name


def compare_gradients(got: dict[str, Tensor], oracle: torch.nn.Module) -> None:
    want = {name: parameter.grad for name, parameter in oracle.named_parameters() if parameter.grad is not None}
    assert got.keys() == want.keys()
    free = free_biases(oracle)
    for name, gradient in got.items():
        if name in free:  # mathematically zero
            assert gradient.abs().max() < 1e-10 * want[name.removesuffix("bias") + "weight"].abs().max(), name
        else:
            assert relative(gradient, want[name]) < 1e-10, name


def autocast_losses(frames: Tensor, eps: Tensor) -> tuple[float, bool]:
    """The loss of two processes' clips, and whether every gradient is finite."""
    rank = dist.get_rank()
    model = pair(SMALL, torch.float32)[0]
    synchronise_norms(model, everyone())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(frames[2 * rank :][:2], eps[:, 2 * rank :][:, :2]).loss
    loss.backward()
    return loss.item(), all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_bf16_autocast_and_uint8_frames() -> None:
    frames, eps, _ = clip(SMALL, batch=4)
    frames, eps = (255 * frames).to(torch.uint8), eps.float()
    results = in_processes(2, autocast_losses, frames, eps)
    want = pair(SMALL)[1]((frames / 255).double(), eps.double()).loss.item()
    assert sum(loss for loss, _ in results) / 2 == pytest.approx(want, rel=2e-2)
    assert all(finite for _, finite in results)


def alone(frames: Tensor) -> list[Tensor] | None:
    """What the first process does by itself, between two steps of both; the other would wait, or be waited for."""
    model = SVG(SMALL)
    synchronise_norms(model, everyone())
    model(frames).loss.backward()
    results = None
    if dist.get_rank() == 0:
        with torch.no_grad():
            prediction = model(frames, seed=torch.tensor([0, 0])).prediction
        results = [prediction, model.sample(frames[:, :2], 2, seed=0)]
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            other(frames).loss.backward()
    model(frames).loss.backward()
    synchronise_norms(model, None)
    if dist.get_rank() == 0:
        model(frames).loss.backward()
    return results


def test_a_process_samples_evaluates_and_copies_alone() -> None:
    frames = clip(SMALL, 3)[0].float()
    results, _ = in_processes(2, alone, frames, limit=20.0)
    assert results is not None
    assert all(tensor.isfinite().all() for tensor in results)
