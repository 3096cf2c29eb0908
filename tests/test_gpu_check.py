"""The script for a machine with a GPU ends well without one, its measuring code runs on the CPU, floors add up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from device_checks import CONFIGS, noise, rollout, trained
from device_checks import model as make_model
from test_ops import compare_with_float32, compare_with_float64

from svg_fast.testing import Case, select

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import floors
import gpu_check
import gpu_report
from gpu_cases import CASES, COMPILED, PAPER, TINY
from gpu_measure import DeviceRace, Roofs
from lstm_step_model import A100, H100, lstm_step_terms
from measure import flop, traffic

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
# Processors that announce AMX where the system forbids it end oneDNN's bfloat16 products.
SAFE = {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def run_script(folder: Path, *options: str) -> tuple[int, str, dict[str, Any]]:
    """Exit status, output and JSON of gpu_check.sh with the library as it is."""
    command = [str(ROOT / "benchmarks" / "gpu_check.sh"), str(folder), "--no-build", *options]
    environment = os.environ | {"PYTHON": sys.executable} | SAFE
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    (path,) = folder.glob("gpu_check-*.json")
    return done.returncode, done.stdout + done.stderr, json.loads(path.read_text())


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_every_case_says_so(tmp_path: Path) -> None:
    status, output, found = run_script(tmp_path)
    assert status == 0, output
    for part in ("roofs", "ops", "model", "profile"):
        assert found[part], part
        assert all(row["left_out"] == "no GPU" for row in found[part])
    assert found["tests"]["failed"] == found["tests"]["passed"] == 0
    assert found["tests"]["skipped"] > 100
    assert found["tests"]["reasons"] == ["no GPU"]
    names = [row["case"] for part in ("ops", "model") for row in found[part]]
    lines = output.splitlines()
    assert lines[-len(names) - 1].split()[:2] == ["case", "form"]
    for name, line in zip(names, lines[-len(names) :], strict=True):
        assert line.startswith(name)
        assert line.endswith("left out: no GPU")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, dict[str, Any]]:
    """All parts for real, on the CPU."""
    return run_script(tmp_path_factory.mktemp("gpu_check"), "--device", "cpu", "--tiny")


def test_every_part_measures(tiny: tuple[int, str, dict[str, Any]]) -> None:
    status, output, found = tiny
    assert status == 0, output
    assert set(found["roofs"][0]["matrix_rate"]) == {"float32", "TF32", "bfloat16"}
    assert found["roofs"][0]["graph_node"] is None
    for row in found["ops"] + found["model"]:
        form = row["forms"]["call"]
        assert form["seconds"] > 0
        assert form["percent_of_roof"] > 0
        assert form["times_as_fast"]
        assert row["served_by"]
        if "graph" in row["forms"]:
            assert row["forms"]["graph"]["left_out"] == {"ours": "no GPU"}
    assert all(row["floor_seconds"] > 0 for row in found["model"])
    (profile,) = found["profile"]
    assert profile["kernels"] > 100
    assert len(profile["longest"]) == 15


def test_the_table_has_each_form_of_each_case(tiny: tuple[int, str, dict[str, Any]]) -> None:
    _, output, found = tiny
    rows = found["ops"] + found["model"]
    forms = [(row["case"], form) for row in rows for form in row["forms"]]
    for (name, form), line in zip(forms, output.splitlines()[-len(forms) :], strict=True):
        assert line.startswith(name)
        assert line.removeprefix(name).split()[0] == form


class Options:
    """Those of a run whose time is spent, or not."""

    def __init__(self, folder: Path, minutes: float) -> None:
        self.folder, self.minutes, self.started, self.tiny, self.device = folder, minutes, time.time(), True, "cpu"


@pytest.fixture
def processes_find_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """As gpu_check.sh sees to it."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")


@pytest.mark.usefixtures("processes_find_modules")
def test_what_does_not_fit_the_time_is_left_out_with_the_reason(tmp_path: Path) -> None:
    spent: Any = Options(tmp_path, minutes=0)
    rows = gpu_check.measure("ops", spent, {"bandwidth": 1e9, "matrix_rate": {}, "graph_node": None})
    assert [row["case"] for row in rows] == [str(case) for case in CASES["ops"](TINY)]
    assert {row["left_out"] for row in rows} == {"not within 0 s"}


@pytest.mark.usefixtures("processes_find_modules")
def test_a_part_that_breaks_is_a_failure(tmp_path: Path) -> None:
    options: Any = Options(tmp_path, minutes=9)
    options.device = "nowhere"
    first, *others = gpu_check.measure("ops", options, {})
    assert "the process ended with 1" in first["failed"]
    assert "nowhere" in first["failed"]
    assert {row["left_out"] for row in others} == {"came after a failure"}
    found = {"tests": {"failed": 0}, "roofs": [], "ops": [first], "model": [], "profile": []}
    assert gpu_report.report(found) == 1
    assert gpu_report.report(found | {"ops": others}) == 0
    assert gpu_report.report(found | {"ops": [], "tests": {"failed": 1}}) == 1


def test_what_is_compiled_is_among_the_cases() -> None:
    names = {str(case) for cases in CASES.values() for case in cases(PAPER)}
    assert names.issuperset(COMPILED)


def test_a_wrong_result_is_not_timed() -> None:
    race = DeviceRace(CPU, torch.float32, Roofs(1.0, {}, None))
    timed = []

    def wrong() -> None:
        raise AssertionError("error 1e-2")

    def measure() -> dict[str, Any]:
        race(lambda: timed.append(1), {}, check=wrong, ops=[])
        return race.row

    row = gpu_check.attempt(measure)
    assert row == {"failed": "error 1e-2"}
    assert not timed


def test_ratios_and_roofs_of_a_race() -> None:
    """A peer that calls ours three times; work that the roof does in a known time."""
    x = torch.rand(2**16)
    roofs = Roofs(bandwidth=1e9, matrix_rate={"float32": 1e9, "bfloat16": 1e12}, graph_node=None)
    race = DeviceRace(CPU, torch.float32, roofs, quick=True)
    race(x.exp, {"thrice": lambda: [x.exp() for _ in range(3)]}, check=lambda: None, ops=["lstm_step"], work=flop(5e5))
    call = race.row["forms"]["call"]
    assert call["percent_of_roof"] == pytest.approx(100 * 1e-3 / call["seconds"])
    assert call["times_as_fast"]["thrice"] > 1
    assert set(race.row["served_by"]) == {"lstm_step_fwd", "lstm_step_bwd"}
    assert roofs.seconds(traffic(500), torch.bfloat16) == pytest.approx(1e-6)
    assert race.tolerance(1e-6) == 1e-6
    assert DeviceRace(CPU, torch.float16, roofs).tolerance(1e-6) == 4 * 2.0**-10


def test_the_document_holds_the_floors() -> None:
    """All of them but for most presets' rows, which take a while: of these, three."""
    text = floors.DOCUMENT.read_text()
    names = {"training": ["smmnist-lp", "bair-det"], "rollouts": ["smmnist-fp"]}
    tables = floors.sections(names)
    for name in names:
        _, _, *rows = tables.pop(name).splitlines()
        assert len(rows) == len(names[name])
        for row in rows:
            assert row in text, "python benchmarks/floors.py --write"
    assert floors.fill(text, tables) == text, "python benchmarks/floors.py --write"


def test_a_convolution_and_an_lstm_are_counted_by_hand() -> None:
    def make() -> Any:
        x, weight = torch.empty(2, 3, 8, 8), torch.empty(5, 3, 4, 4)
        return lambda: torch.nn.functional.conv2d(x, weight, stride=2, padding=1)

    (conv,) = floors.count(make)
    assert conv.flop == 2 * (2 * 5 * 4 * 4) * (3 * 4 * 4)
    assert conv.elements == 2 * 3 * 8 * 8 + 5 * 3 * 4 * 4 + 2 * 5 * 4 * 4
    name, make_layer = next(iter(floors.kernels()))
    assert name == "lstm_layer, T 14, B 1, H 256"
    forward, backward = floors.count(make_layer)
    assert (forward.steps, forward.hidden, forward.flop) == (14, 256, 2 * 14 * 1024 * 256)
    assert backward.flop == 2 * forward.flop


def test_a_step_is_longer_where_there_is_more_to_do() -> None:
    for gpu in (A100, H100):
        small, large = (sum(lstm_step_terms(gpu, "float32", hidden).values()) for hidden in (128, 256))
        assert small < large
        assert sum(lstm_step_terms(gpu, "bfloat16", 256).values()) < large


# What tests/gpu does on a GPU, here on the CPU.


@pytest.mark.parametrize("case", select("lstm_layer", "odd sizes") + select("gaussian_kl", "ordinary"), ids=str)
def test_comparisons_of_a_case(case: Case) -> None:
    compare_with_float64(case, torch.float32, "cpu")
    compare_with_float32(case, torch.float16, "cpu")


def test_noise_of_a_shape() -> None:
    assert torch.equal(noise(CPU, torch.float32, 3, 5).flatten(), noise(CPU, torch.float32, 15))


def test_training_steps_repeat() -> None:
    first, again = (trained(CONFIGS["lp"], CPU, 2, graphed=graphed) for graphed in (False, True))
    for a, b in zip(first[0] + first[1], again[0] + again[1], strict=True):
        assert torch.equal(a, b)
    assert first[0][1][0] != first[0][0][0]


def test_rollouts_repeat_and_their_futures_differ() -> None:
    net = make_model(CONFIGS["lp"], CPU)
    video = rollout(net, 3, cuda_graph=False)
    assert torch.equal(rollout(net, 3, cuda_graph=True), video)
    assert not torch.equal(video[0, :, 2:], video[1, :, 2:])
