"""The data set that a run's settings name."""

from __future__ import annotations

from ..data import BAIR, KTH, MovingMNIST, VideoShards, download_mnist, load_digits
from ..data.digits import Split
from ..models import SVGConfig
from .config import TrainConfig

ClipData = MovingMNIST | VideoShards

_ENDLESS = 2**62
_SHARDS: dict[str, type[VideoShards]] = {"kth": KTH, "bair": BAIR, "videos": VideoShards}


def make_clips(config: SVGConfig, training: TrainConfig, split: Split, n_frames: int) -> ClipData:
    """Clips of a split: endless training clips, or the test clips, which are the same for every seed of shards.

    SM-MNIST's test clips are endless too: made of other digits, with another seed.

    Raises ValueError for data that do not fit the model, FileNotFoundError or ImportError where there are none.
    """
    if training.dataset == "smmnist":
        return _moving_mnist(config, training, split, n_frames)
    if training.data_root is None:
        raise ValueError(
            f"{training.dataset} needs --data-root, a folder that `svg-fast data convert {training.dataset}` made"
        )
    clips = _SHARDS[training.dataset](
        training.data_root,
        split,
        n_frames,
        sampling=training.sampling,
        starts=training.starts,
        mirror=training.mirror,
        seed=training.seed if split == "train" else 0,
        length=_ENDLESS if split == "train" else None,
    )
    wanted = (config.image_size, config.image_size, config.channels)
    if clips.shards.shape != wanted:
        raise ValueError(
            f"the model wants frames of (height, width, channels) = {wanted}, got {clips.shards.shape} in"
            f" {training.data_root}: set --image-size and --channels to fit, or convert again"
        )
    return clips


def _moving_mnist(config: SVGConfig, training: TrainConfig, split: Split, n_frames: int) -> MovingMNIST:
    if config.channels != 1:
        raise ValueError(f"SM-MNIST has one channel, got channels = {config.channels}")
    if training.download and training.data_root is not None:
        download_mnist(training.data_root)
    return MovingMNIST(
        load_digits(training.data_root, split),
        n_frames,
        num_digits=training.num_digits,
        image_size=config.image_size,
        motion=training.motion,
        seed=training.seed + (split == "test"),
        length=_ENDLESS,
    )
