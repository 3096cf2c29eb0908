"""Data sets of the paper."""

from .digits import download_mnist, load_digits
from .moving_mnist import Clips, MovingMNIST
from .velocity import velocity_probabilities

__all__ = ["Clips", "MovingMNIST", "download_mnist", "load_digits", "velocity_probabilities"]
