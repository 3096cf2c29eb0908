"""`SVG.sample` is the published generation loop: float64, injected noise, against the oracle; and wrong use of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_parity import SMALL, clip, pair, relative

from svg_fast import SVG

N_PAST, N_FUTURE, SAMPLES, BATCH = 3, 3, 3, 2


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize("skip", ["published", "paper", "last_frame"])
@pytest.mark.parametrize("backbone", ["dcgan", "vgg"])
@pytest.mark.parametrize("variant", ["lp", "fp", "det"])
def test_samples_are_the_oracles(variant: Any, backbone: Any, skip: str, statistics: Any) -> None:
    change = {"last_frame_skip": True} if skip == "last_frame" else {"skip": skip}
    model, oracle = pair(replace(SMALL, variant=variant, backbone=backbone, **change))
    frames, _, _ = clip(model.config, N_PAST, BATCH)
    eps = torch.randn(N_PAST + N_FUTURE - 1, SAMPLES, BATCH, model.config.z_dim, dtype=torch.float64)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    noise = None if variant == "det" else eps
    video = model.sample(frames, N_FUTURE, SAMPLES, statistics=statistics, eps=noise)
    oracle.train(statistics == "batch")
    running = oracle.state_dict()
    for k in range(SAMPLES):
        with torch.no_grad():
            assert relative(video[k], oracle.generate(frames, N_FUTURE, eps[:, k])) < 1e-9
        oracle.load_state_dict(running)
    assert torch.equal(video[:, :, :N_PAST], frames.expand(SAMPLES, *frames.shape))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_one_conditioning_frame_with_the_papers_skip() -> None:
    model, oracle = pair(replace(SMALL, n_past=1, skip="paper"))
    frames, _, _ = clip(model.config, 1, BATCH)
    eps = torch.randn(2, 1, BATCH, model.config.z_dim, dtype=torch.float64)
    with torch.no_grad():
        assert relative(model.sample(frames, 2, eps=eps)[0], oracle.generate(frames, 2, eps[:, 0])) < 1e-9


@pytest.mark.parametrize(("variant", "published"), [("lp", "batch"), ("fp", "running"), ("det", "running")])
def test_default_statistics_are_as_published(variant: Any, published: Any) -> None:
    model, _ = pair(replace(SMALL, variant=variant))
    frames, _, _ = clip(model.config, N_PAST, BATCH)
    seeded = [torch.Generator().manual_seed(3) for _ in range(2)]
    default = model.sample(frames, 1, 2, generator=seeded[0])
    assert torch.equal(default, model.sample(frames, 1, 2, generator=seeded[1], statistics=published))


def test_noise_follows_the_generator_and_uint8_frames_are_the_same_frames() -> None:
    model, _ = pair(SMALL)
    frames = (torch.rand(BATCH, N_PAST, 1, 64, 64) * 255).to(torch.uint8)
    videos = [
        model.sample(given, 2, 2, generator=torch.Generator().manual_seed(seed))
        for given, seed in ((frames, 0), (frames.double() / 255, 0), (frames, 1))
    ]
    assert torch.equal(videos[0], videos[1])
    assert not torch.equal(videos[0], videos[2])
    assert not torch.equal(videos[0][0], videos[0][1])


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        ((1, 3, 1, 64, 64), {}, 'batch of one clip.*statistics="running"'),
        ((2, 1, 1, 64, 64), {}, 'n_past = 1 leaves the published skip without a frame.*skip="paper"'),
        ((2, 3, 1, 64, 64), {"n_future": 0}, "n_future must be at least 1, got 0"),
        ((2, 3, 1, 64, 64), {"statistics": "both"}, '"batch" or "running", got \'both\''),
        (
            (2, 3, 1, 64, 64),
            {"eps": torch.zeros(2, 1, 2, 3)},
            r"eps must have shape \[4, 1, 2, 3\].*got \[2, 1, 2, 3\]",
        ),
        ((2, 3, 3, 64, 64), {}, r"frames must be \(B, T, 1, 64, 64\), got shape \[2, 3, 3, 64, 64\]"),
    ],
)
def test_wrong_use(frames: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    model, _ = pair(SMALL)
    with pytest.raises(ValueError, match=message):
        model.sample(torch.zeros(frames), **{"n_future": 2, **options})


def test_noise_of_another_dtype_and_counts() -> None:
    for variant in ("lp", "fp"):
        model = SVG(replace(SMALL, variant=variant))
        eps = torch.randn(4, 1, 2, SMALL.z_dim, dtype=torch.float64)
        assert model.sample(torch.rand(2, 3, 1, 64, 64), 2, eps=eps).dtype == torch.float32
    with pytest.raises(ValueError, match="n_samples must be at least 1, got 0"):
        model.sample(torch.zeros(2, 3, 1, 64, 64), 2, 0)
    with pytest.raises(ValueError, match="the given frames must be at least 1, got 0"):
        model.sample(torch.zeros(2, 0, 1, 64, 64), 2)
    with pytest.raises(ValueError, match="deterministic model has no latent"):
        SVG(replace(SMALL, variant="det")).sample(torch.zeros(2, 3, 1, 64, 64), 2, eps=eps)


def test_running_statistics_take_a_single_clip() -> None:
    model, _ = pair(SMALL)
    assert model.sample(torch.zeros(1, 3, 1, 64, 64), 2, 2, statistics="running").shape == (2, 1, 5, 1, 64, 64)
