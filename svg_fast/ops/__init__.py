"""The ops of the library: public functions over `torch.ops.svg_fast`, each with a gradient and a shape function."""

from .batch_norm_act import batch_norm_act, update_running_statistics
from .frame_conv import frame_conv
from .frame_scores import frame_scores
from .gaussian import gaussian_kl, gaussian_rsample, gaussian_rsample_kl
from .lstm import lstm_layer, lstm_step
from .lstm_net import lstm_net_step
from .moving_mnist import moving_mnist_clips

__all__ = [
    "batch_norm_act",
    "frame_conv",
    "frame_scores",
    "gaussian_kl",
    "gaussian_rsample",
    "gaussian_rsample_kl",
    "lstm_layer",
    "lstm_net_step",
    "lstm_step",
    "moving_mnist_clips",
    "update_running_statistics",
]
