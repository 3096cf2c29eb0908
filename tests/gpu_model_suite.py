"""The training step traced on fake CUDA tensors; `test_gpu_model.py` runs this with a stub of CUDA in the process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from watch import CUDA, PRODUCTS, Count, Stall, fake_cuda, make_frames, make_step, watch_step

from svg_fast import SVG, SVGConfig, preset
from svg_fast.models import PRESETS, SVGOutput, frame_network, svg
from svg_fast.ops.frame_conv import ConvWeight
from svg_fast.training.step import TrainingStep, on_device

SMALL = SVGConfig(nf=16, n_past=3, n_future=3)


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with fake_cuda(monkeypatch):
        yield


CASES = {
    **{name: (config, True) for name, config in PRESETS.items() if name not in ("bair-fp", "bair-det")},
    "float32": (preset("smmnist-lp"), False),
    "float32 vgg": (preset("bair-fp"), False),
    "last_frame_skip": (replace(preset("smmnist-lp"), last_frame_skip=True), True),
    "last_frame_skip vgg": (replace(preset("kth-det"), last_frame_skip=True), True),
    "paper skip, 128 pixels": (replace(SMALL, skip="paper", image_size=128), True),
    "recompute": (replace(SMALL, recompute=True), True),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_never_waits_and_is_float32_where_it_matters(case: str) -> None:
    """`watch_step` raises where a value is read back or data is moved."""
    config, bf16 = CASES[case]
    watch, losses, step = watch_step(config, bf16)
    assert losses.dtype == torch.float32
    assert losses.shape == (3,)
    assert watch.narrow() == []
    for parameter in step.model.parameters():
        assert parameter.grad is not None
        assert parameter.dtype == parameter.grad.dtype == torch.float32
    for buffer in step.model.buffers():
        assert buffer.dtype in (torch.float32, torch.int64)
    assert watch.wrong_layouts() == []

    product = torch.bfloat16 if bf16 else torch.float32
    for call in watch.of(*PRODUCTS):
        assert {x.dtype for x in call.arguments.values() if isinstance(x, Tensor)} == {product}, call.operator

    # each convolution once for all time steps, where a level joins a skip once for each of the two
    convolutions = [m for m in step.model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]
    once = len(convolutions) - 2  # but for the two to and from a vector, which are matrix products
    halves = step.model.decoder.n_levels
    assert len(watch.of("aten::convolution")) == once * (2 if config.recompute else 1) + halves
    assert len(watch.of("aten::convolution_backward")) == once + halves


@pytest.mark.parametrize(("bf16", "most"), [(False, 285), (True, 372)])
def test_operators_of_a_step(bf16: bool, most: int) -> None:
    """A budget for SVG-LP on SM-MNIST, a few more than were counted; steps in two chunks took 519 and 648."""
    config = preset("smmnist-lp")
    step, frames = make_step(config, bf16), make_frames(config)
    step(frames)
    with Count() as count:
        step(frames)
    assert count.calls.total() <= most


STALLS: dict[str, Callable[[SVGOutput], Any]] = {
    "item": lambda out: out.loss.item(),
    "branch": lambda out: 1 if out.loss > 0 else 2,
    "cpu": lambda out: out.kl.cpu(),
    "to device": lambda out: out.kl + torch.ones(1, device="cpu").to(out.kl.device),
    "number on the cpu": lambda out: out.kl * torch.tensor(2.0, device="cpu"),
    "nonzero": lambda out: out.kl_per_step.nonzero(),
    "mask": lambda out: out.kl_per_step[out.kl_per_step > 0],
    "generator": lambda out: torch.randint(9, (2,), generator=torch.Generator(), device="cpu"),
}


@pytest.mark.parametrize("stall", STALLS)
def test_what_waits_is_caught(stall: str, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = SVG.forward
    planted: list[None] = []

    def waits(self: SVG, *arguments: Any, **options: Any) -> SVGOutput:
        out = forward(self, *arguments, **options)
        if planted:  # in the step that is watched
            STALLS[stall](out)
        planted.append(None)
        return out

    monkeypatch.setattr(SVG, "forward", waits)
    with pytest.raises(Stall):
        watch_step(SMALL, False)


def test_a_narrow_parameter_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    run = TrainingStep.__call__

    def narrowed(self: TrainingStep, frames: Tensor) -> Tensor:
        norm = self.model.encoder.norms()[0]
        norm.weight.data = norm.weight.data.bfloat16()
        return run(self, frames)

    monkeypatch.setattr(TrainingStep, "__call__", narrowed)
    watch, _, _ = watch_step(SMALL, True)
    assert watch.narrow()


def test_other_layouts_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg, "channels_last", lambda x: x)
    monkeypatch.setattr(frame_network, "prepare_conv", lambda weight, transposed: ConvWeight(weight, []))
    watch, _, _ = watch_step(SMALL, True)
    assert watch.wrong_layouts()


def test_chunks_are_counted() -> None:
    watch, _, _ = watch_step(replace(SMALL, time_chunk=2), True)
    assert len(watch.of("aten::convolution")) > 12


def test_batches_are_sent_on_a_stream_of_their_own_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    made: list[int] = []

    def note(what: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            asked.append(what)
            return arguments[0]

        return call

    monkeypatch.setattr(torch.cuda, "Stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", note("on its own stream"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(wait_stream=note("wait for it")))
    monkeypatch.setattr(torch.Tensor, "pin_memory", note("pin"))
    monkeypatch.setattr(torch.Tensor, "record_stream", note("keep"))

    def batches() -> Iterator[Tensor]:
        for k in range(3):
            made.append(k)
            yield torch.zeros(k + 1, dtype=torch.uint8, device="cpu")

    sent = on_device(batches(), CUDA)
    for k in range(2):
        batch = next(sent)
        assert (batch.device, batch.dtype, len(batch)) == (CUDA, torch.uint8, k + 1)
        assert made == list(range(k + 1))
    assert asked == ["on its own stream", "pin", "wait for it", "keep"] * 2


def test_tensors_on_the_cpu_are_refused_with_a_sentence() -> None:
    step, frames = make_step(SMALL, False), make_frames(SMALL)
    with pytest.raises(ValueError, match="frames must be on the model's device cuda:0, got cpu"):
        step(torch.zeros(frames.shape, dtype=frames.dtype, device="cpu"))
    noise = {"eps": torch.zeros(5, 4, 10, device="cpu"), "seed": torch.zeros(2, dtype=torch.int64, device="cpu")}
    for name, value in noise.items():
        with pytest.raises(ValueError, match=f"{name} must be on cuda:0.*, got cpu"):
            step.model(frames, **{name: value})
