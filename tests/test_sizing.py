"""What benchmarks/sizing.py counts is what a training step holds; its page has its figures, and options that exist."""

from __future__ import annotations

import itertools
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.run import get_args_parser

import svg_fast
from svg_fast import SVGConfig
from svg_fast.cli.train import train_command
from svg_fast.models import chunks

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import sizing
from lstm_step_model import H100

SMALL = svg_fast.preset("smmnist-small")
FRUGAL = replace(SMALL, recompute=True, time_chunk=1)


def test_state_is_that_of_a_model_and_its_optimizer() -> None:
    model, frames, eps = sizing.make_inputs(SMALL, 2)
    adam = torch.optim.Adam(model.parameters(), fused=True)
    model(frames, eps).loss.backward()
    adam.step()
    held: list[Tensor] = []
    for parameter in model.parameters():
        assert parameter.grad is not None
        held += [parameter, parameter.grad, adam.state[parameter]["exp_avg"], adam.state[parameter]["exp_avg_sq"]]
    assert sizing.state_bytes("smmnist-small") == sum(tensor.nbytes for tensor in held)
    assert sizing.clip_bytes("smmnist-small") == frames[0].nbytes


def saved_bytes(config: SVGConfig, batch: int) -> int:
    """What autograd keeps of a real forward pass on the CPU, every storage once."""
    model, frames, eps = sizing.make_inputs(config, batch)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(frames, eps)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("change", [{}, {"variant": "det"}, {"backbone": "vgg", "nf": 8, "n_future": 2}], ids=str)
def test_counted_activations_are_those_that_autograd_keeps(
    change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four clips more, so that what does not depend on them (weights, packed for the CPU) drops out."""
    monkeypatch.setattr(chunks, "images_at_once", lambda *_: None)
    config = replace(SMALL, **change)
    measured = saved_bytes(config, 6) - saved_bytes(config, 2)
    counted = sizing.memory(config, 6, "float32").kept - sizing.memory(config, 2, "float32").kept
    assert counted == pytest.approx(measured, rel=0.01)


def peak_bytes(config: SVGConfig, batch: int) -> int:
    """The most that a real step on the CPU has allocated, by the profiler's record of every allocation."""
    step = sizing.cpu_step(config, batch)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    assert profile.profiler is not None
    events: Any = profile.profiler.kineto_results.events()
    changes = [event for event in events if event.name() == "[memory]"]
    return max(
        itertools.accumulate(change.nbytes() for change in sorted(changes, key=lambda change: change.start_ns()))
    )


@pytest.mark.parametrize(
    ("config", "tolerance"), [(SMALL, 0.01), (FRUGAL, 0.2)], ids=["plain", "recompute, time_chunk 1"]
)
def test_counted_peak_is_that_of_a_step(config: SVGConfig, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of eight clips more. Recomputing, a CPU has its weights packed at the peak of the smaller batch."""
    monkeypatch.setattr(chunks, "images_at_once", lambda *_: None)
    measured = peak_bytes(config, 12) - peak_bytes(config, 4)
    counted = sizing.memory(config, 12, "float32").most - sizing.memory(config, 4, "float32").most
    assert counted == pytest.approx(measured, rel=tolerance)


def test_bfloat16_and_recomputation_hold_less() -> None:
    plain, low = (sizing.memory(SMALL, 8, precision) for precision in ("float32", "bfloat16"))
    assert 0.5 * plain.kept < low.kept < 0.6 * plain.kept
    frugal = sizing.memory(FRUGAL, 8, "float32")
    assert frugal.kept < frugal.most < plain.most / 2


def test_a_step_of_several_gpus_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 clips; a kernel that takes 1 ms for 25 of them, forward, and twice as many, backward; 50 MB to reduce."""

    class Kernel:
        def __init__(self, clips: int) -> None:
            self.clips = clips

        def seconds(self, *_: object) -> float:
            return self.clips * 40e-6

    monkeypatch.setattr(sizing, "passes", lambda _, n: sizing.Passes([Kernel(n)], [Kernel(n)] * 2))  # type: ignore[list-item]
    monkeypatch.setattr(sizing, "parameters", lambda _: 12_500_000)
    adam = 7 * 50e6 / H100.bandwidth
    seconds = lambda gpus, link: sizing.step_seconds("", 100, H100, "bfloat16", gpus, link)  # noqa: E731
    assert seconds(1, "25 Gb/s") == pytest.approx(12e-3 + adam)
    assert seconds(4, "NVLink") == pytest.approx(3e-3 + adam)  # 0.25 ms of reducing are hidden
    assert seconds(4, "25 Gb/s") == pytest.approx(1e-3 + 2 * 3 / 4 * 50e6 / 3.125e9 + adam)
    assert seconds(64, "NVLink") == math.inf  # one clip
    assert sizing.efficiency("", 100, H100, "bfloat16", 4, "NVLink") == pytest.approx(1, rel=0.04)


def test_the_page_holds_the_tables() -> None:
    """Of all rows, which take a while, one."""
    text = sizing.DOCUMENT.read_text()
    for table in sizing.sections([("smmnist-lp", 20)], H100, "bfloat16", sizing.COUNTS).values():
        header, _, row = table.splitlines()
        assert header in text, "python benchmarks/sizing.py --write"
        assert row in text, "python benchmarks/sizing.py --write"


def test_the_pages_options_exist() -> None:
    known = {option for parameter in train_command.params for option in parameter.opts}
    torchrun = {option for action in get_args_parser()._actions for option in action.option_strings}
    text = sizing.DOCUMENT.read_text().replace("\\\n", " ")
    commands = re.findall(r"torchrun (.*?)-m svg_fast train (.*)", text)
    assert len(commands) == 4
    for launch, arguments in commands:
        assert set(re.findall(r"--[a-z-]+", launch)) <= torchrun
        assert set(re.findall(r"--[a-z-]+", arguments)) <= known
    assert set(re.findall(r"`(--[a-z-]+)", text)) <= known | torchrun | {"--json", "--write"}
