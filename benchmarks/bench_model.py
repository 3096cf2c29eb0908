"""The training step and the rollout against the oracle: the published loops over stock torch.nn, on the same clips.

The oracle runs as it is, and with its encoder and decoder under torch.compile, as a user would do; compiling is not
timed. GFLOP are those of the oracle's convolutions and matrix products, forward and backward, a multiplication and an
addition being two (torch.utils.flop_counter); effective_percent says how the sgemm rate compares with doing all of
them in our time. The training step is forward and backward: the optimiser is the same for both and left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import pytest
import torch
from measure import CPU, Race, Run, Work
from oracle import OracleSVG
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import svg_fast
from svg_fast import SVG

ROUNDS = 5
OPS = ("batch_norm_act", "frame_conv", "gaussian_rsample", "gaussian_rsample_kl", "lstm_layer", "lstm_net_step")
Network = Literal["ours", "ours, recompute", "oracle"]


class Clips(NamedTuple):
    """A model and its clips: a batch of so many, conditioned on n_past frames of n_frames."""

    preset: str
    batch: int
    n_past: int
    n_frames: int

    def __str__(self) -> str:
        config = svg_fast.preset(self.preset)
        return f"{self.preset}, {config.backbone}{config.image_size}, B {self.batch}, {self.n_frames} frames"

    def inputs(self, batch: int | None = None, device: torch.device = CPU) -> tuple[Tensor, Tensor]:
        """frames (B, T, C, S, S), eps (T - 1, B, z_dim); `batch` takes the place of the clips' own."""
        config, generator, batch = svg_fast.preset(self.preset), torch.Generator().manual_seed(0), batch or self.batch
        shape = (batch, self.n_frames, config.channels, config.image_size, config.image_size)
        frames = torch.rand(shape, generator=generator)
        eps = torch.randn(self.n_frames - 1, batch, config.z_dim, generator=generator)
        return frames.to(device), eps.to(device)


TRAINING = [Clips("smmnist-lp", 20, 5, 15), Clips("smmnist-fp", 20, 5, 15), Clips("bair-lp", 4, 2, 12)]
ROLLOUTS = [Clips("smmnist-lp", 16, 5, 30), Clips("smmnist-fp", 16, 5, 30), Clips("bair-lp", 4, 2, 30)]


def network(name: Network, preset: str) -> nn.Module:
    config = svg_fast.preset(preset)
    if name == "oracle":
        return OracleSVG(config)
    return SVG(replace(config, recompute=name == "ours, recompute"))


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32)


def training_step(
    net: nn.Module, frames: Tensor, eps: Tensor, dtype: torch.dtype = torch.float32
) -> Callable[[], Tensor]:
    """A call that makes the gradients and gives the loss; in any other dtype than float32 under autocast."""

    def step() -> Tensor:
        net.zero_grad(set_to_none=True)
        with autocast(frames.device, dtype):
            loss: Tensor = net(frames, eps).loss
        loss.backward()
        return loss.detach()

    return step


def fresh_training_step(name: Network, clips: Clips, device: torch.device, dtype: torch.dtype) -> Run:
    return training_step(network(name, clips.preset).to(device), *clips.inputs(device=device), dtype)


def pair(clips: Clips, device: torch.device) -> tuple[SVG, OracleSVG]:
    """Ours and the oracle with the same parameters."""
    model, oracle = SVG(svg_fast.preset(clips.preset)), OracleSVG(svg_fast.preset(clips.preset))
    oracle.load_state_dict(model.state_dict())
    return model.to(device), oracle.to(device)


def with_compiled_networks(race: Race, clips: Clips, oracle: OracleSVG) -> OracleSVG | None:
    twin = OracleSVG(svg_fast.preset(clips.preset)).to(race.device)
    twin.load_state_dict(oracle.state_dict())
    networks = [race.compile(net, "oracle, compiled") for net in (twin.encoder, twin.decoder)]
    if None in networks:
        return None
    twin.encoder, twin.decoder = networks  # type: ignore[assignment]
    return twin


def published_work(step: Callable[[OracleSVG, Tensor, Tensor], object], clips: Clips, device: torch.device) -> Work:
    """What the oracle computes: counted over two clips, in which it is linear."""
    with FlopCounterMode(display=False) as counter:
        step(OracleSVG(svg_fast.preset(clips.preset)).to(device), *clips.inputs(batch=2, device=device))
    return Work("sgemm", counter.get_total_flops() * clips.batch / 2, of_peer=True)


@pytest.mark.benchmark(group="training step")
@pytest.mark.parametrize("clips", TRAINING, ids=str)
def test_training_step(race: Race, clips: Clips) -> None:
    model, oracle = pair(clips, race.device)
    inputs = clips.inputs(device=race.device)
    peers = {"oracle, eager": training_step(oracle, *inputs, race.dtype)}
    if race.device.type == "cuda":  # one line for a user, and the layout of tensor cores
        twin = pair(clips, race.device)[1]
        twin.load_state_dict(oracle.state_dict())
        twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        peers["oracle, channels last"] = training_step(twin, *inputs, race.dtype)
    if compiled := with_compiled_networks(race, clips, oracle):
        peers["oracle, compiled"] = training_step(compiled, *inputs, race.dtype)
    ours = training_step(model, *inputs, race.dtype)

    def check() -> None:
        loss = ours()
        for peer in peers.values():
            torch.testing.assert_close(loss, peer(), rtol=race.tolerance(1e-4), atol=0)

    facts: dict[str, Any] = {}
    work = None
    if race.timed:
        names: tuple[Network, ...] = ("ours", "ours, recompute", "oracle")
        make = fresh_training_step
        facts["peak_mib"] = {name: race.peak(make, name, clips, race.device, race.dtype) for name in names}
        work = published_work(lambda net, frames, eps: training_step(net, frames, eps)(), clips, race.device)
    race(ours, peers, check=check, ops=OPS, work=work, rounds=ROUNDS, **facts)


@pytest.mark.benchmark(group="rollout")
@pytest.mark.parametrize("clips", ROLLOUTS, ids=str)
def test_rollout(race: Race, clips: Clips) -> None:
    """One sample of every clip. The published script keeps the tape of all frames; a user would turn it off."""
    model, oracle = pair(clips, race.device)
    frames, eps = clips.inputs(device=race.device)
    given, n_future = frames[:, : clips.n_past], clips.n_frames - clips.n_past
    statistics = model.config.sampling_statistics()
    oracle.train(statistics == "batch")
    without_tape, low = torch.no_grad(), autocast(race.device, race.dtype)
    peers = {
        "oracle, eager, with tape": low(lambda: oracle.generate(given, n_future, eps)),
        "oracle, eager": without_tape(low(lambda: oracle.generate(given, n_future, eps))),
    }
    if compiled := with_compiled_networks(race, clips, oracle):
        compiled.train(statistics == "batch")
        peers["oracle, compiled"] = without_tape(low(lambda: compiled.generate(given, n_future, eps)))

    def ours() -> Tensor:
        with autocast(race.device, race.dtype):
            return model.sample(given, n_future, eps=eps.unsqueeze(1))[0]

    def check() -> None:
        video = ours()
        for peer in peers.values():
            error = (video - peer()).abs()
            # of a range of one; at low precision a pixel may well go another way
            worst = error.max() if race.dtype == torch.float32 else error.float().mean()
            assert worst <= race.tolerance(1e-3), f"error {worst:.2e}"

    work = None
    if race.timed:
        with torch.no_grad():
            generate = lambda net, x, eps: net.generate(x[:, : clips.n_past], n_future, eps)  # noqa: E731
            work = published_work(generate, clips, race.device)
    race(ours, peers, check=check, ops=OPS, work=work, rounds=ROUNDS)
