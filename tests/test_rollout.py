"""The future steps of a rollout as a graph would run them: static memory, replayed, with fresh noise."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recorded import use_recorded_graphs
from test_gpu_model import check_suite, compile_stub
from test_parity import SMALL, clip, pair
from torch import Tensor

from svg_fast import SVG
from svg_fast.graphs import WARM_UP, Graphed
from svg_fast.models import generation, rollout
from svg_fast.models.config import SVGConfig
from svg_fast.models.recurrent import GaussianLSTM

N_PAST, N_FUTURE, SAMPLES, BATCH = 3, WARM_UP + 5, 2, 2


def sampled(
    model: SVG, frames: Tensor, drawn: str, cuda_graph: bool, seed: int = 0, n_future: int = N_FUTURE
) -> Tensor:
    """Noise given, or drawn from a seed of a generator, which may be torch's own."""
    options: dict[str, Any] = {"cuda_graph": cuda_graph}
    torch.manual_seed(seed)
    if drawn == "generator":
        options["generator"] = torch.Generator().manual_seed(seed)
    elif drawn == "eps":
        shape = (N_PAST + n_future - 1, SAMPLES, BATCH, model.config.z_dim)
        options["eps"] = None if model.config.variant == "det" else torch.randn(shape, dtype=torch.float64)
    return model.sample(frames, n_future, SAMPLES, **options)


def graph_of(model: SVG) -> Any:
    return rollout._kept[model][2]


@pytest.mark.parametrize(
    ("config", "drawn"),
    [
        (SMALL, "eps"),
        (SMALL, "generator"),
        (SMALL, "seed"),
        (replace(SMALL, last_frame_skip=True), "seed"),
        (replace(SMALL, variant="fp"), "seed"),
        (replace(SMALL, variant="fp"), "eps"),
        (replace(SMALL, variant="det"), "eps"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.variant,
)
def test_replayed_steps_give_the_same_video(config: SVGConfig, drawn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = pair(config)
    frames = [clip(config, N_PAST, BATCH)[0], clip(config, N_PAST, BATCH)[0].flip(0)]
    want = [sampled(model, x, drawn, False, seed) for seed, x in enumerate(frames)]
    use_recorded_graphs(monkeypatch)
    for seed, x in enumerate(frames):  # the second has the graph of the first
        assert torch.equal(sampled(model, x, drawn, True, seed), want[seed])
    graph = graph_of(model).graph
    assert graph is not None
    assert torch.equal(sampled(model, frames[0], drawn, True), want[0])
    assert graph_of(model).graph is graph


def test_replays_of_a_net_draw_fresh_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A (seed, offset) on the device is read by every replay anew."""
    net = GaussianLSTM(4, 3, 8, 1)
    state, x, seed = net.init_state(2), torch.randn(2, 4), torch.tensor([5, 0])

    @torch.no_grad()
    def draw(x: Tensor) -> Tensor:
        z, _ = net.sample_step(x, state, seed=seed)
        seed[1:].add_(1)
        return z

    want = [draw(x).clone() for _ in range(WARM_UP + 4)]
    assert len(torch.stack(want).unique(dim=0)) == len(want)
    seed[1:].zero_()
    use_recorded_graphs(monkeypatch)
    graphed = Graphed(draw, x.device)
    got = [graphed(x).clone() for _ in want]
    assert graphed.graph is not None
    assert torch.equal(torch.stack(got), torch.stack(want))


def test_a_changed_weight_is_seen_and_a_moved_one_captured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = pair(SMALL)
    frames, _, _ = clip(SMALL, N_PAST, BATCH)
    use_recorded_graphs(monkeypatch)
    sampled(model, frames, "seed", True)
    graph = graph_of(model).graph
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    assert torch.equal(sampled(model, frames, "seed", True), sampled(model, frames, "seed", False))
    assert graph_of(model).graph is graph
    model.prior.mu_net.weight = torch.nn.Parameter(model.prior.mu_net.weight * 2)
    assert torch.equal(sampled(model, frames, "seed", True), sampled(model, frames, "seed", False))
    assert graph_of(model).graph is not graph


def test_rollouts_that_take_turns_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = pair(SMALL)
    frames, others = clip(SMALL, N_PAST, BATCH)[0], clip(SMALL, N_PAST, BATCH)[0].flip(0)
    # a chunk for each sample
    monkeypatch.setattr(generation, "chunk_size", lambda *_, **__: (1, BATCH, BATCH))
    want = model.sample(frames, N_FUTURE, 3, seed=3, cuda_graph=False)
    use_recorded_graphs(monkeypatch)
    for k, chunk in enumerate(model.sample_chunks(frames, N_FUTURE, 3, seed=3)):
        assert torch.equal(chunk.video[0], want[k])
        model.sample(others, N_FUTURE, 1, seed=0)


def test_a_graph_does_not_keep_its_model_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = pair(SMALL)
    use_recorded_graphs(monkeypatch)
    sampled(model, clip(SMALL, N_PAST, BATCH)[0], "seed", True, n_future=2)
    gone = weakref.ref(model)
    assert gone in {weakref.ref(kept) for kept in rollout._kept}
    del model
    gc.collect()
    assert gone() is None


def test_the_step_traced_on_fake_cuda_tensors(tmp_path: Path) -> None:
    stub = {} if torch.backends.cuda.is_built() else {"LD_PRELOAD": str(compile_stub(tmp_path))}
    check_suite("gpu_rollout_suite.py", stub)
