"""What `SVG.sample` and `sample_chunks` can do beyond the published loop: chunks, seeds, latents, branches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from test_parity import SMALL, clip, pair, relative
from torch import Tensor

from svg_fast import SVG
from svg_fast.models import chunks, interpolate_latents
from svg_fast.models.chunks import activation_bytes
from svg_fast.models.config import SVGConfig

N_PAST, N_FUTURE, SAMPLES, BATCH = 3, 4, 5, 4
T = N_PAST + N_FUTURE


def model_and_frames(config: SVGConfig = SMALL, n_frames: int = N_PAST) -> tuple[SVG, Tensor]:
    model, _ = pair(config)
    return model, clip(config, n_frames, BATCH)[0]


def row_bytes(config: SVGConfig, images: int = 1) -> int:
    """A memory limit, in float64, for about so many rows."""
    model = SVG(config).double()
    with torch.no_grad():
        fixed = chunks._prepared_bytes((model.encoder.weights(True), model.decoder.weights(True)))
    per_row = (6 + 4 * config.last_frame_skip) * activation_bytes(config, 8)
    return fixed + images * (per_row + 2 * T * config.channels * config.image_size**2 * 8)


@pytest.mark.parametrize("statistics", ["batch", "running"])
@pytest.mark.parametrize(
    "config", [SMALL, replace(SMALL, variant="fp"), replace(SMALL, last_frame_skip=True)], ids=["lp", "fp", "own skips"]
)
def test_any_chunking_gives_the_same_samples(
    config: SVGConfig, statistics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, frames = model_and_frames(config)
    options: dict[str, Any] = {"statistics": statistics, "seed": 7}
    monkeypatch.setattr(chunks, "images_at_once", lambda *_: None)
    want = model.sample(frames, N_FUTURE, SAMPLES, **options)
    seen = set()
    for rows in (4, 8, 13) if statistics == "batch" else (1, 2, 8):
        limited = options | {"memory_limit": row_bytes(config, rows)}
        assert relative(model.sample(frames, N_FUTURE, SAMPLES, **limited), want) < 1e-9
        parts = list(model.sample_chunks(frames, N_FUTURE, SAMPLES, **limited))
        seen.add(len(parts))
        whole = torch.full_like(want, torch.nan)
        for part in parts:
            assert part.latents.shape == (T - 1, len(part.samples), len(part.clips), config.z_dim)
            whole[part.samples.start : part.samples.stop, part.clips.start : part.clips.stop] = part.video
        assert relative(whole, want) < 1e-9
    assert len(seen) > 1


def test_running_statistics_let_clips_be_cut_too() -> None:
    model, frames = model_and_frames()
    parts = list(model.sample_chunks(frames, N_FUTURE, 2, statistics="running", memory_limit=row_bytes(SMALL), seed=1))
    assert [(*part.samples, *part.clips) for part in parts] == [(s, b) for b in range(BATCH) for s in range(2)]
    with pytest.raises(ValueError, match=r"memory_limit must be at least \d+ bytes, for one sample of 4 clips of 7 fr"):
        model.sample(frames, N_FUTURE, 2, statistics="batch", memory_limit=row_bytes(SMALL))


def test_the_noise_belongs_to_the_seed_and_the_sample() -> None:
    model, frames = model_and_frames()
    options: dict[str, Any] = {"statistics": "running", "seed": 3}
    want = model.sample(frames, N_FUTURE, SAMPLES, **options)
    assert relative(model.sample(frames, N_FUTURE, 2, **options), want[:2]) < 1e-9
    assert relative(model.sample(frames, 2, SAMPLES, **options), want[:, :, : N_PAST + 2]) < 1e-9
    assert not torch.equal(model.sample(frames, N_FUTURE, SAMPLES, **options | {"seed": 4}), want)
    future = want[:, :, N_PAST:]
    assert all(not torch.equal(future[0], future[k]) for k in range(1, SAMPLES))


@pytest.mark.parametrize("variant", ["lp", "fp"])
def test_latents_of_a_rollout_make_it_again(variant: Any) -> None:
    model, frames = model_and_frames(replace(SMALL, variant=variant))
    (part,) = model.sample_chunks(frames, N_FUTURE, 2, seed=5)
    again = model.sample(frames, N_FUTURE, 2, z=part.latents)
    assert relative(again, part.video) < 1e-9


def test_interpolation_runs_from_one_rollout_to_the_other() -> None:
    model, frames = model_and_frames()
    (part,) = model.sample_chunks(frames, N_FUTURE, 2, seed=5)
    z = interpolate_latents(part.latents[:, 0], part.latents[:, 1], 3)
    between = model.sample(frames, N_FUTURE, 3, z=z)
    assert relative(between[::2], part.video) < 1e-9
    middle = model.sample(frames, N_FUTURE, 1, z=part.latents.mean(1, keepdim=True))
    assert relative(between[1:2], middle) < 1e-9
    with pytest.raises(ValueError, match="a and b must have one shape"):
        interpolate_latents(z[:, 0], z[:1, 0], 3)
    with pytest.raises(ValueError, match="n_samples must be at least 2, both ends included, got 1"):
        interpolate_latents(z[:, 0], z[:, 1], 1)


@pytest.mark.parametrize("variant", ["lp", "fp"])
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_the_posterior_of_true_frames_drives_what_is_fed_back(variant: Any, statistics: Any) -> None:
    """Against the oracle's nets, a step after the other; temperature 0 is the posterior's mean."""
    config = replace(SMALL, variant=variant)
    model, oracle = pair(config)
    frames = clip(config, T, BATCH)[0]
    eps = torch.randn(T - 1, 1, BATCH, config.z_dim, dtype=torch.float64)
    oracle.train(statistics == "batch")
    for temperature in (1.0, 0.0):
        options: dict[str, Any] = {"statistics": statistics, "latents": "posterior", "temperature": temperature}
        video = model.sample(frames, N_FUTURE, eps=eps, **options)[0]
        with torch.no_grad():
            oracle.init_hidden(BATCH)
            x = frames[:, 0]
            skip: list[Tensor] = []
            for i in range(1, T):
                h, skips = oracle.encoder(x)
                skip = skips if oracle.takes_skip(i, N_PAST) else skip
                scale = (0.0 if variant == "fp" else 1.0) if i < N_PAST else temperature
                z, _, _ = oracle.posterior(oracle.encoder(frames[:, i])[0], scale * eps[i - 1, 0])
                made = oracle.decoder(oracle.frame_predictor(torch.cat([h, z], 1)), skip)
                x = frames[:, i] if i < N_PAST else made
                assert relative(video[:, i], x) < 1e-9


def test_temperature_is_a_factor_of_the_futures_noise() -> None:
    model, frames = model_and_frames()
    eps = torch.randn(T - 1, 3, BATCH, SMALL.z_dim, dtype=torch.float64)
    temperature = torch.tensor([0.0, 0.5, 2.0])
    scaled = eps.clone()
    scaled[N_PAST - 1 :] *= temperature[:, None, None].double()
    want = model.sample(frames, N_FUTURE, 3, eps=scaled)
    assert relative(model.sample(frames, N_FUTURE, 3, eps=eps, temperature=temperature), want) < 1e-9
    same = model.sample(frames, N_FUTURE, 3, eps=scaled.mean(1, keepdim=True).expand_as(eps), temperature=0)
    assert torch.equal(same[0], same[2])


@pytest.mark.parametrize("branch_at", range(N_PAST, T))
@pytest.mark.parametrize("config", [SMALL, replace(SMALL, last_frame_skip=True)], ids=["shared skip", "own skips"])
def test_branches_share_the_first_sample_up_to_their_frame(config: SVGConfig, branch_at: int) -> None:
    model, frames = model_and_frames(config)
    eps = torch.randn(T - 1, SAMPLES, BATCH, config.z_dim, dtype=torch.float64)
    video = model.sample(frames, N_FUTURE, SAMPLES, eps=eps, branch_at=branch_at)
    joined = torch.cat((eps[: branch_at - 1, :1].expand(-1, SAMPLES, -1, -1), eps[branch_at - 1 :]))
    assert relative(video, model.sample(frames, N_FUTURE, SAMPLES, eps=joined)) < 1e-9
    assert all(torch.equal(video[0, :, :branch_at], video[k, :, :branch_at]) for k in range(1, SAMPLES))
    assert not torch.equal(video[0, :, branch_at], video[1, :, branch_at])
    (part,) = model.sample_chunks(frames, N_FUTURE, SAMPLES, eps=eps, branch_at=branch_at)
    assert relative(model.sample(frames, N_FUTURE, SAMPLES, z=part.latents), video) < 1e-9
    limit = row_bytes(config, 2 * BATCH)
    parts = list(model.sample_chunks(frames, N_FUTURE, SAMPLES, eps=eps, branch_at=branch_at, memory_limit=limit))
    assert len(parts) > 1
    assert relative(torch.cat([part.video for part in parts]), video) < 1e-9


def test_long_rollouts() -> None:
    model, frames = model_and_frames()
    video = model.sample(frames, 60, seed=1, statistics="running")
    assert video.shape[2] == N_PAST + 60
    assert video.isfinite().all()


@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_infer_is_what_the_loop_infers(statistics: Any) -> None:
    model, oracle = pair(SMALL)
    frames = clip(SMALL, T, BATCH)[0]
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = model.infer(frames, statistics=statistics)
    oracle.train(statistics == "batch")
    assert found.posterior is not None
    assert found.prior is not None
    with torch.no_grad():
        oracle.init_hidden(BATCH)
        for i in range(1, T):
            for net, t, got in ((oracle.posterior, i, found.posterior), (oracle.prior, i - 1, found.prior)):
                _, mu, logvar = net(oracle.encoder(frames[:, t])[0], torch.zeros(BATCH, SMALL.z_dim).double())
                assert relative(got[0][i - 1], mu) < 1e-9
                assert relative(got[1][i - 1], logvar) < 1e-9
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    deterministic, _ = model_and_frames(replace(SMALL, variant="det"))
    assert deterministic.infer(frames) == (None, None)
    with pytest.raises(ValueError, match="frames must be at least two of each clip, got 1"):
        model.infer(frames[:, :1])


def test_infer_takes_bytes() -> None:
    model, _ = pair(SMALL)
    levels = torch.randint(256, (BATCH, T, 1, 64, 64), dtype=torch.uint8)
    for got, want in zip(model.infer(levels), model.infer(levels.double() / 255), strict=True):
        assert got is not None
        assert want is not None
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    with pytest.raises(ValueError, match="frames must have 5 dimensions"):
        model.infer(levels[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latents": "future"}, 'latents must be "prior" or "posterior", got \'future\''),
        ({"latents": "posterior"}, "the given frames must be at least 1 beyond n_future = 4, got -1"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*63\), got -1"),
        ({"seed": 1, "eps": torch.zeros(T - 1, 2, BATCH, SMALL.z_dim)}, "give one of eps, z, seed and generator"),
        ({"z": torch.zeros(1)}, r"z must have shape \[6, 2, 4, 3\] \(T - 1, S, B, z_dim\), got \[1\]"),
        ({"temperature": -1.0}, "temperature must be finite and not negative, got -1"),
        ({"temperature": torch.ones(3)}, r"temperature must be a number or have shape \[2\] \(S,\), got \[3\]"),
        ({"branch_at": 2}, "branch_at must be a generated frame, 3 to 6 counted from 0, got 2"),
        ({"branch_at": 7}, "branch_at must be a generated frame, 3 to 6 counted from 0, got 7"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    model, frames = model_and_frames()
    with pytest.raises(ValueError, match=message):
        model.sample(frames, N_FUTURE, 2, **options)


def test_a_misspelt_option_is_named_at_once() -> None:
    model, frames = model_and_frames()
    misspelt: Any = {"temprature": 0.0}
    with pytest.raises(TypeError, match="unknown option temprature of sample; the options are statistics, seed"):
        model.sample(frames, 1, **misspelt)
    with pytest.raises(ValueError, match="n_future must be at least 1, got 0"):
        model.sample_chunks(frames, 0)


def test_the_deterministic_model_takes_no_latents() -> None:
    model, frames = model_and_frames(replace(SMALL, variant="det"))
    with pytest.raises(ValueError, match="eps and z must be None"):
        model.sample(frames, 1, z=torch.zeros(N_PAST, 1, BATCH, SMALL.z_dim))
    with pytest.raises(ValueError, match='latents="posterior" asks for one'):
        model.sample(frames, 1, latents="posterior")
    (part,) = model.sample_chunks(frames, 1, 2, temperature=3.0)
    assert part.latents.shape == (N_PAST, 2, BATCH, 0)
