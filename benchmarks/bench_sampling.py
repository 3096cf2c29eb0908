"""Best-of-N sampling against the published procedure: the oracle's loop over time, once for every sample.

SVG-LP, dcgan64, 5 given and 25 generated frames of 16 clips. The published script keeps the tape of all frames; "no
tape" is the same under torch.no_grad(). A best-of-100 evaluation repeats what is timed here: SAMPLES samples of every
clip, for which the loop runs SAMPLES times and `SVG.sample` takes several chunks.
"""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from bench_model import OPS, Clips, pair
from measure import Race
from torch import Tensor

CLIPS, SAMPLES, ROUNDS = Clips("smmnist-lp", 16, 5, 30), 12, 3


@pytest.mark.benchmark(group="best-of-N sampling")
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_best_of_n(race: Race, statistics: Literal["batch", "running"]) -> None:
    model, oracle = pair(CLIPS, race.device)
    frames, _ = CLIPS.inputs(device=race.device)
    given, n_future = frames[:, : CLIPS.n_past], CLIPS.n_frames - CLIPS.n_past
    eps = torch.randn(CLIPS.n_frames - 1, SAMPLES, CLIPS.batch, model.config.z_dim)
    oracle.train(statistics == "batch")

    def published() -> list[Tensor]:
        return [oracle.generate(given, n_future, eps[:, k]).detach() for k in range(SAMPLES)]

    def ours() -> Tensor:
        return model.sample(given, n_future, SAMPLES, statistics=statistics, eps=eps)

    peers: dict[str, Any] = {"oracle, with tape": published, "oracle, no tape": torch.no_grad()(published)}

    def check() -> None:
        error = (ours() - torch.stack(peers["oracle, no tape"]())).abs().max()
        assert error <= race.tolerance(1e-3), f"error {error:.2e}"

    race(ours, peers, check=check, ops=OPS, rounds=ROUNDS, samples=SAMPLES, clips=CLIPS.batch)
