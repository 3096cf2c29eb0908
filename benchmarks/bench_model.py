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
from measure import Race, Run, Work, peak_mib
from oracle import OracleSVG
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import svg_fast
from svg_fast import SVG

ROUNDS = 5
OPS = ("batch_norm_act", "frame_conv", "gaussian_rsample", "gaussian_rsample_kl", "lstm_layer", "lstm_step")
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

    def inputs(self, batch: int | None = None) -> tuple[Tensor, Tensor]:
        """frames (B, T, C, S, S), eps (T - 1, B, z_dim); `batch` takes the place of the clips' own."""
        config, generator, batch = svg_fast.preset(self.preset), torch.Generator().manual_seed(0), batch or self.batch
        shape = (batch, self.n_frames, config.channels, config.image_size, config.image_size)
        frames = torch.rand(shape, generator=generator)
        return frames, torch.randn(self.n_frames - 1, batch, config.z_dim, generator=generator)


TRAINING = [Clips("smmnist-lp", 20, 5, 15), Clips("smmnist-fp", 20, 5, 15), Clips("bair-lp", 4, 2, 12)]
ROLLOUTS = [Clips("smmnist-lp", 16, 5, 30), Clips("smmnist-fp", 16, 5, 30), Clips("bair-lp", 4, 2, 30)]


def network(name: Network, preset: str) -> nn.Module:
    config = svg_fast.preset(preset)
    if name == "oracle":
        return OracleSVG(config)
    return SVG(replace(config, recompute=name == "ours, recompute"))


def training_step(net: nn.Module, frames: Tensor, eps: Tensor) -> Callable[[], Tensor]:
    """A call that makes the gradients and gives the loss."""

    def step() -> Tensor:
        net.zero_grad(set_to_none=True)
        loss: Tensor = net(frames, eps).loss
        loss.backward()
        return loss.detach()

    return step


def fresh_training_step(name: Network, clips: Clips) -> Run:
    return training_step(network(name, clips.preset), *clips.inputs())


def pair(clips: Clips) -> tuple[SVG, OracleSVG]:
    """Ours and the oracle with the same parameters."""
    model, oracle = SVG(svg_fast.preset(clips.preset)), OracleSVG(svg_fast.preset(clips.preset))
    oracle.load_state_dict(model.state_dict())
    return model, oracle


def with_compiled_networks(race: Race, clips: Clips, oracle: OracleSVG) -> OracleSVG | None:
    twin = OracleSVG(svg_fast.preset(clips.preset))
    twin.load_state_dict(oracle.state_dict())
    networks = [race.compile(net, "oracle, compiled") for net in (twin.encoder, twin.decoder)]
    if None in networks:
        return None
    twin.encoder, twin.decoder = networks  # type: ignore[assignment]
    return twin


def published_work(step: Callable[[OracleSVG, Tensor, Tensor], object], clips: Clips) -> Work:
    """What the oracle computes: counted over two clips, in which it is linear."""
    with FlopCounterMode(display=False) as counter:
        step(OracleSVG(svg_fast.preset(clips.preset)), *clips.inputs(batch=2))
    return Work("sgemm", counter.get_total_flops() * clips.batch / 2, of_peer=True)


@pytest.mark.benchmark(group="training step")
@pytest.mark.parametrize("clips", TRAINING, ids=str)
def test_training_step(race: Race, clips: Clips) -> None:
    model, oracle = pair(clips)
    inputs = clips.inputs()
    peers = {"oracle, eager": training_step(oracle, *inputs)}
    if compiled := with_compiled_networks(race, clips, oracle):
        peers["oracle, compiled"] = training_step(compiled, *inputs)
    ours = training_step(model, *inputs)

    def check() -> None:
        loss = ours()
        for peer in peers.values():
            torch.testing.assert_close(loss, peer(), rtol=1e-4, atol=0)

    facts: dict[str, Any] = {}
    work = None
    if race.timed:
        names: tuple[Network, ...] = ("ours", "ours, recompute", "oracle")
        facts["peak_mib"] = {name: peak_mib(fresh_training_step, name, clips) for name in names}
        work = published_work(lambda net, frames, eps: training_step(net, frames, eps)(), clips)
    race(ours, peers, check=check, ops=OPS, work=work, rounds=ROUNDS, **facts)


@pytest.mark.benchmark(group="rollout")
@pytest.mark.parametrize("clips", ROLLOUTS, ids=str)
def test_rollout(race: Race, clips: Clips) -> None:
    """One sample of every clip. The published script keeps the tape of all frames; a user would turn it off."""
    model, oracle = pair(clips)
    frames, eps = clips.inputs()
    given, n_future = frames[:, : clips.n_past], clips.n_frames - clips.n_past
    statistics = model.config.sampling_statistics()
    oracle.train(statistics == "batch")
    without_tape = torch.no_grad()
    peers = {
        "oracle, eager, with tape": lambda: oracle.generate(given, n_future, eps),
        "oracle, eager": without_tape(lambda: oracle.generate(given, n_future, eps)),
    }
    if compiled := with_compiled_networks(race, clips, oracle):
        compiled.train(statistics == "batch")
        peers["oracle, compiled"] = without_tape(lambda: compiled.generate(given, n_future, eps))

    def ours() -> Tensor:
        return model.sample(given, n_future, eps=eps.unsqueeze(1))[0]

    def check() -> None:
        video = ours()
        for peer in peers.values():
            torch.testing.assert_close(video, peer(), rtol=0, atol=1e-3)  # of a range of one

    work = None
    if race.timed:
        with torch.no_grad():
            work = published_work(lambda net, x, eps: net.generate(x[:, : clips.n_past], n_future, eps), clips)
    race(ours, peers, check=check, ops=OPS, work=work, rounds=ROUNDS)
