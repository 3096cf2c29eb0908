"""What training in several processes, and fresh data, cost a training step: SVG-LP, dcgan64, 15 frames.

    pytest benchmarks/bench_distributed.py --benchmark-json=distributed.json    a few minutes on two quiet cores

Two processes of one thread each train on CLIPS clips each, forward, backward and Adam, over gloo. Their peer
"independent" is the same two processes at the same time, each training by itself, so its times_as_fast is the
efficiency of training together: what is lost is communication and waiting. A call is STEPS steps, within which
independent processes do not wait for each other. Other peers have other sizes of the buckets that gradients travel in.

Of data, times_as_fast of "cached batch" is the share of a step with fresh clips that a step without any takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from bench_model import OPS
from measure import CPU, Race, seconds
from processes import in_processes
from shard_files import random_clips, write_shards
from torch import Tensor

import svg_fast
from svg_fast import SVG
from svg_fast.data import MovingMNIST, VideoShards, load_digits
from svg_fast.models.frame_network import synchronise_norms
from svg_fast.training import TrainConfig, step
from svg_fast.training.data import ClipData
from svg_fast.training.loop import batches
from svg_fast.training.processes import Processes
from svg_fast.training.step import TrainingStep, on_device

CLIPS, STEPS, ROUNDS = 10, 3, 10
CONFIG = svg_fast.preset("smmnist-lp")
FRAMES = CONFIG.n_past + CONFIG.n_future
PUBLISHED_BATCH = 20  # of the other benchmarks of training
ENDLESS = 2**62
LIMIT = 1800.0  # seconds of all processes


class Form(NamedTuple):
    """How the two processes train."""

    together: bool = True
    synchronise: bool = False
    bucket: int = step._BUCKET_MIB


def make_step(batch_size: int, form: Form, processes: Processes) -> TrainingStep:
    torch.manual_seed(0)
    model = SVG(CONFIG)
    if form.synchronise:
        synchronise_norms(model, processes.group)
    training = TrainConfig(batch_size=batch_size, sync_batch_norm=form.synchronise)
    optimizer = torch.optim.Adam(model.parameters(), training.lr, fused=True)
    with mock.patch.object(step, "_BUCKET_MIB", form.bucket):
        return TrainingStep(model, optimizer, torch.Generator().manual_seed(1), training, processes)


def moving_mnist() -> MovingMNIST:
    return MovingMNIST(load_digits(None, "train"), FRAMES, length=ENDLESS)


def serve(address: str) -> None:
    """In one of the processes: take STEPS steps in the form that is asked for, and answer with a digest of a weight."""
    with Client(address) as link, suppress(EOFError):
        here = Processes(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)
        frames = moving_mnist().clips(range(here.rank * CLIPS, (here.rank + 1) * CLIPS)).frames
        made: dict[Form, TrainingStep] = {}
        while True:
            form: Form = link.recv()
            processes = here if form.together else Processes()
            if form not in made:
                made[form] = make_step(CLIPS * processes.world_size, form, processes)
            for _ in range(STEPS):
                made[form](frames)
            link.send(float(made[form].weight.detach().double().abs().sum()))


@contextmanager
def two_processes(folder: Path) -> Iterator[Callable[[Form], list[float]]]:
    """A call that has both take their steps, and gives their digests."""
    with Listener(str(folder / "link"), "AF_UNIX") as listener, ThreadPoolExecutor(1) as pool:
        work = pool.submit(in_processes, 2, serve, listener.address, limit=LIMIT)
        links = [listener.accept() for _ in range(2)]

        def call(form: Form) -> list[float]:
            for link in links:
                link.send(form)
            return [link.recv() for link in links]

        try:
            yield call
        finally:
            for link in links:
                link.close()
            work.result()  # or the error of the process that failed


BUCKETS = {f"buckets of {size} MiB": Form(bucket=size) for size in (5, 10, 25, 50) if size != step._BUCKET_MIB}


@pytest.mark.benchmark(group="two processes")
@pytest.mark.parametrize("threads", [1], indirect=True, ids=["one thread each"])
@pytest.mark.parametrize(
    ("form", "others"),
    [(Form(), BUCKETS), (Form(synchronise=True), {"own statistics": Form()})],
    ids=["own statistics", "synchronised statistics"],
)
def test_two_processes(race: Race, tmp_path: Path, threads: int, form: Form, others: dict[str, Form]) -> None:
    with two_processes(tmp_path) as call:

        def check() -> None:
            first, second = call(form)
            assert first == second
            first, second = call(Form(together=False))
            assert first != second

        peers = {"independent": Form(together=False), **others}
        runs: dict[str, Any] = {name: lambda peer=peer: call(peer) for name, peer in peers.items()}
        race(lambda: call(form), runs, check=check, ops=OPS, rounds=ROUNDS, clips=CLIPS, steps=STEPS)


def shards(folder: Path) -> VideoShards:
    clips = [(f"{k}", clip) for k, clip in enumerate(random_clips(*[30] * 200, size=CONFIG.image_size))]
    root = write_shards(folder / "shards", "videos", {"train": [clips[:100], clips[100:]]})
    return VideoShards(root, n_frames=FRAMES, length=ENDLESS)


@pytest.mark.benchmark(group="data")
@pytest.mark.parametrize("make", [lambda _: moving_mnist(), shards], ids=["SM-MNIST", "shards"])
def test_fresh_clips(race: Race, tmp_path: Path, make: Callable[[Path], ClipData]) -> None:
    """As the loop gets them, in one process with torch's threads; batch_seconds is what a batch takes by itself."""
    fresh = on_device(batches(make(tmp_path), PUBLISHED_BATCH, 0, PUBLISHED_BATCH, 0, ENDLESS), CPU)
    cached: Tensor = next(fresh)
    train = make_step(PUBLISHED_BATCH, Form(), Processes())

    def check() -> None:
        assert not torch.equal(next(fresh), cached)
        assert math.isfinite(train(next(fresh))[0])

    race(
        lambda: train(next(fresh)),
        {"cached batch": lambda: train(cached)},
        check=check,
        ops=OPS,
        rounds=2 * ROUNDS,
        batch_seconds=seconds(lambda: next(fresh), 50),
    )
