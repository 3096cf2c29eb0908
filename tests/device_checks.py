"""What tests of a device have in common: written for any, so that a machine without a GPU runs them on its CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from svg_fast import SVG, ops, preset
from svg_fast.graphs import WARM_UP, Graphed
from svg_fast.models import SVGConfig
from svg_fast.training import TrainConfig
from svg_fast.training.step import TrainingStep, noise_on_device

# Nets of the published shapes that are small: n_past of 2 frames, 3 to predict.
SMALL = SVGConfig(nf=8, g_dim=16, z_dim=4, rnn_size=32, n_past=2, n_future=3)
CONFIGS = {
    **{variant: replace(SMALL, variant=variant) for variant in ("lp", "fp", "det")},
    "vgg": replace(SMALL, backbone="vgg", channels=3),
    "paper": replace(preset("smmnist-lp"), n_past=2, n_future=3),
}
BATCH = 4


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """In matrix products and in cuDNN; PyTorch's default is not in those, and in this."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def no_synchronisation(device: torch.device) -> Iterator[None]:
    """An error where the host waits for the device."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def clips(config: SVGConfig, device: torch.device, n_frames: int | None = None) -> Tensor:
    """Frames (B, T, C, S, S)."""
    shape = BATCH, n_frames or config.n_past + config.n_future, config.channels, config.image_size, config.image_size
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)


def model(config: SVGConfig, device: torch.device) -> SVG:
    torch.manual_seed(0)
    return SVG(config).to(device)


def training_step(config: SVGConfig, device: torch.device, bf16: bool) -> tuple[SVG, TrainingStep]:
    """A new model and its step, with noise of its own on the device."""
    net = model(config, device)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3, fused=True, capturable=device.type == "cuda")
    training = TrainConfig(batch_size=BATCH, lr=1e-3, precision="bf16" if bf16 else "float32")
    return net, TrainingStep(net, optimizer, noise_on_device(1, 0, device), training)


def trained(
    config: SVGConfig, device: torch.device, steps: int, *, bf16: bool = False, graphed: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """The losses (3,) of so many steps on one batch, and the parameters after them."""
    net, step = training_step(config, device, bf16)
    frames = clips(config, device)
    call: Callable[[Tensor], Tensor] = Graphed(step, device) if graphed else step
    losses = [call(frames).clone() for _ in range(steps)]
    if isinstance(call, Graphed) and device.type == "cuda":
        assert call.graph is not None, "the training step was not captured"
        assert steps > WARM_UP + 1, "no replay"
    return losses, [parameter.detach() for parameter in net.parameters()]


def noise(device: torch.device, dtype: torch.dtype, *shape: int, seed: int = 3) -> Tensor:
    zeros = torch.zeros(*shape, device=device, dtype=dtype)
    return ops.gaussian_rsample(zeros, zeros, seed=seed)


def rollout(net: SVG, n_future: int, *, cuda_graph: bool, n_samples: int = 2) -> Tensor:
    """Futures with noise of torch's generator, set before."""
    torch.manual_seed(5)
    given = clips(net.config, net.frame_predictor.embed.weight.device, net.config.n_past)
    return net.sample(given, n_future, n_samples, cuda_graph=cuda_graph)
