"""The vgg encoder and decoder: 3 x 3 convolutions, max pooling on the way down, nearest upsampling on the way up."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from .frame_network import ConvNorm, FrameDecoder, FrameEncoder, StepStatistics, Weights


def _stage(*widths: int) -> nn.Sequential:
    """3 x 3 blocks from widths[0] channels through to widths[-1]."""
    return nn.Sequential(*(ConvNorm(nn.Conv2d(a, b, 3, padding=1)) for a, b in pairwise(widths)))


class Encoder(FrameEncoder):
    """Stages `c{k}.{j}.main`; skips are taken before pooling. Any base width, 64 or 128 pixels."""

    def __init__(self, channels: int, g_dim: int, nf: int = 64, image_size: int = 64) -> None:
        a, b, c, d = nf, 2 * nf, 4 * nf, 8 * nf
        stages = [_stage(channels, a, a), _stage(a, b, b), _stage(b, c, c, c), _stage(c, d, d, d)]
        if image_size == 128:
            stages.append(_stage(d, d, d, d))
        super().__init__(stages, d, g_dim)

    def run_stage(self, k: int, x: Tensor, weights: Weights, steps: int, statistics: StepStatistics | None) -> Tensor:
        if k > 1:
            x = F.max_pool2d(x, 2)
        for block in getattr(self, f"c{k}"):
            x = self.normalise(weights[block.conv](x), block.norm, steps, statistics)
        return x

    def head_input(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, 2)


class Decoder(FrameDecoder):
    """Levels `upc{k}.{j}.main`; the last ends in `upc{k}.1`, a transposed convolution, and a sigmoid."""

    def __init__(self, channels: int, g_dim: int, nf: int = 64, image_size: int = 64) -> None:
        a, b, c, d = nf, 2 * nf, 4 * nf, 8 * nf
        last = nn.Sequential(*_stage(2 * a, a), nn.ConvTranspose2d(a, channels, 3, padding=1))
        levels = [_stage(2 * d, d, d, c), _stage(2 * c, c, c, b), _stage(2 * b, b, a), last]
        if image_size == 128:
            levels.insert(0, _stage(2 * d, d, d, d))
        super().__init__(d, g_dim, levels)

    def join(self, k: int) -> nn.Conv2d:
        conv: nn.Conv2d = getattr(self, f"upc{k}")[0].conv
        return conv

    def upsample(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")

    def finish_level(
        self, k: int, x: Tensor, weights: Weights, steps: int, statistics: StepStatistics | None
    ) -> Tensor:
        first, *rest = getattr(self, f"upc{k}")
        x = self.normalise(x, first.norm, steps, statistics)
        for block in rest:
            if isinstance(block, nn.ConvTranspose2d):
                return weights[block](x).to(block.weight.dtype).sigmoid_()  # as in dcgan
            x = self.normalise(weights[block.conv](x), block.norm, steps, statistics)
        return x
