"""The benchmarks' machinery: what is wrong is not timed, how ratios come about, what `svg-fast bench` makes of them.

Speed is never asserted: where a ratio is checked, the clock is the test's own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from svg_fast import benchmarks, ops
from svg_fast.cli import cli
from svg_fast.evaluation.benchmark_figure import benchmark_figure

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import bench_gaussian
import measure
from measure import Race, Work, flop, peak_mib, traffic

ROOT = Path(__file__).parents[1]


class Clock:
    """Stands still until a contender runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.speed = 1.0

    def perf_counter(self) -> float:
        return self.now

    def run(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds / self.speed

        return call


class Fixture:
    """pytest-benchmark's fixture, so far as a race uses it, on the test's clock."""

    def __init__(self, clock: Clock, disabled: bool = False) -> None:
        self.clock, self.disabled, self.rounds = clock, disabled, 0
        self.extra_info: dict[str, Any] = {}
        self.stats = SimpleNamespace(iterations=1, stats=SimpleNamespace(data=[]))

    def pedantic(self, target: Callable[[], object], setup: Any = None, rounds: int = 1) -> None:
        for _ in range(rounds):
            if setup:
                setup()
            start = self.clock.now
            target()
            self.stats.stats.data.append((self.clock.now - start) / self.stats.iterations)
            self.clock.speed *= 2  # a machine whose speed drifts
            self.rounds += 1


@pytest.fixture
def fixture(monkeypatch: pytest.MonkeyPatch) -> Fixture:
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    monkeypatch.setattr(measure, "roof_per_second", lambda name, threads: {"sgemm": 1e11, "memcpy": 1e10}[name])
    return Fixture(clock)


def right() -> None:
    """A check that passes."""


def test_ratios_are_those_of_each_round(fixture: Fixture) -> None:
    run = fixture.clock.run
    Race(fixture)(run(0.05), {"slow": run(0.2), "fast": run(0.04)}, check=right, ops=["lstm_layer"], rounds=5)
    facts = fixture.extra_info
    assert facts["times_as_fast"] == pytest.approx({"slow": 4.0, "fast": 0.8})
    assert set(facts["served_by"]) == {"lstm_layer_fwd", "lstm_layer_bwd"}
    assert facts["threads"] == torch.get_num_threads()


def test_a_peer_may_choose_the_form_of_each_pass(fixture: Fixture) -> None:
    run = fixture.clock.run
    passes = [{"NCHW": run(0.05), "NHWC": run(0.02)}, {"NCHW": run(0.03), "NHWC": run(0.04)}]
    Race(fixture)(run(0.025), {"oneDNN": passes}, check=right, ops=[], rounds=3)
    assert fixture.extra_info["times_as_fast"] == pytest.approx({"oneDNN": 2.0})
    assert fixture.extra_info["chosen"] == {"oneDNN": ["NHWC", "NCHW"]}


def test_calls_make_a_round_long_enough(fixture: Fixture) -> None:
    Race(fixture)(fixture.clock.run(0.001), {}, check=right, ops=[], rounds=1)
    assert fixture.stats.iterations * 0.001 >= measure.ROUND_SECONDS
    assert fixture.stats.stats.data == pytest.approx([0.001])


@pytest.mark.parametrize(
    ("work", "facts"),
    [
        (flop(5e8), {"gflop": 1.0, "percent_of_floor": 20.0}),
        (flop(5e8, of_peer=True), {"gflop": 1.0, "effective_percent": 20.0}),
        (traffic(2.5e7), {"bytes": 1e8, "percent_of_floor": 20.0}),
    ],
)
def test_work_is_held_against_the_roof(fixture: Fixture, work: Work, facts: dict[str, float]) -> None:
    Race(fixture)(fixture.clock.run(0.05), {}, check=right, ops=[], work=work, rounds=1)
    assert {name: fixture.extra_info[name] for name in facts} == pytest.approx(facts)


def test_quick_cuts_the_rounds(fixture: Fixture) -> None:
    Race(fixture, quick=True)(fixture.clock.run(0.05), {}, check=right, ops=[])
    assert fixture.rounds == measure.QUICK_ROUNDS


def test_without_timing_the_check_runs_all_the_same(fixture: Fixture) -> None:
    fixture.disabled = True
    checked: list[str] = []
    race = Race(fixture)
    assert race.compile(torch.sin) is None
    race(fixture.clock.run(0.05), {}, check=lambda: checked.append("ours"), ops=[])
    assert checked == ["ours"]
    assert not fixture.extra_info


def test_a_peer_that_cannot_be_compiled_is_left_out_with_the_reason(
    fixture: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "inductor_error", lambda: "torch.compile: no compiler")
    race = Race(fixture)
    assert race.compile(torch.sin) is None
    race(fixture.clock.run(0.05), {}, check=right, ops=[], rounds=1)
    assert fixture.extra_info["left_out"] == {"torch.compile": "torch.compile: no compiler"}


def test_a_wrong_op_is_not_timed(fixture: Fixture, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = ops.gaussian_kl
    monkeypatch.setattr(ops, "gaussian_kl", lambda *args, **kwargs: exact(*args, **kwargs) * (1 + 1e-5))
    fixture.disabled = True  # not even then
    with pytest.raises(AssertionError, match="error"):
        bench_gaussian.test_one_of_the_two(Race(fixture), "gaussian_kl")
    assert fixture.rounds == 0
    assert not fixture.extra_info


def allocate(mebibytes: int) -> Callable[[], object]:
    return lambda: torch.ones(mebibytes, 2**18)


def test_peak_memory_is_that_of_the_call() -> None:
    """Twice in one process: the second call takes the place of the first."""
    peak = peak_mib(allocate, 200)
    assert peak is None or 200 <= peak < 300


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON of a small part of the benchmarks, as `make bench` makes it."""
    path = tmp_path_factory.mktemp("bench") / "result.json"
    pick = ["benchmarks/bench_gaussian.py", "-k", "one_of_the_two", "--quick", f"--benchmark-json={path}"]
    run_benchmarks(*pick)
    return path


def run_benchmarks(*arguments: str) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout


def test_each_file_of_ops_runs() -> None:
    """Its smaller cases, so far as their own checks; a full-sized step of a model takes too long for a test."""
    pick = "lstm_step or (rsample_kl and 15) or 1x1 or running_statistics or uint8 or (test_layer and 4x4)"
    run_benchmarks("benchmarks", "-k", pick, "--benchmark-disable")


def test_a_result_compares_and_is_drawn(quick_run: Path, tmp_path: Path) -> None:
    result = benchmarks.load(quick_run)
    assert {row.group for row in result.rows.values()} == {"gaussian_rsample, gaussian_kl"}
    assert all(row.facts["percent_of_floor"] > 0 for row in result.rows.values())
    assert all(change.ratio == 1 for change in benchmarks.compare(result, result, "median").changes)
    assert bench("plot", quick_run, "--out", tmp_path / "picture.png").exit_code == 0
    with Image.open(tmp_path / "picture.png") as image:
        assert image.width > 500


def case(name: str = "test_lstm_layer[B 16]", **changes: Any) -> dict[str, Any]:
    facts = {
        "served_by": {"lstm_layer_fwd": "kernel", "lstm_layer_bwd": "reference"},
        "instruction_set": "avx512",
        "threads": 2,
        "roof": "sgemm",
        "percent_of_floor": 61.0,
        "times_as_fast": {"nn.LSTM": 1.5, "nn.LSTMCell": 3.0},
    }
    median = changes.pop("median", 0.01)
    return {
        "name": name,
        "fullname": f"benchmarks/bench_lstm.py::{name}",
        "group": "lstm_layer",
        "stats": {"median": median},
        "extra_info": facts | changes,
    }


def write(path: Path, *cases: dict[str, Any], cpu: str = "Xeon") -> Path:
    machine = {"cpu": {"brand_raw": cpu, "family": 6, "model": 207, "count": 2}, "torch": "2.13.0"}
    path.write_text(json.dumps({"machine_info": machine, "benchmarks": cases}))
    return path


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["bench", *map(str, arguments)])


def test_compare_prints_each_case_and_fails_past_the_threshold(tmp_path: Path) -> None:
    old = write(tmp_path / "old.json", case())
    new = write(tmp_path / "new.json", case(times_as_fast={"nn.LSTM": 1.2, "nn.LSTMCell": 3.3}))
    done = bench("compare", old, new)
    assert done.exit_code == 1
    header, lstm, cell = done.stdout.splitlines()
    assert header.split() == ["case", "against", "old", "new", "ratio"]
    assert lstm.split() == ["test_lstm_layer[B", "16]", "nn.LSTM", "1.5", "1.2", "0.80", "slower"]
    assert cell.split() == ["test_lstm_layer[B", "16]", "nn.LSTMCell", "3", "3.3", "1.10"]
    assert "1 of 2 slower by more than 1.1 times" in done.stderr
    assert bench("compare", old, new, "--threshold", "1.3").exit_code == 0


def test_compare_of_medians(tmp_path: Path) -> None:
    old, new = write(tmp_path / "old.json", case()), write(tmp_path / "new.json", case(median=0.02))
    assert bench("compare", old, new).exit_code == 0
    done = bench("compare", old, new, "--metric", "median")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[1].split()[2:] == ["10", "ms", "20", "ms", "0.50", "slower"]


@pytest.mark.parametrize(
    ("changes", "cpu", "difference"),
    [
        ({"threads": 1}, "Xeon", "differs: threads: 2, then 1"),
        ({"instruction_set": "avx2"}, "Xeon", "differs: instruction set: avx512, then avx2"),
        ({}, "EPYC", "differs: machine: Xeon (family 6, model 207), 2 cores, PyTorch 2.13.0, then EPYC (family"),
    ],
)
def test_only_ratios_within_one_run_compare(tmp_path: Path, changes: dict[str, Any], cpu: str, difference: str) -> None:
    old, new = write(tmp_path / "old.json", case()), write(tmp_path / "new.json", case(median=9, **changes), cpu=cpu)
    done = bench("compare", old, new, "--metric", "median")
    assert done.exit_code == 0
    assert difference in done.stdout
    assert "only ratios within one run compare\nso times_as_fast was compared, not the median" in done.stdout


def test_what_one_run_has_alone_is_said(tmp_path: Path) -> None:
    old = write(tmp_path / "old.json", case(), case("test_gone"))
    new = write(tmp_path / "new.json", case(times_as_fast={"nn.LSTM": 1.5}), case("test_come"))
    lines = bench("compare", old, new).stdout.splitlines()
    assert lines[2:] == [
        f"test_lstm_layer[B 16]: against nn.LSTMCell in {old} only",
        f"test_gone: in {old} only",
        f"test_come: in {new} only",
    ]


def test_compare_needs_something_in_common(tmp_path: Path) -> None:
    old, new = (benchmarks.load(write(tmp_path / f"{name}.json", case(name))) for name in ("a", "b"))
    with pytest.raises(ValueError, match="share no case that has a times_as_fast"):
        benchmarks.compare(old, new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "is not JSON"),
        ("[]", "is not what `pytest benchmarks --benchmark-json=FILE` of this version writes"),
        ("{}", "writes: KeyError('machine_info')"),
        (json.dumps({"machine_info": {"cpu": {}}, "benchmarks": []}), "writes: KeyError('brand_raw')"),
    ],
)
def test_a_file_of_something_else(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"file\.json") as caught:
        benchmarks.load(path)
    assert message in str(caught.value)


def test_a_row_without_its_columns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'float' object has no attribute 'items'"):
        benchmarks.load(write(tmp_path / "older.json", case(times_as_fast=1.8)))
    with pytest.raises(ValueError, match="holds no timed case"):
        benchmarks.load(write(tmp_path / "empty.json"))


def test_a_mistake_is_one_sentence(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere.json")
    command = [sys.executable, "-m", "svg_fast", "bench", "compare", nowhere, nowhere]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert done.stderr == f"Error: {nowhere}: No such file or directory\n"


def test_the_picture_has_a_bar_for_each_peer(tmp_path: Path) -> None:
    heights = []
    for count in (1, 20):
        rows = [case(f"test_lstm_layer[B {k}]") for k in range(count)]
        benchmark_figure(benchmarks.load(write(tmp_path / "result.json", *rows)), tmp_path / "picture.png")
        with Image.open(tmp_path / "picture.png") as image:
            heights.append(image.height)
    assert heights[1] > 3 * heights[0]


@pytest.mark.parametrize(
    ("changes", "picture", "message"),
    [
        ({}, "picture.jpg", "path must end in .png, got 'picture.jpg'"),
        ({"times_as_fast": {}}, "picture.png", "has no case with a peer"),
    ],
)
def test_what_cannot_be_drawn(tmp_path: Path, changes: dict[str, Any], picture: str, message: str) -> None:
    result = benchmarks.load(write(tmp_path / "result.json", case(**changes)))
    with pytest.raises(ValueError, match=message):
        benchmark_figure(result, tmp_path / picture)
    assert list(tmp_path.iterdir()) == [tmp_path / "result.json"]
