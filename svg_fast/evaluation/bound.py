"""The variational bound of test clips (appendix A), as a model in training would see it: all true frames are given."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..models import SVG, SVGConfig
from ..models.config import Statistics
from .results import Bound


@torch.no_grad()
def bound_terms(model: SVG, frames: Tensor, statistics: Statistics, seed: int) -> Tensor:
    """Clips (B, T, C, H, W) -> mean squared error of a pixel and KL in nats of each step, means over them: (2, T - 1).

    One sample of the posterior for each clip, its noise keyed by the seed. The model's mode and running statistics stay
    as they were.
    """
    device = model.frame_predictor.embed.weight.device
    noise = None if model.config.variant == "det" else torch.tensor((seed, 0), device=device)
    with _unchanged(model, statistics == "batch"):
        out = model(frames, seed=noise)
    return torch.stack((out.mse_per_step, out.kl_per_step))


def make_bound(config: SVGConfig, terms: Tensor) -> Bound | None:
    """The bound of these `bound_terms`, under the Gaussian observation model whose negative bound is the training loss:
    variance beta D / 2 for the D values of a frame. None for beta = 0, which is no such model.
    """
    if not config.beta:
        return None
    mse, kl = terms.double().cpu()
    values = config.channels * config.image_size**2
    constant = values / 2 * math.log(math.pi * config.beta * values)
    elbo = -(mse / config.beta + kl + constant)
    return Bound(float(elbo.mean()), elbo.tolist(), mse.tolist(), kl.tolist())


@contextmanager
def _unchanged(model: SVG, training: bool) -> Iterator[None]:
    """The model in training or eval mode, its own mode and buffers restored at the end."""
    mode, buffers = model.training, {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train(training)
    try:
        yield
    finally:
        model.train(mode)
        model.load_state_dict(buffers, strict=False)
