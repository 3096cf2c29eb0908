"""The restructured training step computes what the published loop computes: float64, against the oracle."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracle import OracleSVG
from torch import Tensor, nn

import svg_fast
from svg_fast import SVG, SVGConfig
from svg_fast.training import training_preset

T, B, TOLERANCE = 8, 2, 1e-9
SMALL = SVGConfig(nf=2, g_dim=6, z_dim=3, rnn_size=5, n_past=2, n_future=1)


def pair(config: SVGConfig, dtype: torch.dtype = torch.float64) -> tuple[SVG, OracleSVG]:
    """A model and an oracle with the same parameters, and running statistics about those of random frames."""
    torch.manual_seed(0)
    model, oracle = SVG(config).to(dtype), OracleSVG(config).to(dtype)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = norms[0].momentum
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(clip(config)[0].to(dtype))
    for norm in norms:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.momentum = momentum
        norm.num_batches_tracked.zero_()
        norm.running_mean.add_(0.1 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean))
        norm.running_var.mul_(0.8 + 0.4 * torch.rand_like(norm.running_var))
    oracle.load_state_dict(model.state_dict())
    return model, oracle


def clip(config: SVGConfig, n_frames: int = T, batch: int = B) -> tuple[Tensor, Tensor, Any]:
    """Frames, noise, and the noise as the model takes it (none in the deterministic baseline)."""
    generator = torch.Generator().manual_seed(1)
    size = config.image_size
    frames = torch.rand(batch, n_frames, config.channels, size, size, generator=generator, dtype=torch.float64)
    eps = torch.randn(n_frames - 1, batch, config.z_dim, generator=generator, dtype=torch.float64)
    return frames, eps, None if config.variant == "det" else eps


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max() / b.detach().abs().max().clamp_min(1e-300))


def free_biases(oracle: nn.Module) -> set[str]:
    """Convolution biases that a BatchNorm follows: their gradient is mathematically zero."""
    free = set()
    for name, module in oracle.named_modules():
        children = list(module.named_children()) if isinstance(module, nn.Sequential) else []
        for (key, conv), (_, after) in itertools.pairwise(children):
            if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and isinstance(after, nn.BatchNorm2d):
                free.add(f"{name}.{key}.bias")
    return free


def check_step(config: SVGConfig, n_frames: int = T) -> None:
    model, oracle = pair(config)
    frames, eps, model_eps = clip(config, n_frames)
    out, want = model(frames, model_eps), oracle(frames, eps)
    out.loss.backward()
    want.loss.backward()

    assert relative(out.loss, want.loss) < TOLERANCE
    assert relative(out.mse, want.mse_per_step.sum()) < TOLERANCE
    assert relative(out.mse_per_step, want.mse_per_step) < TOLERANCE
    assert relative(out.prediction, want.prediction) < TOLERANCE
    if config.variant == "det":
        assert not out.kl_per_step.any()
    else:
        assert relative(out.kl, want.kl_per_step.sum()) < TOLERANCE
        assert relative(out.kl_per_step, want.kl_per_step) < TOLERANCE

    free = free_biases(oracle)
    wanted = dict(oracle.named_parameters())
    assert wanted.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        want_grad = wanted[name].grad
        assert want_grad is not None
        if name in free:
            weight_grad = wanted[name.removesuffix("bias") + "weight"].grad
            assert weight_grad is not None
            assert parameter.grad.abs().max() < 1e-9 * weight_grad.abs().max(), name
        else:
            assert relative(parameter.grad, want_grad) < TOLERANCE, name
    for (name, buffer), want_buffer in zip(model.named_buffers(), oracle.buffers(), strict=True):
        if name.endswith("num_batches_tracked"):
            assert buffer == want_buffer, name
        else:
            assert relative(buffer, want_buffer) < TOLERANCE, name


@pytest.mark.parametrize("time_chunk", [4, 3], ids=["chunk4", "chunk3"])  # divides T = 8, and does not
@pytest.mark.parametrize("n_past", [2, 5, T - 1])
@pytest.mark.parametrize("skip", ["published", "paper"])
@pytest.mark.parametrize("last_frame_skip", [False, True], ids=["", "last_frame_skip"])
@pytest.mark.parametrize("backbone", ["dcgan", "vgg"])
@pytest.mark.parametrize("variant", ["lp", "fp", "det"])
def test_step(variant: Any, backbone: Any, last_frame_skip: bool, skip: Any, n_past: int, time_chunk: int) -> None:
    check_step(
        replace(
            SMALL,
            variant=variant,
            backbone=backbone,
            last_frame_skip=last_frame_skip,
            skip=skip,
            n_past=n_past,
            time_chunk=time_chunk,
        )
    )


@pytest.mark.parametrize("backbone", ["dcgan", "vgg"])
@pytest.mark.parametrize(
    "change",
    [
        {"recompute": True, "time_chunk": 3},
        {"image_size": 128},
        {"channels": 3},
        {"n_past": 1, "skip": "paper"},
        {"predictor_rnn_layers": 3, "posterior_rnn_layers": 2, "prior_rnn_layers": 2},
    ],
    ids=["recompute", "128px", "rgb", "n_past1", "deep"],
)
def test_step_of_other_configurations(backbone: Any, change: dict[str, Any]) -> None:
    check_step(replace(SMALL, backbone=backbone, **change), n_frames=4)


def test_shortest_clip() -> None:
    check_step(replace(SMALL, n_past=1, skip="paper"), n_frames=2)


@pytest.mark.parametrize("variant", ["lp", "fp", "det"])
def test_eval_mode_uses_running_statistics(variant: Any) -> None:
    model, oracle = pair(replace(SMALL, variant=variant))
    frames, eps, model_eps = clip(model.config)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    out, want = model.eval()(frames, model_eps), oracle.eval()(frames, eps)
    assert relative(out.loss, want.loss) < TOLERANCE
    assert relative(out.prediction, want.prediction) < TOLERANCE
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_float32_after_an_optimiser_step() -> None:
    """The paper's size and optimiser, against the float64 oracle: the loss to 1e-4, all but a few parameters to 1e-4.

    Adam's first step is lr * sign(gradient). Where float32 rounding decides that sign, any implementation may go either
    way: a few elements in ten thousand for the float32 oracle itself. Those must have a gradient near zero.
    """
    config, lr = svg_fast.preset("smmnist-lp"), training_preset("smmnist-lp").lr
    model, oracle = pair(config, torch.float32)
    oracle.double()
    frames, eps, _ = clip(config, n_frames=7, batch=4)
    frames, eps = frames.float().double(), eps.float().double()
    inputs = {model: (frames.float(), eps.float()), oracle: (frames, eps)}
    for net, arguments in inputs.items():
        optimizer = torch.optim.Adam(net.parameters(), lr=lr)
        net(*arguments).loss.backward()
        optimizer.step()
    free = free_biases(oracle)
    assert len(free) == 9
    strays = total = 0
    for (name, parameter), want in zip(model.named_parameters(), oracle.parameters(), strict=True):
        if name in free:
            continue
        assert want.grad is not None
        stray = (parameter - want).abs() > 1e-4
        small = want.grad.abs() < 5e-3 * want.grad.abs().max()
        assert not (stray & ~small).any(), name
        assert (parameter - want).abs().max() < 2.001 * lr, name
        strays, total = strays + int(stray.sum()), total + stray.numel()
    assert strays < 2e-3 * total
    with torch.no_grad():
        losses = [net(*arguments).loss.double() for net, arguments in inputs.items()]
    assert relative(*losses) < 1e-4
