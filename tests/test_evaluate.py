"""The numbers of an evaluation, against plain loops over samples, clips and frames."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from test_parity import SMALL, clip, pair
from test_sampling_options import row_bytes
from torch import Tensor, nn

from svg_fast import SVG
from svg_fast.evaluation.bound import bound_terms
from svg_fast.evaluation.evaluate import Settings, _groups, evaluate
from svg_fast.evaluation.results import Curve

N_PAST, N_FUTURE, CLIPS, SAMPLES = 3, 4, 5, 4
T = N_PAST + N_FUTURE
SETTINGS = Settings(n_samples=SAMPLES, batch_size=3, seed=11)


def model_and_clips(variant: Any = "lp") -> tuple[SVG, Tensor]:
    model, _ = pair(replace(SMALL, variant=variant, n_past=N_PAST))
    for parameter in model.frame_predictor.parameters():
        parameter.data.mul_(20)  # samples that differ
    return model, clip(model.config, T, CLIPS)[0]


def samples_of(model: SVG, clips: Tensor) -> Tensor:
    """(S, N, F, C, H, W): in batches of at most three, five clips are groups of three and two, each with its seed."""
    groups = [(0, clips[:3]), (1, clips[3:])]
    videos = [model.sample(x[:, :N_PAST], N_FUTURE, SAMPLES, seed=SETTINGS.seed + k) for k, x in groups]
    return torch.cat(videos, dim=1)[:, :, N_PAST:]


def plain_scores(metric: str, samples: Tensor, clips: Tensor) -> np.ndarray[Any, Any]:
    score = {
        "psnr": lambda x, y: peak_signal_noise_ratio(y, x, data_range=1),
        "ssim": lambda x, y: structural_similarity(x, y, data_range=1),
    }[metric]
    table = np.empty((SAMPLES, CLIPS, N_FUTURE))
    for s, n, f in itertools.product(*map(range, table.shape)):
        table[s, n, f] = score(samples[s, n, f, 0].numpy(), clips[n, N_PAST + f, 0].numpy())
    return table


def plain_curve(values: np.ndarray[Any, Any]) -> Curve:
    """(N, F) -> mean and interval, one frame after the other."""
    halves = [1.96 * np.std(column, ddof=1) / math.sqrt(CLIPS) for column in values.T]
    half = 1.96 * np.std(values.mean(1), ddof=1) / math.sqrt(CLIPS)
    return Curve(values.mean(0).tolist(), halves, float(half))


def assert_same(got: Curve, want: Curve) -> None:
    np.testing.assert_allclose(got.mean, want.mean, rtol=2e-6)
    np.testing.assert_allclose(got.interval, want.interval, rtol=1e-4)
    assert got.average[1] == pytest.approx(want.average[1], rel=1e-4)


@pytest.mark.parametrize("best_by", [None, "ssim"])
def test_best_mean_and_worst_samples(best_by: str | None) -> None:
    model, clips = model_and_clips()
    found = evaluate(model, clips, replace(SETTINGS, best_by=best_by))
    samples = samples_of(model, clips)
    tables = {metric: plain_scores(metric, samples, clips) for metric in ("psnr", "ssim")}
    assert max(table.mean(2).std(0).max() for table in tables.values()) > 1e-3
    for metric, table in tables.items():
        order = tables[best_by or metric].mean(2)
        every = np.arange(CLIPS)
        assert_same(found.curves[metric]["best"], plain_curve(table[order.argmax(0), every]))
        assert_same(found.curves[metric]["mean"], plain_curve(table.mean(0)))
        assert_same(found.curves[metric]["worst"], plain_curve(table[order.argmin(0), every]))
    assert (found.name, found.n_past, found.n_future, found.horizon) == (
        "SVG-LP",
        N_PAST,
        N_FUTURE,
        T - N_FUTURE + SMALL.n_future,
    )


def test_diversity_is_the_mean_over_pairs_of_samples() -> None:
    model, clips = model_and_clips()
    samples = samples_of(model, clips)
    pairs = [float((a - b).square().mean()) for a, b in itertools.combinations(samples, 2)]
    found = evaluate(model, clips, SETTINGS).scalars["diversity_mse"]
    assert found == pytest.approx(sum(pairs) / len(pairs), rel=1e-9)


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_memory_changes_nothing(statistics: Any) -> None:
    model, clips = model_and_clips()
    settings = replace(SETTINGS, statistics=statistics)
    limit = row_bytes(model.config, 3)
    want, got = evaluate(model, clips, settings), evaluate(model, clips, replace(settings, memory_limit=limit))
    for metric, summaries in want.curves.items():
        for summary, curve in summaries.items():
            np.testing.assert_allclose(got.curves[metric][summary].mean, curve.mean, rtol=1e-6)
    assert got.scalars == pytest.approx(want.scalars, rel=1e-9)
    assert got.protocol == want.protocol


@pytest.mark.parametrize("variant", ["lp", "fp", "det"])
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_the_bound_is_the_oracles_loss_in_nats(variant: Any, statistics: Any) -> None:
    """Of one group, with the noise that the seed stands for."""
    config = replace(SMALL, variant=variant, n_past=N_PAST, beta=0.01)
    model, oracle = pair(config)
    clips = clip(config, T, CLIPS)[0]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = evaluate(model, clips, Settings(n_samples=1, seed=5, statistics=statistics))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert model.training
    eps = torch.zeros(T - 1, CLIPS, config.z_dim, dtype=torch.float64)
    if variant != "det":
        from svg_fast import ops

        eps = ops.gaussian_rsample(eps, eps, seed=5)
    oracle.train(statistics == "batch")
    with torch.no_grad():
        want = oracle(clips, eps)
    s2 = config.beta * 64 * 64 / 2
    elbo = [
        -(float(mse) / config.beta + float(kl) + 64 * 64 / 2 * math.log(2 * math.pi * s2))
        for mse, kl in zip(want.mse_per_step, want.kl_per_step, strict=True)
    ]
    assert found.bound is not None
    np.testing.assert_allclose(found.bound.mse_per_step, want.mse_per_step, rtol=1e-9)
    np.testing.assert_allclose(found.bound.kl_per_step, want.kl_per_step, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.bound.elbo_per_step, elbo, rtol=1e-9)
    assert found.bound.elbo == pytest.approx(sum(elbo) / len(elbo), rel=1e-9)


def test_a_model_without_an_observation_model_has_no_bound() -> None:
    model, _ = pair(replace(SMALL, beta=0.0))
    clips = clip(SMALL, T, 2)[0]
    assert evaluate(model, clips, Settings(n_samples=1)).bound is None
    assert bound_terms(model, clips, "batch", 0).shape == (2, T - 1)


def test_the_deterministic_model_has_one_sample() -> None:
    model, clips = model_and_clips("det")
    found = evaluate(model, clips, SETTINGS, name="baseline")
    assert found.protocol["n_samples"] == 1
    assert found.curves["psnr"]["best"] == found.curves["psnr"]["worst"]
    assert (found.name, found.scalars) == ("baseline", {})


class Brightness(nn.Module):
    """A stand-in for a network whose answers are known."""

    def forward(self, prediction: Tensor, truth: Tensor) -> Tensor:
        return (prediction.mean((-3, -2, -1)) - truth.mean((-3, -2, -1))).abs()

    def features(self, videos: Tensor) -> Tensor:
        return videos.mean((2, 3, 4))[:, :1].expand(-1, 400)


def test_networks_see_every_sample_and_the_first_of_each_clip() -> None:
    model, clips = model_and_clips()
    clips = torch.cat((clips, clips), dim=1)  # FVD wants nine frames
    network: Any = Brightness()
    found = evaluate(model, clips, SETTINGS, lpips=network, i3d=network)
    assert set(found.curves) == {"psnr", "ssim", "lpips"}
    lpips = found.curves["lpips"]
    assert sum(lpips["best"].mean) <= sum(lpips["mean"].mean) <= sum(lpips["worst"].mean)
    assert found.scalars["fvd"] == pytest.approx(0, abs=1e-12)  # of the first frame, which is given
    with pytest.raises(ValueError, match="FVD needs clips of at least 9 frames, got 7"):
        evaluate(model, clips[:, :T], SETTINGS, i3d=network)


@pytest.mark.parametrize(("n_clips", "batch_size"), [(7, 3), (256, 100), (5, 8), (6, 3), (9, 2)])
def test_groups_hold_every_clip_once_and_are_of_one_size(n_clips: int, batch_size: int) -> None:
    groups = [*_groups(n_clips, batch_size)]
    assert [clip for group in groups for clip in group] == list(range(n_clips))
    assert max(map(len, groups)) <= batch_size
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert len(groups) == math.ceil(n_clips / batch_size)


def test_progress_counts_every_rollout() -> None:
    model, clips = model_and_clips()
    done: list[int] = []
    evaluate(model, clips, SETTINGS, progress=done.append)
    assert sum(done) == CLIPS * SAMPLES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_samples": 0}, "n_samples must be at least 1, got 0"),
        ({"metrics": ("psnr", "mse")}, "metrics must be of psnr, ssim, ssim_published, ssim_finn, got psnr, mse"),
        ({"metrics": ()}, "metrics must be of .*, got none"),
        ({"best_by": "ssim_finn"}, "best_by must be one of the metrics psnr, ssim, got 'ssim_finn'"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)


def test_clips_that_are_too_short() -> None:
    model, clips = model_and_clips()
    with pytest.raises(ValueError, match="clips must have more frames than the n_past = 3 given ones, got 3"):
        evaluate(model, clips[:, :3], SETTINGS)
