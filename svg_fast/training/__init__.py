"""Training: the loop, its settings, checkpoints."""

from .checkpoint import CheckpointError, load_model
from .config import TrainConfig, training_preset
from .loop import NonFiniteLoss, train
from .signals import Interrupted

__all__ = ["CheckpointError", "Interrupted", "NonFiniteLoss", "TrainConfig", "load_model", "train", "training_preset"]
