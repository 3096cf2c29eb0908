"""The command line: one sentence for every mistake, nothing half-written."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from PIL import Image
from tiny_run import CONFIG, TRAINING


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
        (["train", "kth-fp"], "kth needs --data-root, a folder that `svg-fast data convert kth` made"),
        (["train", "smmnist-lp", "--device", "nowhere"], "device must be one that torch can use here, got 'nowhere'"),
        (["train", "smmnist-lp", "--precision", "half"], "'half' is not one of"),
        (["train", "smmnist-lp", "--precision", "bf16", "--device", "cpu"], "precision bf16 needs a GPU"),
        (["train", "smmnist-lp", "--cuda-graph", "--device", "cpu"], "cuda_graph needs a GPU, got device 'cpu'"),
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


def test_every_option_is_taken(tmp_path: Path) -> None:
    options = {**{f.name: f.default for f in fields(CONFIG)}, **{f.name: f.default for f in fields(TRAINING)}}
    options |= {name: value for c in (CONFIG, TRAINING) for name, value in vars(c).items()}
    options |= {"generation_statistics": "running", "time_chunk": 2, "checkpoint_every": 1, "niter": 1, "epoch_size": 1}
    options |= {"data_root": None, "download": False}
    given = []
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            given.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            given += [f"--{option}", str(value)]
    done = svg_fast("train", "smmnist-lp", "--log-dir", str(tmp_path), *given)
    assert done.returncode == 0, done.stderr
    assert "samples: " in done.stdout


@pytest.mark.parametrize("missing", ["click", "tqdm", "tensorboard", "PIL"])
def test_without_the_extra(missing: str) -> None:
    """A plain install has the model; the command line names the extra that it needs."""
    code = f"import sys; sys.modules[{missing!r}] = None; import svg_fast, svg_fast.training; "
    run = "sys.argv[1:] = ['train', 'smmnist-small']; from svg_fast.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code + run], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "pip install 'svg_fast[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_the_papers_options() -> None:
    text = svg_fast("train", "--help").stdout
    for option in ("niter", "epoch-size", "batch-size", "n-past", "n-future", "lr", "beta", "checkpoint-every"):
        assert f"--{option}" in text
    for option in ("data-root", "log-dir", "resume", "precision", "cuda-graph"):
        assert f"--{option}" in text
