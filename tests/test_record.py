"""run.json, `svg-fast runs` and trackers: what is kept of a run, also where files are damaged or git is not there."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tiny_run import CONFIG, TRAINING

from svg_fast.cli import cli
from svg_fast.training import record
from svg_fast.training.record import git_state, load_record, recorded, update_record, write_record
from svg_fast.training.trackers import make_tracker


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(["git", "-C", str(folder), *author, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "a b.py").write_text("x = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "first")
    return folder


def test_an_entry_holds_what_a_repetition_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_NOT_LISTED", "secret")
    training = replace(TRAINING, data_root=tmp_path / "data")
    command = ["svg-fast", "train", "smmnist-lp", "--data-root", "with a space"]
    write_record(tmp_path, CONFIG, training, preset="smmnist-lp", command=command)
    (entry,) = load_record(tmp_path)
    assert entry["config"] == asdict(CONFIG)
    assert entry["training"] == {**asdict(training), "data_root": str(tmp_path / "data")}
    assert entry["command"] == "svg-fast train smmnist-lp --data-root 'with a space'"
    assert entry["environment"] == {"SLURM_JOB_ID": "77"}
    assert (entry["status"], entry["preset"], entry["seed"], entry["processes"]) == ("running", "smmnist-lp", 1, 1)
    assert entry["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert "secret" not in (tmp_path / "run.json").read_text()


def test_a_resumed_run_appends_and_the_first_start_is_never_lost(tmp_path: Path) -> None:
    for first in range(record.MAX_STARTS + 5):
        write_record(tmp_path, CONFIG, TRAINING, first=first)
    firsts = [entry["first_step"] for entry in load_record(tmp_path)]
    assert firsts == [0, *range(6, record.MAX_STARTS + 5)]


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "finished"), (KeyboardInterrupt(), "interrupted"), (MemoryError("too big"), "failed")],
    ids=["finished", "interrupted", "failed"],
)
def test_how_a_run_ends(error: BaseException | None, status: str, tmp_path: Path) -> None:
    def go() -> None:
        with recorded(tmp_path, CONFIG, TRAINING, first=3) as progress:
            assert load_record(tmp_path)[-1]["status"] == "running"
            progress.step, progress.clips_per_second = 9, 12.5
            if error is not None:
                raise error

    if error is None:
        go()
    else:
        with pytest.raises(type(error)):
            go()
    (entry,) = load_record(tmp_path)
    assert (entry["status"], entry["first_step"], entry["step"], entry["clips_per_second"]) == (status, 3, 9, 12.5)
    assert entry.get("error") == (None if error is None else {"class": type(error).__name__, "message": str(error)})


def test_git_state(checkout: Path, tmp_path: Path) -> None:
    head = git(checkout, "rev-parse", "HEAD").strip()
    (checkout / "not under version control").write_text("")
    assert git_state(checkout) == {"commit": head, "dirty": False, "changed": []}
    (checkout / "a b.py").write_text("x = 2\n")
    assert git_state(checkout) == {"commit": head, "dirty": True, "changed": ["a b.py"]}
    (tmp_path / "plain").mkdir()
    assert git_state(tmp_path / "plain") is None


def test_the_working_directory_is_that_of_the_command(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout)
    write_record(tmp_path, CONFIG, TRAINING)
    assert load_record(tmp_path)[0]["git"]["working_directory"] == git_state(checkout)


def test_without_git(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("PATH", str(tmp_path))
    write_record(tmp_path, CONFIG, TRAINING)
    assert load_record(tmp_path)[0]["git"] == {"working_directory": None, "svg_fast": None}


def test_a_git_that_hangs(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "git").write_text("#!/bin/sh\nexec /bin/sleep 60\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(record, "_GIT_SECONDS", 0.2)
    began = time.monotonic()
    assert git_state(checkout) is None
    assert time.monotonic() - began < 30


def test_a_record_that_cannot_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with recorded(tmp_path / "missing", CONFIG, TRAINING) as progress:
        progress.step = 1
    assert "cannot write" in caplog.text
    assert not (tmp_path / "missing").exists()


def damage(**changes: object) -> str:
    start = {"status": "running", "step": 0, "started": "2026-01-02T03:04:05+00:00"}
    return json.dumps({"format": "svg_fast.run", "version": 1, "starts": [start | changes]})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        '{"format": "svg_fast.run", "version": 2, "starts": [{}]}',
        '{"format": "svg_fast.run", "version": 1, "starts": []}',
        '{"format": "svg_fast.run", "version": 1, "starts": [7]}',
        damage(status="\x1b[2J"),
        damage(step=10**30),
        damage(step=2.5),
        damage(started="yesterday"),
        damage(started="0001-01-01T00:00:00+23:00"),
        " " * 2**23 + "{}",
    ],
    ids=lambda content: content[:60],
)
def test_a_damaged_record(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(ValueError, match="is not a record of a run up to version 1"):
        load_record(tmp_path)
    shown = runs(tmp_path)
    assert (shown.exit_code, "cannot read: " in shown.stdout) == (0, True)
    write_record(tmp_path, CONFIG, TRAINING)
    assert "a new one takes its place" in caplog.text
    assert len(load_record(tmp_path)) == 1


def runs(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["runs", str(folder), *options])


def found(folder: Path, *options: str) -> list[dict[str, Any]]:
    done = runs(folder, "--json", *options)
    assert done.exit_code == 0, done.stderr
    listed: list[dict[str, Any]] = json.loads(done.stdout)
    return listed


def add_run(path: Path, losses: Callable[[int], float] = float, steps: int = 8, status: str = "finished") -> None:
    path.mkdir(parents=True)
    write_record(path, CONFIG, TRAINING, preset="smmnist-lp")
    rows = "".join(f"{step},{losses(step)},{2 * losses(step)},{3 * losses(step)}\n" for step in range(1, steps + 1))
    (path / "losses.csv").write_text("step,loss,mse,kl\n" + rows)
    update_record(path, status, steps, clips_per_second=99.0)  # type: ignore[arg-type]


def test_runs_reports_means_of_the_last_rows(tmp_path: Path) -> None:
    """Of a file far larger than what is read of it, whose last row is being written."""
    add_run(tmp_path / "runs" / "long", steps=20_000, status="running")
    with (tmp_path / "runs" / "long" / "losses.csv").open("a") as file:
        file.write("20001,1")
    (tmp_path / "runs" / "long" / "validation.csv").write_text("step,elbo,mse\n6,-20.5,1\n12,nan,1\n18,-30,1\n")
    (run,) = found(tmp_path / "runs")
    mean = sum(range(19_951, 20_001)) / 50
    assert (run["loss"], run["mse"], run["kl"]) == (mean, 2 * mean, 3 * mean)
    assert (run["step"], run["total"], run["epoch"], run["niter"]) == (20_000, 12, 20_000 // 6, 2)
    assert (run["name"], run["preset"], run["variant"], run["dataset"]) == ("long", "smmnist-lp", "lp", "smmnist")
    assert (run["best_elbo"], run["clips_per_second"], run["state"]) == (-20.5, 99.0, "running")
    assert run["problems"] == []


def test_runs_are_found_at_any_depth_but_not_through_links(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    add_run(tmp_path / "elsewhere")
    add_run(folder / "sweep" / "one")
    (folder / "old").mkdir()
    (folder / "old" / "losses.csv").write_text("step,loss,mse,kl\n1,0.5,0.25,nan\n")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "one linked file").mkdir()
    (folder / "one linked file" / "losses.csv").symlink_to(tmp_path / "elsewhere" / "losses.csv")
    (folder / "loop").symlink_to(folder)
    assert [run["name"] for run in found(folder, "--sort", "name")] == ["old", "sweep/one"]
    old = found(folder, "--sort", "name")[0]
    assert (old["step"], old["loss"], old["kl"], old["state"]) == (1, 0.5, None, None)
    assert [run["name"] for run in found(folder / "old")] == ["old"]


def test_no_more_runs_than_a_reader_can_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svg_fast.cli.runs._MAX_RUNS", 2)
    for name in "abc":
        add_run(tmp_path / name)
    done = runs(tmp_path, "--sort", "name")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["run", "a", "b"]
    assert "these are only the first 2 runs" in done.stderr


def test_order(tmp_path: Path) -> None:
    for name, loss, started in (("a", 3.0, "02"), ("b", 1.0, "03"), ("c", float("nan"), "01"), ("d", 2.0, "04")):
        add_run(tmp_path / name, lambda _, loss=loss: loss)  # type: ignore[misc]
        content = json.loads((tmp_path / name / "run.json").read_text())
        content["starts"][0]["started"] = f"2026-01-{started}T00:00:00+00:00"
        (tmp_path / name / "run.json").write_text(json.dumps(content))
    for order, names in {"name": "abcd", "loss": "bdac", "started": "dbac"}.items():
        assert "".join(run["name"] for run in found(tmp_path, "--sort", order)) == names


def test_a_running_run_without_a_sign_of_life(tmp_path: Path) -> None:
    for name, minutes in (("alive", 5), ("dead", 60)):
        add_run(tmp_path / name, status="running")
        for path in (tmp_path / name).iterdir():
            os.utime(path, (time.time() - 60 * minutes,) * 2)
    os.utime(tmp_path / "alive" / "run.json", (0, 0))
    assert {run["name"]: run["state"] for run in found(tmp_path)} == {"alive": "running", "dead": "stopped?"}


def test_the_table_fits_and_shows_no_control_characters(tmp_path: Path) -> None:
    add_run(tmp_path / ("deep/" + "x" * 150), losses=lambda step: 1.2345678e-5 * step)
    (tmp_path / "deep" / "\x1b[2Jevil").mkdir()
    (tmp_path / "deep" / "\x1b[2Jevil" / "losses.csv").write_text("step,loss,mse,kl\n1,1,1,1\n2,x\n3,2,2,2\n")
    add_run(tmp_path / "failed")
    update_record(tmp_path / "failed", "failed", 7, error=ValueError("no more\nspace " * 40))
    done = runs(tmp_path, "--sort", "name")
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["run", "model", "step", "epoch", "loss", "mse", "kl", "clips/s", "state", "started"]
    assert max(map(len, [header, *lines[:3]])) <= 120
    assert "\x1b" not in done.stdout
    assert any(line.startswith("failed failed: ValueError: no more\\nspace") for line in lines)
    assert any("losses.csv has 1 damaged rows among its last 3" in line for line in lines)
    evil = next(run for run in found(tmp_path) if "evil" in run["name"])
    assert (evil["step"], evil["loss"]) == (3, 1.5)


def test_nothing_to_show(tmp_path: Path) -> None:
    assert runs(tmp_path).stdout == f"no runs below {tmp_path}\n"
    assert found(tmp_path) == []
    missing = runs(tmp_path / "missing")
    assert isinstance(missing.exception, ValueError)
    assert "FOLDER must be a folder with runs, got" in str(missing.exception)


class Toy:
    """A tracker that writes to the run's folder; it fails at step 3."""

    def __init__(self, log_dir: Path, config: dict[str, Any]) -> None:
        self.file = (log_dir / "toy.txt").open("w")
        self.file.write(f"beta {config['beta']}\n")

    def log(self, step: int, scalars: dict[str, float]) -> None:
        if step == 3:
            raise ConnectionError("no network")
        self.file.write(f"{step} {scalars}\n")
        self.file.flush()

    def close(self) -> None:
        self.file.write("closed\n")
        self.file.close()


def test_a_tracker_of_the_users_own(tmp_path: Path) -> None:
    tracker = make_tracker(f"{__name__}:Toy", tmp_path, {"beta": 0.5})
    tracker.log(1, {"train/loss": 2.0})
    tracker.close()
    assert (tmp_path / "toy.txt").read_text() == "beta 0.5\n1 {'train/loss': 2.0}\nclosed\n"


def test_a_tracker_that_fails_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = make_tracker(f"{__name__}:Toy", tmp_path, {"beta": 0.5})
    with caplog.at_level(logging.WARNING):
        for step in (2, 3, 4):
            tracker.log(step, {})
    assert (tmp_path / "toy.txt").read_text() == "beta 0.5\n2 {}\n"
    assert caplog.text.count("gets nothing more of this run (ConnectionError: no network)") == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wandb", "must be \"module:function\", got 'wandb'"),
        (":make", 'must be "module:function"'),
        (f"{__name__}:nothing", "has no 'nothing'"),
        ("operator:is_", "must return an object with log and close, got bool"),
    ],
)
def test_what_is_no_tracker(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_tracker(name, tmp_path, {})


def test_a_tracker_of_a_module_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        make_tracker("no_such_module:make", tmp_path, {})
