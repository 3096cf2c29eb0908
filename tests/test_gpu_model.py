"""The model on a GPU, as far as a machine without one tells: traced, recorded and replayed, and in bfloat16."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import use_recorded_graphs
from test_fuzz import WITHOUT_AMX
from test_parity import SMALL, check_step
from tiny_run import CONFIG, TRAINING
from torch import Tensor

import svg_fast
from svg_fast import SVG, SVGConfig
from svg_fast.graphs import WARM_UP, Graphed
from svg_fast.models import chunks
from svg_fast.training import TrainConfig, checkpoint, train
from svg_fast.training.setup import prepare_device
from svg_fast.training.step import TrainingStep, noise_on_device

TESTS = Path(__file__).parent
PACKAGES = Path(svg_fast.__file__).parents[1]
TORCH = Path(torch.__file__).parent
CPU = torch.device("cpu")


def compile_stub(folder: Path) -> Path:
    """What a PyTorch without CUDA lacks to differentiate FakeTensors on it."""
    library = folder / "cuda_stub.so"
    links = [f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}", f"-Wl,-rpath,{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
    source = str(TESTS / "cuda_stub.cpp")
    subprocess.run(["c++", "-std=c++20", "-shared", "-fPIC", source, "-o", str(library), *links], check=True)
    return library


def check_suite(name: str, variables: dict[str, str]) -> None:
    """Run tests in a process of their own, with these environment variables."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / name)],
        env=os.environ | variables | {"PYTHONPATH": str(PACKAGES)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def test_the_step_traced_on_fake_cuda_tensors(tmp_path: Path) -> None:
    stub = {} if torch.backends.cuda.is_built() else {"LD_PRELOAD": str(compile_stub(tmp_path))}
    check_suite("gpu_model_suite.py", stub)


def test_bfloat16_numbers() -> None:
    check_suite("bf16_suite.py", WITHOUT_AMX)


@pytest.fixture
def all_steps_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on an accelerator."""
    monkeypatch.setattr(chunks, "images_at_once", lambda *_: None)


@pytest.mark.usefixtures("all_steps_at_once")
@pytest.mark.parametrize("backbone", ["dcgan", "vgg"])
@pytest.mark.parametrize(
    "change",
    [
        {"n_past": 2},
        {"n_past": 5, "skip": "paper", "recompute": True},
        {"n_past": 5, "variant": "det"},
        {"last_frame_skip": True, "variant": "fp"},
    ],
    ids=str,
)
def test_all_steps_in_one_call_are_the_published_loop(backbone: Any, change: dict[str, Any]) -> None:
    check_step(replace(SMALL, backbone=backbone, **change))


def run_steps(
    config: SVGConfig, count: int, make: Callable[[SVG, torch.optim.Optimizer], Callable[[Tensor], Tensor]]
) -> tuple[list[Tensor], list[Tensor]]:
    """Losses of some steps on the same frames, and all tensors of the model."""
    torch.manual_seed(0)
    model = SVG(config)
    frames = torch.randint(256, (2, config.n_past + config.n_future, 1, 64, 64)).to(torch.uint8)
    step = make(model, torch.optim.Adam(model.parameters(), 2e-3, fused=True))
    losses = [step(frames).clone() for _ in range(count)]
    return losses, [tensor.clone() for tensor in model.state_dict().values()]


def plain(model: SVG, optimizer: torch.optim.Optimizer) -> TrainingStep:
    return TrainingStep(model, optimizer, noise_on_device(1, 0, CPU), TrainConfig(batch_size=2))


@pytest.mark.usefixtures("all_steps_at_once")
@pytest.mark.parametrize(
    "config",
    [CONFIG, replace(CONFIG, variant="det", backbone="vgg"), replace(CONFIG, n_past=3, last_frame_skip=True)],
    ids=["lp", "det-vgg", "last_frame_skip"],
)
def test_replays_of_a_recorded_step_are_steps(config: SVGConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters, statistics, Adam's state and the noise go on in a graph as they do in plain calls, bit for bit."""
    want = run_steps(config, WARM_UP + 3, plain)
    use_recorded_graphs(monkeypatch)
    graphs: list[Graphed[Tensor]] = []

    def graphed(model: SVG, optimizer: torch.optim.Optimizer) -> Graphed[Tensor]:
        graphs.append(Graphed(plain(model, optimizer), CPU))
        return graphs[0]

    got = run_steps(config, WARM_UP + 3, graphed)
    assert graphs[0].graph is not None
    for a, b in zip(got, want, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_step_that_counts_in_python_replays_to_other_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above would find: noise whose offset is Python's is the same in every replay."""

    def counting(model: SVG, optimizer: torch.optim.Optimizer) -> Callable[[Tensor], Tensor]:
        noise = noise_on_device(1, 0, CPU)
        calls: list[None] = []

        def step(frames: Tensor) -> Tensor:
            noise[1:].fill_(len(calls))
            calls.append(None)
            return TrainingStep(model, optimizer, noise, TrainConfig(batch_size=2))(frames)

        return step

    want, _ = run_steps(CONFIG, WARM_UP + 2, plain)
    counted, _ = run_steps(CONFIG, WARM_UP + 2, counting)
    assert all(torch.equal(x, y) for x, y in zip(counted, want, strict=True))
    use_recorded_graphs(monkeypatch)
    replayed, _ = run_steps(CONFIG, WARM_UP + 2, lambda *parts: Graphed(counting(*parts), CPU))
    assert not torch.equal(replayed[-1], want[-1])


def test_noise_is_a_function_of_seed_and_step() -> None:
    noise = noise_on_device(1, 0, CPU)
    model = SVG(CONFIG)
    step = TrainingStep(model, torch.optim.Adam(model.parameters()), noise, TrainConfig(batch_size=2))
    for _ in range(2):
        step(torch.zeros(2, 4, 1, 64, 64))
    assert torch.equal(noise, noise_on_device(1, 2, CPU))
    assert noise_on_device(2, 2, CPU)[0] != noise[0]


def test_training_goes_on_where_a_step_cannot_be_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A CPU's noise comes from a generator, which no graph can draw from."""
    once = replace(TRAINING, niter=1)
    train(CONFIG, replace(once, cuda_graph=False), tmp_path / "plain")
    use_recorded_graphs(monkeypatch)
    with caplog.at_level(logging.WARNING, "svg_fast"):
        train(CONFIG, once, tmp_path / "graph")
    assert [r.message for r in caplog.records if "the training step runs without a CUDA graph" in r.message]
    a, b = (checkpoint.load(checkpoint.find_all(tmp_path / n / "checkpoints")[-1]).tensors for n in ("plain", "graph"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "bf16"}, "precision bf16 needs a GPU .a CPU is slower with it., got device 'cpu'"),
        ({"cuda_graph": True}, "cuda_graph needs a GPU, got device 'cpu'"),
    ],
)
def test_what_a_cpu_is_not_for(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare_device(replace(TRAINING, **change))
