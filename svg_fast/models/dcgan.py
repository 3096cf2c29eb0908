"""The dcgan encoder and decoder: 4 x 4 convolutions with stride 2, and their transposes."""

from __future__ import annotations

from itertools import pairwise
from typing import cast

from torch import Tensor, nn

from .frame_network import ConvNorm, FrameDecoder, FrameEncoder, StepStatistics, Weights


def _widths(nf: int, image_size: int) -> list[int]:
    """Channels of the encoder's stages, shallow to deep; each halves the map, down to 4 x 4."""
    return [nf, 2 * nf, 4 * nf, 8 * nf] if image_size == 64 else [nf, 2 * nf, 4 * nf, 8 * nf, 8 * nf]


class Encoder(FrameEncoder):
    """Stages `c{k}.main`, a convolution, BatchNorm and LeakyReLU each; any base width, 64 or 128 pixels."""

    def __init__(self, channels: int, g_dim: int, nf: int = 64, image_size: int = 64) -> None:
        widths = [channels, *_widths(nf, image_size)]
        stages = [ConvNorm(nn.Conv2d(a, b, 4, stride=2, padding=1)) for a, b in pairwise(widths)]
        super().__init__(stages, widths[-1], g_dim)

    def run_stage(self, k: int, x: Tensor, weights: Weights, steps: int, statistics: StepStatistics | None) -> Tensor:
        stage: ConvNorm = getattr(self, f"c{k}")
        return self.normalise(weights[stage.conv](x), stage.norm, steps, statistics)


class Decoder(FrameDecoder):
    """Levels `upc{k}.main`: transposed convolution, BatchNorm, LeakyReLU; the last, `upc{k}.0`, ends in a sigmoid."""

    def __init__(self, channels: int, g_dim: int, nf: int = 64, image_size: int = 64) -> None:
        widths = [*_widths(nf, image_size)[::-1], channels]
        *convs, last = (nn.ConvTranspose2d(2 * a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        super().__init__(widths[0], g_dim, [*(ConvNorm(conv) for conv in convs), nn.Sequential(last)])

    def join(self, k: int) -> nn.ConvTranspose2d:
        level = getattr(self, f"upc{k}")
        return cast(nn.ConvTranspose2d, level.conv if isinstance(level, ConvNorm) else level[0])

    def finish_level(
        self, k: int, x: Tensor, weights: Weights, steps: int, statistics: StepStatistics | None
    ) -> Tensor:
        level = getattr(self, f"upc{k}")
        if isinstance(level, ConvNorm):
            return self.normalise(x, level.norm, steps, statistics)
        return x.to(level[0].weight.dtype).sigmoid_()  # frames are not narrower than parameters, whatever autocast does
