"""`Graphed`: warm-up calls count, replays follow the state that the function keeps, without a graph it still works."""

from __future__ import annotations

import logging

import pytest
import torch
from recorded import use_recorded_graphs
from torch import Tensor

from svg_fast.graphs import WARM_UP, Graphed

CPU = torch.device("cpu")


class Counter:
    """A function with a memory: total += x * calls so far; and how often Python ran it."""

    def __init__(self) -> None:
        self.total, self.calls, self.runs = torch.zeros(3), torch.zeros((), dtype=torch.int64), 0

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        self.runs += 1
        self.calls += 1
        self.total += x * self.calls
        return {"total": self.total * 1, "calls": self.calls.clone()}


def totals(count: int) -> Tensor:
    """What `Counter` has after `count` calls with 1, 2, 3, ..."""
    return torch.full((3,), float(sum(n * n for n in range(1, count + 1))))


def test_without_a_gpu_every_call_is_a_plain_one() -> None:
    counter = Counter()
    graphed = Graphed(counter, CPU)
    for n in range(1, 8):
        assert torch.equal(graphed(torch.full((3,), float(n)))["total"], totals(n))
    assert counter.runs == 7
    assert graphed.graph is None


def test_replays_go_on_where_the_warm_up_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    use_recorded_graphs(monkeypatch)
    counter = Counter()
    graphed = Graphed(counter, CPU)
    for n in range(1, WARM_UP + 6):
        result = graphed(torch.full((3,), float(n)))
        assert torch.equal(result["total"], totals(n))
        assert result["calls"] == n
    assert graphed.graph is not None
    assert counter.runs == WARM_UP + 1


def test_where_capture_fails_the_reason_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    use_recorded_graphs(monkeypatch)
    counter = Counter()

    def reads_back(x: Tensor) -> Tensor:
        counter(x)
        return x * counter.total[0].item()

    graphed = Graphed(reads_back, CPU, "the step")
    with caplog.at_level(logging.WARNING, "svg_fast"):
        for n in range(1, WARM_UP + 4):
            assert torch.equal(graphed(torch.full((3,), float(n))), n * totals(n))
    (record,) = caplog.records
    assert record.message.startswith("the step runs without a CUDA graph, which could not be captured: ")
    assert "aten._local_scalar_dense" in record.message


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([torch.zeros(4)], r"input 0 of add must be torch.float32 \[3\] on cpu, got torch.float32 \[4\] on cpu"),
        ([torch.zeros(3, dtype=torch.int64)], r"must be torch.float32 \[3\] on cpu, got torch.int64"),
        ([torch.zeros(3, device="meta")], r"on cpu, got torch.float32 \[3\] on meta"),
        ([torch.zeros(3)] * 2, "add must get 1 inputs as before, got 2"),
    ],
)
def test_other_inputs_than_the_first(monkeypatch: pytest.MonkeyPatch, inputs: list[Tensor], message: str) -> None:
    use_recorded_graphs(monkeypatch)
    graphed = Graphed(lambda x: x + 1, CPU, "add")
    graphed(torch.zeros(3))
    with pytest.raises(ValueError, match=message):
        graphed(*inputs)
