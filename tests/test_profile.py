"""The profile of training steps: planted costs are found where they were planted, and nothing is counted twice."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from tiny_run import CONFIG
from torch import Tensor
from torch.profiler import record_function

from svg_fast import SVG, ops
from svg_fast.training import profile
from svg_fast.training.profile import BACKWARD, FORWARD, WARM_UP, Profile, Summary, Times, summarise

N_STEPS = 2


class Planted(torch.autograd.Function):
    """The identity, with an operation of its own in one direction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, direction: str) -> Tensor:
        ctx.direction = direction
        return planted(x.view_as(x), direction == FORWARD)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None]:
        return planted(dx, ctx.direction == BACKWARD), None


def planted(x: Tensor, here: bool = True) -> Tensor:
    if not here:
        return x
    with record_function("planted"):
        return x


def found(summary: Summary) -> set[tuple[str, str]]:
    """The parts and directions in which there is a planted operation, once a step."""
    calls = {key[:2]: n for key, n in summary.host.calls.items() if key[2] == "planted"}
    assert all(n % N_STEPS == 0 for n in calls.values())
    return set(calls)


class Step:
    """A plain training step: frames -> loss."""

    def __init__(self, model: SVG) -> None:
        self.model: torch.nn.Module = model
        self.generator = torch.Generator().manual_seed(1)
        self.optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def __call__(self, frames: Tensor) -> Tensor:
        self.optimizer.zero_grad()
        loss: Tensor = self.model(frames, generator=self.generator).loss
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def tiny(**changes: Any) -> tuple[SVG, Step]:
    torch.manual_seed(0)
    model = SVG(replace(CONFIG, **changes))
    return model, Step(model)


def loop(advance: Step, profiling: Profile, total: int, data: Callable[[], object] = lambda: None) -> list[float]:
    """A training loop of so many steps; returns the seconds of each pass through it."""
    passes = []
    frames = torch.rand(2, 4, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    with profiling:
        for _ in range(total):
            began = time.perf_counter()
            data()
            advance(frames.clone()).item()
            passes.append(time.perf_counter() - began)
            profiling.step()
    return passes


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two would wait for each other, and a step take 10 ms or 300
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def summaries(monkeypatch: pytest.MonkeyPatch) -> list[Summary]:
    """What `summarise` returns, in order."""
    kept: list[Summary] = []

    def keep(events: Any, n_steps: int) -> Summary:
        kept.append(summarise(events, n_steps))
        return kept[-1]

    monkeypatch.setattr(profile, "summarise", keep)
    return kept


# A method within each part that returns a tensor, alone or first.
PLACES = {
    "encoder": ("encoder", "run_stage"),
    "posterior": ("posterior", "run"),
    "prior": ("prior", "run"),
    "frame predictor": ("frame_predictor", "run"),
    "decoder": ("decoder", "finish_level"),
    "sample and KL": (None, "gaussian_rsample_kl"),
}


@pytest.mark.parametrize("direction", [FORWARD, BACKWARD])
@pytest.mark.parametrize(
    ("part", "recompute"), [*((part, False) for part in PLACES), ("encoder", True), ("decoder", True)]
)
def test_an_operation_is_found_in_its_part(
    part: str,
    direction: str,
    recompute: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    summaries: list[Summary],
) -> None:
    model, advance = tiny(recompute=recompute)
    module, method = PLACES[part]
    owner: Any = getattr(model, module) if module else ops
    original = getattr(owner, method)

    def with_one_more(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        if isinstance(result, Tensor):
            return Planted.apply(result, direction)
        return Planted.apply(result[0], direction), *result[1:]

    monkeypatch.setattr(owner, method, with_one_more)
    loop(advance, Profile(model, tmp_path, 10, N_STEPS), WARM_UP + N_STEPS)
    again = {(part, BACKWARD)} if recompute else set()  # activations are computed once more by the backward pass
    assert found(summaries[0]) == {(part, direction), *again}
    assert summaries[0].calls[part] == N_STEPS


def test_data_and_optimizer(tmp_path: Path, summaries: list[Summary]) -> None:
    model, advance = tiny()

    def plant(*_: Any) -> None:
        planted(torch.zeros(()))

    advance.optimizer.register_step_post_hook(plant)
    loop(advance, Profile(model, tmp_path, 0, N_STEPS), WARM_UP + N_STEPS, plant)
    assert found(summaries[0]) == {("data", FORWARD), ("optimizer", FORWARD)}


def test_kernels_are_where_they_belong(tmp_path: Path, summaries: list[Summary]) -> None:
    model, advance = tiny(predictor_rnn_layers=3)
    loop(advance, Profile(model, tmp_path, 0, N_STEPS), WARM_UP + N_STEPS)
    calls = {key[:2]: n for key, n in summaries[0].host.calls.items() if key[2] == "svg_fast::lstm_layer_bwd"}
    layers = {"posterior": 1, "prior": 1, "frame predictor": 3}
    assert calls == {(part, BACKWARD): n * N_STEPS for part, n in layers.items()}


def test_communication(tmp_path: Path, summaries: list[Summary]) -> None:
    """The reducer's work and the wait for it, though only one process takes part."""
    model, advance = tiny()
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        advance.model = torch.nn.parallel.DistributedDataParallel(model)
        loop(advance, Profile(model, tmp_path, 0, N_STEPS), WARM_UP + N_STEPS)
    finally:
        torch.distributed.destroy_process_group()
    (summary,) = summaries
    calls = {key[0]: n for key, n in summary.host.calls.items() if key[2] == "c10d::allreduce_"}
    assert calls == {"communication": calls["communication"]}
    assert summary.host.times["communication", FORWARD, "(between operations)"] > 0
    assert all(summary.host.of_part(part, BACKWARD) > 0 for part in profile.MODEL_PARTS)
    assert summary.host.total() == pytest.approx(summary.wall, rel=1e-3)


def test_the_parts_add_up_to_the_steps(tmp_path: Path, summaries: list[Summary]) -> None:
    model, advance = tiny(nf=8)
    n_steps = 5
    passes = loop(advance, Profile(model, tmp_path, 0, n_steps), WARM_UP + n_steps)
    (summary,) = summaries
    measured = 1e6 * sum(passes[-n_steps:])
    assert measured < summary.wall < 1.1 * measured + 5e3 * n_steps
    assert summary.host.total() == pytest.approx(summary.wall, rel=1e-3)
    assert min(summary.host.times.values()) >= 0
    shown = sum(summary.host.of_part(part, way) for part in profile.PARTS for way in (FORWARD, BACKWARD))
    assert shown == pytest.approx(summary.wall, rel=1e-3)
    assert summary.device is None


@pytest.mark.parametrize("variant", ["lp", "fp", "det"])
def test_a_profiled_run_is_the_same_run(variant: str, tmp_path: Path) -> None:
    states = []
    for n_steps in (0, N_STEPS):
        model, advance = tiny(variant=variant)
        before = {name: set(vars(module)) for name, module in model.named_modules()}
        loop(advance, Profile(model, tmp_path, 0, n_steps), WARM_UP + N_STEPS + 1)
        assert {name: set(vars(module)) for name, module in model.named_modules()} == before
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


def test_what_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model, advance = tiny()
    with caplog.at_level(logging.INFO, "svg_fast"):
        loop(advance, Profile(model, tmp_path, 10, N_STEPS), WARM_UP + N_STEPS + 1)
    text = (tmp_path / "profile" / "profile.txt").read_text()
    assert text.startswith(f"Steps 14 to 15 on cpu, {torch.get_num_threads()} threads")
    assert text in caplog.text
    for part in (*profile.MODEL_PARTS, "optimizer", "data", "other"):
        assert f"\n{part} " in text
    assert max(map(len, text.splitlines())) <= 100
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    names = [event.get("name") for event in trace["traceEvents"]]
    assert names.count("svg_fast/decoder") == N_STEPS
    assert sorted(path.name for path in (tmp_path / "profile").iterdir()) == ["profile.txt", "trace.json"]


def test_a_trace_that_would_be_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(profile, "MAX_TRACE_EVENTS", 100)
    model, advance = tiny()
    loop(advance, Profile(model, tmp_path, 0, 1), WARM_UP + 1)
    assert [path.name for path in (tmp_path / "profile").iterdir()] == ["profile.txt"]
    assert "no trace.json" in caplog.text


def test_a_run_that_ends_early(tmp_path: Path, caplog: pytest.LogCaptureFixture, summaries: list[Summary]) -> None:
    model, advance = tiny()
    loop(advance, Profile(model, tmp_path / "some", 0, 5), WARM_UP + 2)
    assert [summary.n_steps for summary in summaries] == [2]
    assert summaries[0].calls["encoder"] == 2
    loop(advance, Profile(model, tmp_path / "none", 0, 5), WARM_UP)
    assert not (tmp_path / "none").exists()
    assert "no profile: the run ended before its step 4 was done" in caplog.text


def test_a_step_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The error is the loop's, and the model is as it was."""
    model, advance = tiny()
    passes = iter(range(WARM_UP + 1))
    with pytest.raises(StopIteration):
        loop(advance, Profile(model, tmp_path, 0, 5), WARM_UP + 2, lambda: next(passes))
    assert not (tmp_path / "profile").exists()
    assert "forward" not in vars(model)
    loop(advance, Profile(model, tmp_path, 0, 1), WARM_UP + 1)  # torch has one profiler, which must be free again


@pytest.mark.parametrize("n_steps", [-1, 21])
def test_how_many_steps(n_steps: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"profile must be of 0 to 20 steps, got {n_steps}"):
        Profile(tiny()[0], tmp_path, 0, n_steps)


class Made(NamedTuple):
    """An event as the profiler hands it over, times in microseconds."""

    name: str
    start: float
    end: float
    thread: int = 1
    sequence_nr: int = -1
    fwd_thread: int = 0
    self_device_time_total: float = 0
    cpu_children: tuple[Made, ...] = ()
    cpu_parent: Any = None
    is_async: bool = False

    @property
    def time_range(self) -> Any:
        return SimpleNamespace(start=self.start, end=self.end, elapsed_us=lambda: self.end - self.start)

    @property
    def self_cpu_time_total(self) -> float:
        return self.end - self.start - sum(child.end - child.start for child in self.cpu_children)

    @property
    def device_type(self) -> Any:
        return SimpleNamespace(name="CPU")


@pytest.mark.parametrize("is_distributed", [False, True])
def test_a_backward_pass_in_another_thread(is_distributed: bool) -> None:
    """As on a GPU, by hand: the thread of the steps waits, and kernels take their time on the device."""
    encoder = Made("svg_fast/encoder", 10, 30, cpu_children=(Made("conv", 12, 20, 1, 5, 0, 100.0),))
    decoder = Made("svg_fast/decoder", 30, 50, cpu_children=(Made("conv", 31, 49, 1, 7, 0, 200.0),))
    forward = Made("svg_fast/inputs and loss", 10, 60, cpu_children=(encoder, decoder, Made("mse", 52, 55, 1, 9)))
    optimizer = Made("Optimizer.step#Adam.step", 110, 118, self_device_time_total=10.0)
    step = Made("svg_fast/step", 0, 120, cpu_children=(Made("rand", 2, 9, 1, 5), forward, optimizer))
    node = "autograd::engine::evaluate_function: "
    backward = [
        Made(f"{node}MseBackward", 62, 64, 2, 9, 1),
        Made(f"{node}ConvBackward", 64, 74, 2, 7, 1, 300.0),
        Made(f"{node}ConvBackward", 74, 84, 2, 6, 1, 150.0),  # a second node of the first convolution
        Made(f"{node}torch::autograd::AccumulateGrad", 84, 85, 2, -1, 0, 5.0),
    ]
    beside = [Made("loading", 0, 100, 3), Made("gloo:all_reduce", 80, 100, 4, is_async=True)]
    events = [step, *step.cpu_children, *backward, *(beside if is_distributed else beside[:1])]
    summary = summarise(events, 1)
    assert summary.device is not None
    waiting = 110 - 60 - 23
    assert parts(summary.host) == {
        ("data", FORWARD): 10,
        ("encoder", FORWARD): 20,
        ("decoder", FORWARD): 20,
        ("inputs and loss", FORWARD): 10,
        ("inputs and loss", BACKWARD): 2,
        ("decoder", BACKWARD): 10,
        ("encoder", BACKWARD): 11,
        ("optimizer", FORWARD): 8,
        **({("communication", FORWARD): waiting} if is_distributed else {}),
        ("other", FORWARD): 2 if is_distributed else 2 + waiting,
    }
    assert summary.wall == summary.host.total() == 120
    assert parts(summary.device) == {
        ("encoder", FORWARD): 100,
        ("decoder", FORWARD): 200,
        ("decoder", BACKWARD): 300,
        ("encoder", BACKWARD): 155,
        ("optimizer", FORWARD): 10,
    }
    assert "the device is busy for 638% of the time" in list(summary.lines())


def parts(times: Times) -> dict[tuple[str, str], float]:
    keys = {key[:2]: times.of_part(*key[:2]) for key in times.times}
    return {key: time for key, time in keys.items() if time}
