"""A run small enough for tests, and the command line that starts it in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from svg_fast import SVG, SVGConfig
from svg_fast.training import TrainConfig, checkpoint

CONFIG = SVGConfig(nf=2, g_dim=4, z_dim=2, rnn_size=4, n_past=2, n_future=2)
TRAINING = TrainConfig(
    niter=2,
    epoch_size=6,
    batch_size=2,
    n_eval=4,
    n_samples=2,
    checkpoint_every=2,
    num_digits=1,
    threads=1,
    device="cpu",
)


def command(log_dir: Path, *extra: str) -> list[str]:
    """`python -m svg_fast train` with the settings of CONFIG and TRAINING."""
    settings = {
        **{name: getattr(CONFIG, name) for name in ("nf", "g_dim", "z_dim", "rnn_size", "n_past", "n_future")},
        **{name: getattr(TRAINING, name) for name in ("niter", "epoch_size", "batch_size", "n_eval", "n_samples")},
        **{name: getattr(TRAINING, name) for name in ("checkpoint_every", "num_digits", "threads", "device")},
    }
    options = [part for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, "-m", "svg_fast", "train", "smmnist-lp", "--log-dir", str(log_dir), *options, *extra]


def run(log_dir: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(log_dir, *extra), capture_output=True, text=True, timeout=300, check=False)


def save(
    folder: Path,
    step: int,
    model: SVG,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    training: TrainConfig,
    origin: int,
) -> Path:
    """A checkpoint of these parts."""
    tensors = checkpoint.snapshot(model, optimizer, generator)
    return checkpoint.write(folder, checkpoint.Checkpoint(step, model.config, training, origin, tensors), training.keep)
