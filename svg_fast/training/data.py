"""The data set that a run's settings name."""

from __future__ import annotations

from torch import Tensor

from ..data import MovingMNIST, load_digits
from ..data.digits import Split
from ..models import SVGConfig
from .config import TrainConfig


def moving_mnist(config: SVGConfig, training: TrainConfig, split: Split, n_frames: int) -> tuple[MovingMNIST, Tensor]:
    """SM-MNIST clips of a split, and its digits; test clips have other digits and another seed.

    Raises ValueError for settings of another data set, FileNotFoundError or ImportError where there are no digits.
    """
    if training.dataset != "smmnist":
        raise ValueError(f"this version trains on smmnist, got a preset of {training.dataset}")
    if config.channels != 1:
        raise ValueError(f"SM-MNIST has one channel, got channels = {config.channels}")
    digits = load_digits(training.data_root, split)
    clips = MovingMNIST(
        digits,
        n_frames,
        num_digits=training.num_digits,
        image_size=config.image_size,
        motion=training.motion,
        seed=training.seed + (split == "test"),
        length=2**62,
    )
    return clips, digits
