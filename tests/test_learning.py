"""A very small SVG-LP learns, in half a minute, what a digit does next: a fault that only training shows."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from svg_fast import SVG, SVGConfig
from svg_fast.training import TrainConfig, load_model, train
from svg_fast.training.data import make_clips

CONFIG = SVGConfig(
    nf=8, g_dim=32, rnn_size=64, n_past=3, n_future=5, last_frame_skip=True, generation_statistics="running"
)
TRAINING = TrainConfig(
    niter=1,
    epoch_size=500,
    batch_size=8,
    num_digits=1,
    lr=4e-3,
    lr_schedule="cosine",
    beta_schedule="warmup",
    beta_warmup=400,
    validate=64,
    n_eval=8,
    n_samples=2,
    threads=1,
    device="cpu",
)
STEPS = CONFIG.n_past + CONFIG.n_future - 1
# A run ends at 0.061 (0.0082 a step, and 0.4 nats of KL); copying each frame as the next one costs 0.105.
LOSS = 0.07


class Learned(NamedTuple):
    model: SVG
    log_dir: Path
    frames: Tensor  # (B, T, 1, 64, 64), of test digits


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    log_dir = tmp_path_factory.mktemp("learned")
    train(CONFIG, TRAINING, log_dir)
    model = load_model(max((log_dir / "checkpoints").glob("*.safetensors")))
    clips = make_clips(CONFIG, TRAINING, "test", STEPS + 1).clips(range(64))
    return Learned(model, log_dir, model.prepare_frames(clips.frames))


def squared_error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean())


def test_the_loss_is_reached(learned: Learned) -> None:
    step, loss, *_, kl = np.loadtxt(learned.log_dir / "validation.csv", delimiter=",", skiprows=1)
    assert step == TRAINING.epoch_size
    assert loss < LOSS
    assert 0.05 < kl < 10  # nats a step: the latents say something of the frame, and not all of it


@torch.no_grad()
def test_the_next_frame_is_better_than_a_copy_of_the_last(learned: Learned) -> None:
    out, frames = learned.model(learned.frames), learned.frames
    error = float(out.mse_per_step[1:].mean())  # nobody knows the velocity at the first
    assert error < 0.75 * squared_error(frames[:, 1:-1], frames[:, 2:])


def test_futures_are_better_than_a_standing_digit_or_none(learned: Learned) -> None:
    n_past, frames = CONFIG.n_past, learned.frames
    future = learned.model.sample(frames[:, :n_past], CONFIG.n_future, n_samples=8, seed=1)[:, :, n_past:]
    error = squared_error(future, frames[:, n_past:].expand_as(future))
    assert error < 0.8 * squared_error(frames[:, n_past - 1 : n_past].expand_as(frames[:, n_past:]), frames[:, n_past:])
    assert error < 0.9 * squared_error(torch.zeros(()), frames[:, n_past:])
