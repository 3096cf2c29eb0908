"""Data sets of the paper."""

from .digits import download_mnist, load_digits
from .moving_mnist import Clips, MovingMNIST
from .published import BAIR, KTH
from .shards import Shards
from .stream import SharedBatches
from .velocity import velocity_probabilities
from .video_shards import VideoClips, VideoShards

__all__ = [
    "BAIR",
    "KTH",
    "Clips",
    "MovingMNIST",
    "Shards",
    "SharedBatches",
    "VideoClips",
    "VideoShards",
    "download_mnist",
    "load_digits",
    "velocity_probabilities",
]
