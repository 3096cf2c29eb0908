"""The data set that a run's settings name."""

from __future__ import annotations

from typing import Literal

from ..data import BAIR, KTH, MovingMNIST, VideoShards, download_mnist, load_digits
from ..models import SVGConfig
from .config import TrainConfig

ClipData = MovingMNIST | VideoShards

Part = Literal["train", "validation", "test"]

_ENDLESS = 2**62
SEEDS = {"train": 0, "test": 1, "validation": 2}  # of SM-MNIST's parts, added to the run's
_SHARDS: dict[str, type[VideoShards]] = {"kth": KTH, "bair": BAIR, "videos": VideoShards}


def make_clips(config: SVGConfig, training: TrainConfig, part: Part, n_frames: int) -> ClipData:
    """Clips of a part: endless training clips, or those of validation and test, which for shards are the same for every
    seed. SM-MNIST's are endless too: with seeds of their own, and other digits for the test.

    Raises ValueError for data that do not fit the model, FileNotFoundError or ImportError where there are none.
    """
    if training.dataset == "smmnist":
        return _moving_mnist(config, training, part, n_frames)
    if training.data_root is None:
        raise ValueError(
            f"{training.dataset} needs --data-root, a folder that `svg-fast data convert {training.dataset}` made"
        )
    clips = _SHARDS[training.dataset](
        training.data_root,
        "test" if part == "test" else "train",
        n_frames,
        hold_out=0.0 if part == "test" else training.hold_out,
        held_out=part == "validation",
        sampling=training.sampling,
        starts=training.starts,
        mirror=training.mirror,
        seed=training.seed if part == "train" else 0,
        length=_ENDLESS if part == "train" else None,
    )
    wanted = (config.image_size, config.image_size, config.channels)
    if clips.shards.shape != wanted:
        raise ValueError(
            f"the model wants frames of (height, width, channels) = {wanted}, got {clips.shards.shape} in"
            f" {training.data_root}: set --image-size and --channels to fit, or convert again"
        )
    return clips


def _moving_mnist(config: SVGConfig, training: TrainConfig, part: Part, n_frames: int) -> MovingMNIST:
    if config.channels != 1:
        raise ValueError(f"SM-MNIST has one channel, got channels = {config.channels}")
    if training.download and training.data_root is not None:
        download_mnist(training.data_root)
    return MovingMNIST(
        load_digits(training.data_root, "test" if part == "test" else "train"),
        n_frames,
        num_digits=training.num_digits,
        image_size=config.image_size,
        motion=training.motion,
        seed=training.seed + SEEDS[part],
        length=_ENDLESS,
    )
