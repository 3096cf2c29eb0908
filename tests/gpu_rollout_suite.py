"""A rollout traced on fake CUDA tensors; `test_rollout.py` runs this with a stub of CUDA in the process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from watch import BATCH, PRODUCTS, Stall, Watch, fake_cuda

from svg_fast import SVG, SVGConfig, preset
from svg_fast.models.rollout import FutureStep

N_PAST, SAMPLES = 3, 2


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with fake_cuda(monkeypatch):
        yield


@pytest.fixture
def watches(monkeypatch: pytest.MonkeyPatch) -> list[Watch]:
    """Of every future step but the first, which is no part of the graph."""
    seen: list[Watch] = []
    run = FutureStep.__call__

    def watched(self: FutureStep, noise: Tensor) -> Tensor:
        with Watch() as watch:
            frame = run(self, noise)
        seen.append(watch)
        return frame

    monkeypatch.setattr(FutureStep, "__call__", watched)
    return seen


def roll_out(config: SVGConfig, bf16: bool) -> Tensor:
    frames = torch.zeros(BATCH, N_PAST, config.channels, config.image_size, config.image_size, dtype=torch.uint8)
    with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
        return SVG(config).sample(frames, 3, SAMPLES, statistics="batch", cuda_graph=False)


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    "config",
    [
        *(preset(f"smmnist-{variant}") for variant in ("lp", "fp", "det")),
        preset("kth-lp"),
        replace(preset("smmnist-lp"), last_frame_skip=True),
    ],
    ids=lambda config: f"{config.variant}-{config.backbone}-{config.last_frame_skip}",
)
def test_a_future_step_never_waits_and_runs_whole_nets(config: SVGConfig, bf16: bool, watches: list[Watch]) -> None:
    """The watch raises where a value is read back or data is moved."""
    video = roll_out(config, bf16)
    assert video.dtype == torch.float32
    assert len(watches) == 2
    for watch in watches:
        nets = watch.of("svg_fast::lstm_net_step_fwd")
        assert len(nets) == (2 if config.variant == "lp" else 1)
        assert {state.dtype for net in nets for state in net.results[:2]} == {torch.float32}
        assert watch.of("svg_fast::lstm_step_fwd", "aten::exp") == []
        assert len(watch.of("aten::mm", "aten::addmm")) == 2  # to and from a vector
        assert watch.wrong_layouts() == []
        for call in watch.of(*PRODUCTS):
            dtypes = {x.dtype for x in call.arguments.values() if isinstance(x, Tensor)}
            assert dtypes == {torch.bfloat16 if bf16 else torch.float32}, call.operator


def test_what_waits_is_caught(watches: list[Watch], monkeypatch: pytest.MonkeyPatch) -> None:
    predict = FutureStep._predict

    def waits(self: FutureStep, noise: Tensor) -> Tensor:
        if self.frame is not None:
            noise.sum().item()
        return predict(self, noise)

    monkeypatch.setattr(FutureStep, "_predict", waits)
    with pytest.raises(Stall):
        roll_out(preset("smmnist-lp"), False)
