"""Training in several processes: the same as in one, exactly, and what the published loop would do with each share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import in_processes
from tiny_run import CONFIG, command
from torch import Tensor, nn

from svg_fast import SVG, SVGConfig, ops
from svg_fast.models.frame_network import synchronise_norms
from svg_fast.training import TrainConfig, checkpoint
from svg_fast.training.processes import Processes
from svg_fast.training.sharding import shard, whole_copy
from svg_fast.training.step import TrainingStep

STEPS = 5
MODEL = replace(CONFIG, nf=4, g_dim=8, z_dim=3, rnn_size=16, n_future=3, beta=0.01)
STEP = TrainConfig(batch_size=7, lr=2e-3)


def frames_of(step: int, batch_size: int = STEP.batch_size) -> Tensor:
    """All clips of a step (B, T, 1, 64, 64), uint8."""
    shape = (batch_size, MODEL.n_past + MODEL.n_future, 1, 64, 64)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(step), dtype=torch.uint8)


State = dict[str, Tensor]


def trained(config: SVGConfig, training: TrainConfig, dtype: torch.dtype) -> tuple[State, list[list[float]]]:
    """State and losses after STEPS, of this process of the default group, or of one by itself."""
    alone = not dist.is_initialized()
    processes = Processes() if alone else Processes(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)
    torch.manual_seed(0)
    model = SVG(config).to(dtype)
    if training.sync_batch_norm and not alone:
        synchronise_norms(model, dist.group.WORLD)
    shard(model, training, processes)
    optimizer = torch.optim.Adam(model.parameters(), training.lr, fused=True)
    step = TrainingStep(model, optimizer, torch.Generator().manual_seed(1), training, processes)
    losses = []
    for k in range(STEPS):
        step.rates.set(k + 1)
        part = slice(step.parts[0].first, step.parts[-1].last)
        values, _ = processes.agree(step(frames_of(k, training.batch_size)[part]), False)
        losses.append(values)
    copy = whole_copy(model)
    return ({} if copy is None else copy.state_dict()), losses


def without_biases(state: State, config: SVGConfig) -> State:
    """Without the biases before a BatchNorm: their gradient is zero but for rounding, which Adam makes large; nor the
    running means, which hold those biases."""
    found = {name: t for name, t in state.items() if t.is_floating_point() and "running_mean" not in name}
    model = SVG(config)
    modules = dict(model.named_modules())
    convs = [name for name, module in modules.items() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    norms = {name for name, module in modules.items() if isinstance(module, nn.BatchNorm2d)}
    before = {name for name in convs if f"{name.rpartition('.')[0]}.{int(name.rpartition('.')[2]) + 1}" in norms}
    assert len(before) == 9
    return {name: t for name, t in found.items() if name.removesuffix(".bias") not in before}


def parameters(state: State) -> State:
    """Without running statistics, which are those of rank 0's own clips where processes do not share statistics."""
    return {name: t for name, t in state.items() if "running_" not in name}


def assert_same(got: State, want: State, tolerance: float, config: SVGConfig = MODEL) -> None:
    """Relative to the norm of all of them; not the same bits, or nothing was shared out."""
    got, want = without_biases(got, config), without_biases(want, config)
    assert got.keys() == want.keys()
    difference = sum(float((got[name] - want[name]).double().square().sum()) for name in want) ** 0.5
    size = sum(float(t.double().square().sum()) for t in want.values()) ** 0.5
    assert difference < tolerance * size
    assert difference > 0 or tolerance == 0


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-6)], ids=str)
def test_processes_with_shared_statistics_are_one_process(
    world_size: int, dtype: torch.dtype, tolerance: float
) -> None:
    """Seven clips: shares of 3 and 4, of 2, 2 and 3. Five steps of Adam, with noise."""
    training = replace(STEP, sync_batch_norm=True, grad_clip=0.1)
    want, losses = trained(MODEL, training, dtype)
    results = in_processes(world_size, trained, MODEL, training, dtype, limit=120)
    for state, found in results:
        assert_same(state, want, tolerance)
        np.testing.assert_allclose(found, losses, rtol=10 * tolerance, atol=tolerance)  # a small KL is a difference
    assert all(torch.equal(results[0][0][name], results[-1][0][name]) for name in want)


def plainly(parts: list[slice], dtype: torch.dtype) -> State:
    """The published loss of every part by itself, each weighted by its clips; Adam on the sum of their gradients."""
    torch.manual_seed(0)
    model = SVG(MODEL).to(dtype)
    adam = torch.optim.Adam(model.parameters(), STEP.lr)
    generator = torch.Generator().manual_seed(1)
    for k in range(STEPS):
        frames = frames_of(k)
        shape = (frames.shape[1] - 1, len(frames), MODEL.z_dim)
        seed = torch.randint(2**63 - 1, (2,), generator=generator)
        eps = ops.gaussian_rsample(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype), seed=seed)
        adam.zero_grad()
        for part in parts:
            out = model(frames[part], eps=eps[:, part])
            ((out.mse + MODEL.beta * out.kl) * (part.stop - part.start) / len(frames)).backward()
        adam.step()
    return model.state_dict()


@pytest.mark.parametrize(
    ("world_size", "accumulate", "parts"),
    [
        (2, 1, [slice(0, 3), slice(3, 7)]),
        (1, 2, [slice(0, 3), slice(3, 7)]),
        (3, 1, [slice(0, 2), slice(2, 4), slice(4, 7)]),
        (1, 3, [slice(0, 2), slice(2, 4), slice(4, 7)]),
    ],
)
def test_statistics_of_a_part_are_its_own_and_its_loss_counts_by_its_clips(
    world_size: int, accumulate: int, parts: list[slice]
) -> None:
    training = replace(STEP, accumulate=accumulate)
    if world_size == 1:
        state, _ = trained(MODEL, training, torch.float64)
    else:
        state = in_processes(world_size, trained, MODEL, training, torch.float64, limit=120)[0][0]
    assert_same(parameters(state), parameters(plainly(parts, torch.float64)), 1e-10)


def test_parts_in_processes_are_parts_in_one() -> None:
    training = replace(STEP, batch_size=9, accumulate=2)
    want, _ = trained(MODEL, replace(training, accumulate=4), torch.float64)
    got = in_processes(2, trained, MODEL, training, torch.float64, limit=120)[0][0]
    assert_same(parameters(got), parameters(want), 1e-10)


@pytest.mark.parametrize("free_bits", [0.02, 0.5])
def test_free_bits_are_of_the_kl_over_all_processes(free_bits: float) -> None:
    training = replace(STEP, sync_batch_norm=True, free_bits=free_bits, beta_schedule="cyclical", beta_cycle=4)
    config = replace(MODEL, beta=1.0)
    want, losses = trained(config, training, torch.float64)
    plain, _ = trained(config, replace(training, free_bits=0.0), torch.float64)
    assert not torch.equal(plain["posterior.embed.weight"], want["posterior.embed.weight"])
    state, found = in_processes(2, trained, config, training, torch.float64, limit=120)[1]
    assert_same(state, want, 1e-10)
    assert np.allclose(found, losses, rtol=1e-9, atol=0)


def test_sharded_parameters_are_whole_ones() -> None:
    training = replace(STEP, sync_batch_norm=True, grad_clip=0.1, ema=0.9)
    want, losses = trained(MODEL, training, torch.float64)
    results = in_processes(2, trained, MODEL, replace(training, fsdp=True), torch.float64, limit=120)
    assert not results[1][0]  # rank 0 alone has it whole
    assert_same(results[0][0], want, 1e-10)
    assert np.allclose(results[1][1], losses, rtol=1e-9, atol=0)


def torchrun(log_dir: Path, world_size: int, *options: str, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """The command of a user; gloo on this machine."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world_size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    arguments = command(log_dir, *options)[1:]
    done = subprocess.run(
        [*launch, "--max-restarts", str(restarts), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return done


def losses(log_dir: Path) -> Any:
    return np.loadtxt(log_dir / "losses.csv", delimiter=",", skiprows=1)


def test_a_run_goes_on_with_other_numbers_of_processes(tmp_path: Path) -> None:
    """Two processes for an epoch, then one, then three: the losses of one process all along."""
    options = ("--batch-size", "6", "--sync-batch-norm", "--ema", "0.9", "--validate", "4", "--epoch-size", "3")
    for log_dir, counts in ((tmp_path / "one", [1]), (tmp_path / "many", [2, 1, 3])):
        for k, count in enumerate(counts):
            niter = 3 if len(counts) == 1 else k + 1
            done = torchrun(log_dir, count, *options, "--niter", str(niter), "--resume")
            assert done.stdout.count("samples: ") == 1
    assert np.allclose(losses(tmp_path / "many"), losses(tmp_path / "one"), rtol=1e-3, atol=1e-6)
    one, many = (np.loadtxt(tmp_path / run / "validation.csv", delimiter=",", skiprows=1) for run in ("one", "many"))
    assert one.shape == (3, 5)
    assert np.allclose(many, one, rtol=1e-3, atol=1e-4)
    starts = json.loads((tmp_path / "many" / "run.json").read_text())["starts"]
    assert [start["processes"] for start in starts] == [2, 1, 3]
    assert {start["status"] for start in starts} == {"finished"}
    last = checkpoint.load(checkpoint.find_all(tmp_path / "many" / "checkpoints")[-1])
    assert last.step == 9
    assert last.average().keys() == {name for name, _ in SVG(CONFIG).named_parameters()}


def test_what_processes_cannot_share_is_named(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, *command(tmp_path / "run", "--batch-size", "3")[1:]],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 1
    assert "Error: batch_size must give every part of every process two clips (BatchNorm), got 3 for 2" in done.stderr
    assert "Traceback" not in done.stderr.split("Error: batch_size")[0]


def test_shares_cover_a_step_once() -> None:
    for batch_size in range(6, 20):
        for world_size in (1, 2, 3):
            for accumulate in (1, 2):
                every = [Processes(rank, world_size).parts(batch_size, accumulate) for rank in range(world_size)]
                parts = [part for own in every for part in own]
                assert [i for part in parts for i in range(part.first, part.last)] == list(range(batch_size))
                assert sum(part.weight for part in parts) == pytest.approx(world_size)
                sizes = {part.last - part.first for part in parts}
                assert max(sizes) - min(sizes) <= 1
