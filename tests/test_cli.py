"""The command line: one sentence for every mistake, nothing half-written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


def svg_fast(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "svg_fast", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "smnist-lp"], "unknown preset 'smnist-lp'; did you mean 'smmnist-lp'?"),
        (["train", "smmnist-lp", "--bta", "1"], "--beta"),
        (["train", "smmnist-lp", "--batch-sise", "1"], "--batch-size"),
        (["train", "smmnist-lp", "--n-past", "many"], "'many' is not a valid integer"),
        (["train", "smmnist-lp", "--motion", "circular"], "'circular' is not one of"),
        (["train", "smmnist-lp", "--n-past", "1"], "n_past = 1 leaves the published skip without a frame"),
        (["train", "smmnist-lp", "--data-root", "/nowhere"], "no MNIST train images in /nowhere"),
        (["train", "kth-fp"], "this version trains on smmnist, got a preset of kth"),
        (["trian"], "No such command 'trian'"),
        (["figure", "velocity", "--out", "picture.jpg"], "path must end in .png, got 'picture.jpg'"),
    ],
)
def test_mistakes(arguments: list[str], message: str, tmp_path: Path) -> None:
    log_dir = ["--log-dir", str(tmp_path / "run")] if arguments[0] == "train" else []
    done = svg_fast(*arguments, *log_dir)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_unwritable_log_dir(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    done = svg_fast("train", "smmnist-small", "--log-dir", str(tmp_path / "file" / "run"))
    assert done.returncode == 1
    assert f"cannot write to --log-dir {tmp_path / 'file' / 'run'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "in the way"


def test_figure_velocity(tmp_path: Path) -> None:
    done = svg_fast("figure", "velocity", "--out", str(tmp_path / "velocity.png"))
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "velocity.png") as image:
        assert image.width > image.height
    assert len((tmp_path / "velocity.csv").read_text().splitlines()) == 1 + 9 * 9


def test_help_names_the_papers_options() -> None:
    text = svg_fast("train", "--help").stdout
    for option in ("niter", "epoch-size", "batch-size", "n-past", "n-future", "lr", "beta", "checkpoint-every"):
        assert f"--{option}" in text
    for option in ("data-root", "log-dir", "resume"):
        assert f"--{option}" in text
