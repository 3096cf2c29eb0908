"""Models on a GPU: steps that leave the host out, graphs that replay what eager calls give, the CPU's numbers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from device_checks import CONFIGS, clips, model, no_synchronisation, rollout, tf32, trained, training_step

from svg_fast.graphs import Graphed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
EVERY = pytest.mark.parametrize("name", CONFIGS)
STEPS = 8


@pytest.fixture(autouse=True)
def float32_is_float32() -> Iterator[None]:
    """And runs repeat: cuDNN may choose among kernels that add in another order each time."""
    deterministic = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    with tf32(False):
        yield
    torch.backends.cudnn.deterministic = deterministic


@EVERY
def test_a_forward_pass_gives_the_cpus_losses(name: str) -> None:
    config = CONFIGS[name]
    out = {}
    for device in (CPU, CUDA):
        noise = {} if config.variant == "det" else {"seed": torch.tensor([3, 0], device=device)}
        out[device] = model(config, device)(clips(config, device), **noise)
    for field in ("loss", "mse_per_step", "kl_per_step"):
        here, there = (getattr(out[device], field).detach().cpu() for device in (CPU, CUDA))
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-6)


@EVERY
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_a_training_step_does_not_wait(name: str, bf16: bool) -> None:
    _, step = training_step(CONFIGS[name], CUDA, bf16)
    frames = clips(CONFIGS[name], CUDA)
    step(frames)  # kernels are compiled and tuned, the optimiser's state is made
    with no_synchronisation(CUDA):
        losses = step(frames)
    assert losses.isfinite().all()


@EVERY
@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
def test_replays_of_a_training_step_are_the_eager_steps(name: str, bf16: bool) -> None:
    eager, graphed = (trained(CONFIGS[name], CUDA, STEPS, bf16=bf16, graphed=graphed) for graphed in (False, True))
    for got, want in zip(graphed[0] + graphed[1], eager[0] + eager[1], strict=True):
        assert torch.equal(got, want)


def test_each_replay_draws_fresh_noise() -> None:
    """With nothing else to change: a learning rate of zero."""
    _, step = training_step(CONFIGS["lp"], CUDA, False)
    for group in step.optimizer.param_groups:
        group["lr"] = 0.0
    graphed, frames = Graphed(step, CUDA), clips(CONFIGS["lp"], CUDA)
    losses = torch.stack([graphed(frames).clone() for _ in range(STEPS)])
    assert graphed.graph is not None
    assert len(losses[:, 0].unique()) == STEPS


@EVERY
def test_every_run_gives_the_same_bits(name: str) -> None:
    first, again = (trained(CONFIGS[name], CUDA, 3) for _ in range(2))
    for a, b in zip(first[0] + first[1], again[0] + again[1], strict=True):
        assert torch.equal(a, b)


@EVERY
def test_rollouts_as_a_graph_are_the_eager_ones(name: str) -> None:
    net = model(CONFIGS[name], CUDA)
    eager = rollout(net, 8, cuda_graph=False)
    for _ in range(2):  # captured, then kept
        torch.testing.assert_close(rollout(net, 8, cuda_graph=True), eager, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["lp", "fp"])
def test_the_futures_of_a_rollout_differ(name: str) -> None:
    video = rollout(model(CONFIGS[name], CUDA), 8, cuda_graph=True)
    n_past = CONFIGS[name].n_past
    assert not torch.equal(video[0, :, n_past:], video[1, :, n_past:])
    assert torch.equal(video[0, :, :n_past], video[1, :, :n_past])


@EVERY
def test_a_rollout_does_not_wait(name: str) -> None:
    net = model(CONFIGS[name], CUDA)
    rollout(net, 8, cuda_graph=True)
    given = clips(net.config, CUDA, net.config.n_past)
    eps = None if net.config.variant == "det" else torch.randn(net.config.n_past + 7, 2, len(given), net.config.z_dim)
    eps = eps if eps is None else eps.to(CUDA)
    net.sample(given, 8, 2, eps=eps)
    with no_synchronisation(CUDA):
        video = net.sample(given, 8, 2, eps=eps)
        seeded = net.sample(given, 8, 2, seed=1)
    assert video.isfinite().all()
    assert seeded.isfinite().all()
