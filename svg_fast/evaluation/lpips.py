"""LPIPS (Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric"), version 0.1.

The distance of two frames is that of their features in a network trained on ImageNet, weighted by what people saw. The
weights are the user's files: torchvision's state_dict of the backbone and the linear weights of the lpips package.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .weights import load_into

Net = Literal["alex", "vgg"]

# ImageNet's statistics for frames in [-1, 1], as published
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPS = 1e-10
_PIECE_PIXELS = 2**18  # of frames in the backbone at once: 64 of 64 x 64, for which VGG16 takes 0.4 GB


def _alexnet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )


def _vgg16() -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width, convs in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        if layers:
            layers.append(nn.MaxPool2d(2))
        for _ in range(convs):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers)


class _Backbone(NamedTuple):
    """taps: the layers whose outputs, of so many channels each, are compared. smallest: pixels a side of a frame."""

    name: str
    layers: Callable[[], nn.Sequential]
    taps: dict[int, int]
    smallest: int


_BACKBONES: dict[Net, _Backbone] = {
    "alex": _Backbone("AlexNet", _alexnet, {1: 64, 4: 192, 7: 384, 9: 256, 11: 256}, 31),
    "vgg": _Backbone("VGG16", _vgg16, {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}, 16),
}


class LPIPS(nn.Module):
    """LPIPS with AlexNet or VGG16; `load` makes one with published weights, the constructor one with random weights."""

    shift: Tensor
    scale: Tensor

    def __init__(self, net: Net = "alex") -> None:
        super().__init__()
        if net not in _BACKBONES:
            raise ValueError(f"net must be one of {', '.join(_BACKBONES)}, got {net!r}")
        self.kind = _BACKBONES[net]
        # both are named as in their published files, which count a dropout before each linear layer
        self.backbone = nn.ModuleDict({"features": self.kind.layers()})
        self.linear = nn.ModuleDict(
            {
                f"lin{k}": nn.ModuleDict({"model": nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))})
                for k, width in enumerate(self.kind.taps.values())
            }
        )
        for name, values in (("shift", _SHIFT), ("scale", _SCALE)):
            column = torch.tensor(values, device="cpu").view(3, 1, 1)  # also while `load` builds on the meta device
            self.register_buffer(name, column, persistent=False)

    @classmethod
    def load(cls, backbone_path: str | Path, linear_path: str | Path, net: Net = "alex") -> LPIPS:
        """LPIPS on the CPU with weights from two files.

        Args:
            backbone_path: torchvision's state_dict of alexnet or vgg16 for ImageNet; its classifier is not used.
            linear_path: the lpips package's weights/v0.1/alex.pth or vgg.pth.
            net: "alex" or "vgg".

        Raises:
            OSError, ValueError: as `weights.load_into`.
        """
        with torch.device("meta"):  # no memory, and no draw from the global generator
            model = cls(net)
        name, point = model.kind.name, "point --lpips-weights at it"
        load_into(model.backbone, backbone_path, f"LPIPS needs the state_dict of torchvision's {name}; {point}")
        load_into(model.linear, linear_path, f"LPIPS needs the lpips package's v0.1 weights for {name}; {point}")
        return model

    @torch.no_grad()  # pieces bound memory only where no graph holds on to them
    def forward(self, prediction: Tensor, truth: Tensor) -> Tensor:
        """The distance of each frame of prediction (..., C, H, W) to truth's: (...), zero for equal frames.

        Args:
            prediction: floats in [0, 1], with 1 or 3 channels; on any device, as is truth.
            truth: the same C, H, W; its leading dimensions broadcast to prediction's. Where it is shared along the
                first of them, such as samples, its features are computed once.

        Raises:
            ValueError: for other shapes or types, or frames too small: AlexNet wants 31 x 31 pixels, VGG16 16 x 16.
        """
        own = self._check(prediction, truth)
        lead, frame = prediction.shape[:-3], prediction.shape[-3:]
        shared = next((k for k, size in enumerate(own) if size != 1), len(own))
        samples, frames = prod(lead[:shared]), prod(lead[shared:])
        x = prediction.reshape(samples, frames, *frame)
        y = truth.reshape(*own[shared:], *frame).expand(*lead[shared:], *frame).reshape(frames, *frame)
        at_once = max(1, _PIECE_PIXELS // (frame[1] * frame[2]))
        n = max(1, min(frames, at_once))
        s = max(1, at_once // n)
        distance = torch.empty(samples, frames, dtype=self.shift.dtype, device=prediction.device)
        for j in range(0, frames, n):
            features = self._features(y[j : j + n])
            for i in range(0, samples, s):
                distance[i : i + s, j : j + n] = self._distance(x[i : i + s, j : j + n], features)
        return distance.view(lead)

    def _check(self, prediction: Tensor, truth: Tensor) -> tuple[int, ...]:
        """Truth's leading dimensions, as many as prediction's; the errors of `forward`."""
        smallest = self.kind.smallest
        for name, x in (("prediction", prediction), ("truth", truth)):
            if x.dim() < 3 or x.shape[-3] not in (1, 3) or min(x.shape[-2:]) < smallest or not x.is_floating_point():
                wanted = f"floats (..., 1 or 3, H, W) with H, W of at least {smallest} for {self.kind.name}"
                raise ValueError(f"{name} must be {wanted}, got {x.dtype} of shape {list(x.shape)}")
        own = (1,) * (prediction.dim() - truth.dim()) + truth.shape
        fits = len(own) == prediction.dim() and own[-3:] == prediction.shape[-3:]
        if not fits or any(a not in (1, b) for a, b in zip(own, prediction.shape, strict=True)):
            wanted = f"broadcast to prediction's {list(prediction.shape)} along its leading dimensions"
            raise ValueError(f"truth must {wanted}, got {list(truth.shape)}")
        return own[:-3]

    def _features(self, frames: Tensor) -> list[Tensor]:
        """Frames (N, C, H, W) in [0, 1] -> of each tap a map (N, width, h, w) of unit vectors along the channels."""
        x = (2 * frames.to(self.shift) - 1 - self.shift) / self.scale  # a grey frame becomes three channels here
        maps = []
        for k, layer in enumerate(cast(nn.Sequential, self.backbone["features"])):
            x = layer(x)
            if k in self.kind.taps:
                maps.append(x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + _EPS))
        return maps

    def _distance(self, frames: Tensor, truth: list[Tensor]) -> Tensor:
        """Frames (S, N, C, H, W) and the features of N frames -> (S, N)."""
        lead = frames.shape[:2]
        total = self.shift.new_zeros(lead)
        for ours, theirs, weight in zip(
            self._features(frames.flatten(0, 1)), truth, self.linear.parameters(), strict=True
        ):
            difference = (ours.unflatten(0, lead) - theirs).square().flatten(0, 1)
            total += F.conv2d(difference, weight).mean((1, 2, 3)).unflatten(0, lead)
        return total
