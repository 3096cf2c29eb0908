"""What is timed on a GPU: the benchmarks' own cases at the paper's sizes, and steps and rollouts of whole models."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from bench_batch_norm import Shape, batch_norm_act
from bench_gaussian import SIZES, test_gaussian_rsample_kl, test_one_of_the_two
from bench_lstm import lstm_layer, test_lstm_net_step, test_lstm_step
from bench_model import Clips, test_rollout, test_training_step
from floors import count, rollout, training_step
from gpu_measure import DeviceRace, Roofs
from lstm_step_model import A100, H100, Gpu, Precision

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16


class Case(NamedTuple):
    """run: a case of the benchmarks. graphs: CUDA graphs of the calls are timed too, which ours must not be where it is
    one. floor: the least seconds that the case can take on a GPU of the given rates, where they are counted operation
    by operation."""

    name: str
    dtype: torch.dtype
    run: Callable[[DeviceRace], None]
    graphs: bool = True
    floor: Callable[[Gpu], float] | None = None

    def __str__(self) -> str:
        return f"{self.name}, {str(self.dtype).removeprefix('torch.')}"

    @property
    def compiling(self) -> bool:
        """Whether torch.compile is among its peers: in few, where it takes up to a minute."""
        return str(self) in COMPILED


class Sizes(NamedTuple):
    """layers: T, B. steps: B. gaussians: T, B, Z. norms: G, N, then channels and size of each map."""

    dtypes: Sequence[torch.dtype]
    layers: Sequence[tuple[int, int]]
    steps: Sequence[int]
    gaussians: Sequence[tuple[int, int, int]]
    norms: tuple[int, int, Sequence[tuple[int, int]]]
    training: Sequence[Clips]
    rollouts: Sequence[Clips]


PAPER = Sizes(
    (FLOAT32, BFLOAT16),
    layers=[(15, 1), (15, 16), (15, 100), (30, 128)],
    steps=[1, 16, 100],
    gaussians=SIZES,
    norms=(15, 100, [(64, 32), (128, 16), (256, 8), (512, 4)]),
    training=[Clips("smmnist-lp", 100, 5, 15), Clips("smmnist-fp", 100, 5, 15), Clips("bair-lp", 16, 2, 12)],
    rollouts=[Clips("smmnist-lp", 100, 5, 30), Clips("smmnist-fp", 100, 5, 30), Clips("bair-lp", 16, 2, 30)],
)
# For a test on a CPU.
TINY = Sizes(
    (FLOAT32,),
    layers=[(2, 2)],
    steps=[2],
    gaussians=[(3, 2, 5)],
    norms=(2, 3, [(4, 2)]),
    training=[Clips("smmnist-small", 2, 5, 6)],
    rollouts=[],
)
COMPILED = (
    "lstm_layer, T 15, B 100, training, float32",
    "gaussian_rsample_kl, (30, 1024, 128), float32",
    "batch_norm_act, 15 steps of 100, 64 at 32 x 32, float32",
    "training step, smmnist-lp, dcgan64, B 100, 15 frames, bfloat16",
)


def op_cases(sizes: Sizes) -> Iterator[Case]:
    """Every op of the library, in every dtype."""
    for name, run in _ops(sizes):
        for dtype in sizes.dtypes:
            yield Case(name, dtype, run)


def _ops(sizes: Sizes) -> Iterator[tuple[str, Callable[[DeviceRace], None]]]:
    for n_steps, batch in sizes.layers:
        for trained, way in ((True, "training"), (False, "inference")):
            run = functools.partial(lstm_layer, n_steps=n_steps, batch=batch, trained=trained)
            yield f"lstm_layer, T {n_steps}, B {batch}, {way}", run
    for batch in sizes.steps:
        yield f"lstm_step, 2 layers, B {batch}", functools.partial(test_lstm_step, batch=batch)
        yield f"lstm_net_step, frame predictor, B {batch}", functools.partial(test_lstm_net_step, batch=batch)
    for shape in sizes.gaussians:
        yield f"gaussian_rsample_kl, {shape}", functools.partial(test_gaussian_rsample_kl, shape=shape)
    for op in ("gaussian_rsample", "gaussian_kl"):
        yield op, functools.partial(test_one_of_the_two, op=op)
    n_steps, batch, maps = sizes.norms
    for channels, size in maps:
        run = functools.partial(batch_norm_act, shape=Shape(channels, size), n_steps=n_steps, batch=batch)
        yield f"batch_norm_act, {n_steps} steps of {batch}, {channels} at {size} x {size}", run


def model_cases(sizes: Sizes) -> Iterator[Case]:
    """Training steps and rollouts; a rollout of ours is a CUDA graph already."""
    for clips in sizes.training:
        for dtype in sizes.dtypes:
            floor = functools.partial(_floor, training_step(clips.preset, clips.batch), dtype)
            run = functools.partial(test_training_step, clips=clips)
            yield Case(f"training step, {clips}", dtype, run, floor=floor)
    for clips in sizes.rollouts:
        for dtype in sizes.dtypes:
            floor = functools.partial(_floor, rollout(clips.preset, clips.batch, 1, clips.n_frames), dtype)
            run = functools.partial(test_rollout, clips=clips)
            yield Case(f"rollout, {clips}", dtype, run, graphs=False, floor=floor)


def _floor(make: Callable[[], Callable[[], object]], dtype: torch.dtype, gpu: Gpu) -> float:
    return sum(o.seconds(gpu, "float32" if dtype == FLOAT32 else "bfloat16") for o in count(make))


def measured_gpu(roofs: Roofs, clusters: bool) -> Gpu:
    """A GPU of these rates; what was not measured is that of the nearest one in the table of floors."""
    rates: dict[Precision, float] = {precision: roofs.matrix_rate[precision] for precision in ("float32", "bfloat16")}
    nearest = H100 if clusters else A100
    node_seconds = roofs.graph_node or nearest.node_seconds
    return replace(nearest, bandwidth=roofs.bandwidth, matrix_rate=rates, node_seconds=node_seconds)


CASES: dict[str, Callable[[Sizes], Iterator[Case]]] = {"ops": op_cases, "model": model_cases}
