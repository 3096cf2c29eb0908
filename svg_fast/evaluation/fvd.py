"""FVD, the Frechet Video Distance (Unterthiner et al. 2018), with the I3D network (Carreira & Zisserman 2017).

The published protocol: whole videos of T frames, stretched bilinearly to 224 x 224 pixels and scaled to [-1, 1], give
the 400 logits of the Kinetics-400 RGB network, averaged over time; FVD is the Frechet distance of two Gaussians that
have the means and unbiased covariances of two sets of N videos. It depends on T, and for small N on N: compare equal
ones alone. Published implementations differ in details. Here, as in the PyTorch ones, resizing aligns the edges of
frames (TensorFlow 1's aligned the centres of their first pixels) and frames are not rounded to 8 bits; BatchNorm's eps
is the 1e-3 of I3D's training, which some copies replace by 1e-5.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .weights import load_into

N_FEATURES = 400
MIN_FRAMES = 9  # I3D divides time by 8, rounding up, and averages windows of 2
_SIDE = 224
_BATCH_NORM_EPS = 1e-3
_PIECE_PIXELS = 32 * _SIDE**2  # of videos in I3D at once: one of 32 frames, which takes 0.2 GB

Triple = tuple[int, int, int]


def _same(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """x (N, C, T, H, W), padded by zeros to ceil(size / stride) outputs; the odd one comes last (TensorFlow's "same").

    Zeros serve pooling too: what is pooled comes from a ReLU.
    """
    padding: list[int] = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        padding = [total // 2, total - total // 2, *padding]  # F.pad begins with the last dimension
    return F.pad(x, padding)


class _Unit(nn.Module):
    """Convolution, BatchNorm, ReLU."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv3d = nn.Conv3d(channels, width, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(width, eps=_BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv3d(_same(x, self.kernel, self.stride))).relu()


class _Pool(nn.Module):
    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(_same(x, self.kernel, self.stride), self.kernel, self.stride)


class _Mixed(nn.Module):
    """An Inception block of four branches: 1, 1 then 3, 1 then 3, and pooling then 1; the numbers are widths."""

    def __init__(self, channels: int, b0: int, b1: tuple[int, int], b2: tuple[int, int], b3: int) -> None:
        super().__init__()
        self.b0 = _Unit(channels, b0, 1)
        self.b1a, self.b1b = _Unit(channels, b1[0], 1), _Unit(*b1, 3)
        self.b2a, self.b2b = _Unit(channels, b2[0], 1), _Unit(*b2, 3)
        self.b3a, self.b3b = _Pool((3, 3, 3), (1, 1, 1)), _Unit(channels, b3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))), dim=1)


class _Logits(nn.Module):
    """The mean over the map and each two time steps, its logits, and their mean over time."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels, N_FEATURES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3d(F.avg_pool3d(x, (2, *x.shape[3:]), stride=1)).mean((2, 3, 4))


class I3D(nn.Sequential):
    """I3D for RGB and Kinetics-400, for inference: videos (N, 3, T, H, W) in [-1, 1] -> logits (N, 400).

    Parameters are named as in the PyTorch ports. `load` makes one with published weights, the constructor one with
    random weights.
    """

    def __init__(self) -> None:
        layers: dict[str, nn.Module] = {
            "Conv3d_1a_7x7": _Unit(3, 64, 7, stride=2),
            "MaxPool3d_2a_3x3": _Pool((1, 3, 3), (1, 2, 2)),
            "Conv3d_2b_1x1": _Unit(64, 64, 1),
            "Conv3d_2c_3x3": _Unit(64, 192, 3),
            "MaxPool3d_3a_3x3": _Pool((1, 3, 3), (1, 2, 2)),
            "Mixed_3b": _Mixed(192, 64, (96, 128), (16, 32), 32),
            "Mixed_3c": _Mixed(256, 128, (128, 192), (32, 96), 64),
            "MaxPool3d_4a_3x3": _Pool((3, 3, 3), (2, 2, 2)),
            "Mixed_4b": _Mixed(480, 192, (96, 208), (16, 48), 64),
            "Mixed_4c": _Mixed(512, 160, (112, 224), (24, 64), 64),
            "Mixed_4d": _Mixed(512, 128, (128, 256), (24, 64), 64),
            "Mixed_4e": _Mixed(512, 112, (144, 288), (32, 64), 64),
            "Mixed_4f": _Mixed(528, 256, (160, 320), (32, 128), 128),
            "MaxPool3d_5a_2x2": _Pool((2, 2, 2), (2, 2, 2)),
            "Mixed_5b": _Mixed(832, 256, (160, 320), (32, 128), 128),
            "Mixed_5c": _Mixed(832, 384, (192, 384), (48, 128), 128),
            "logits": _Logits(1024),
        }
        super().__init__(OrderedDict(layers))
        self.eval()

    @classmethod
    def load(cls, path: str | Path) -> I3D:
        """I3D on the CPU with the weights of a file: a PyTorch port's state_dict for RGB, such as rgb_imagenet.pt or
        i3d_pretrained_400.pt.

        Raises:
            OSError, ValueError: as `weights.load_into`.
        """
        with torch.device("meta"):  # no memory, and no draw from the global generator
            model = cls()
        ports = "pytorch-i3d's rgb_imagenet.pt or VideoGPT's i3d_pretrained_400.pt"
        load_into(model, path, f"FVD needs I3D's state_dict, {ports}; point --fvd-weights at it")
        return model

    @torch.no_grad()  # pieces bound memory only where no graph holds on to them
    def features(self, videos: Tensor, side: int = _SIDE) -> Tensor:
        """What FVD compares: videos (N, T, C, H, W) -> (N, 400), in the type and on the device of the weights.

        Args:
            videos: floats in [0, 1], with 1 or 3 channels and at least 9 frames; on any device.
            side: pixels that frames are resized to; FVD is defined for 224 alone.

        Raises:
            ValueError: for videos of another shape or type, or too short.
        """
        if videos.dim() != 5 or videos.shape[2] not in (1, 3) or not videos.is_floating_point():
            got = f"{videos.dtype} of shape {list(videos.shape)}"
            raise ValueError(f"videos must be floats (N, T, 1 or 3, H, W), got {got}")
        n_frames = videos.shape[1]
        if n_frames < MIN_FRAMES:
            raise ValueError(f"FVD needs videos of at least {MIN_FRAMES} frames, got {n_frames}")
        weight = next(self.parameters())
        pieces = []
        for piece in videos.split(max(1, _PIECE_PIXELS // (n_frames * side**2))):
            x = piece.flatten(0, 1).to(weight)
            x = 2 * F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False) - 1
            pieces.append(self(x.unflatten(0, piece.shape[:2]).transpose(1, 2).expand(-1, 3, -1, -1, -1)))
        return torch.cat(pieces)


class GaussianStatistics:
    """Count, mean (D,) and covariance (D, D) of features that come in chunks, in float64 on the CPU."""

    def __init__(self, n_features: int = N_FEATURES) -> None:
        self.count = 0
        self.mean = torch.zeros(n_features, dtype=torch.float64)
        self._scatter = torch.zeros(n_features, n_features, dtype=torch.float64)  # sum of (x - mean)(x - mean)^T

    def update(self, features: Tensor) -> None:
        """Add features (N, D). The order and size of chunks matter to rounding alone (Chan et al. 1983).

        Raises ValueError for another D and for features that are not finite, and then adds none.
        """
        if features.dim() != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features must be (N, {len(self.mean)}), got {list(features.shape)}")
        if not len(features):
            return
        x = features.detach().to(self.mean)
        if not x.isfinite().all():
            raise ValueError(
                "features must be finite, got some that are not: their videos may hold values that are not"
            )
        mean = x.mean(0)
        step = mean - self.mean
        total = self.count + len(x)
        self._scatter += (x - mean).T @ (x - mean) + step.outer(step) * (self.count * len(x) / total)
        self.mean += step * (len(x) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """Unbiased; ValueError for fewer than two videos."""
        if self.count < 2:
            raise ValueError(f"FVD needs at least 2 videos in each set, got {self.count}")
        return self._scatter / (self.count - 1)


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """|m_a - m_b|^2 + Tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the squared distance of two Gaussians.

    With C_a = A A^T and C_b = B B^T the last trace is the sum of the singular values of A^T B: nothing is squared on
    the way, so that covariances of few videos, which are singular, cost no digits.

    Raises ValueError for fewer than two videos.
    """
    covariances = a.covariance, b.covariance
    root_a, root_b = map(_root, covariances)
    cross = torch.linalg.svdvals(root_a.T @ root_b).sum()
    trace = sum(c.trace() for c in covariances) - 2 * cross
    return max(float((a.mean - b.mean).square().sum() + trace), 0.0)


def _root(covariance: Tensor) -> Tensor:
    """A with A A^T = C; eigenvalues that are zero but for rounding are zero."""
    values, vectors = torch.linalg.eigh(covariance)
    rounding = torch.finfo(values.dtype).eps * len(values) * values[-1]
    return vectors * values.where(values > rounding, 0).sqrt()
