"""The prior's sigma is that of the published loop, one frame after another, and its figure shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from oracle import OracleSVG
from test_parity import SMALL, pair
from torch import Tensor

from svg_fast import SVG
from svg_fast.data import MovingMNIST, load_digits
from svg_fast.data.synchronised import synchronised_clips
from svg_fast.evaluation.prior_sigma import prior_figure
from svg_fast.models import chunks
from svg_fast.models.config import Statistics


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return load_digits(None, "test")


def published_sigma(oracle: OracleSVG, frames: Tensor, statistics: Statistics) -> Tensor:
    """(T - 1, B, z_dim), from the loop that runs encoder and prior once a frame."""
    oracle.train(statistics == "batch")
    oracle.init_hidden(len(frames))
    steps = []
    with torch.no_grad():
        for t in range(frames.shape[1] - 1):
            h, _ = oracle.encoder(frames[:, t].double() / 255)
            _, _, logvar = oracle.prior(h, torch.zeros(len(frames), oracle.c.z_dim))
            steps.append((logvar / 2).exp())
    return torch.stack(steps)


@pytest.mark.parametrize("images_at_once", [3, 13, 512])
@pytest.mark.parametrize("statistics", ["batch", "running"])
def test_sigma_is_the_published_loops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digits: Tensor, statistics: Statistics, images_at_once: int
) -> None:
    monkeypatch.setattr(chunks, "images_at_once", lambda *_: images_at_once)
    model, oracle = pair(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)  # a new model's sigma hardly depends on what it sees
    oracle.load_state_dict(model.state_dict())
    model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = prior_figure(
        model, digits, tmp_path / "figure6.png", n_clips=4, n_frames=9, index=2, seed=7, statistics=statistics
    )
    assert model.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())

    clips = synchronised_clips(digits, 4, 9, index=2, num_digits=2, seed=7)
    sigma = published_sigma(oracle, clips.frames, statistics).numpy()
    assert found.times.tolist() == list(range(2, 10))
    np.testing.assert_allclose(found.by_dimension, sigma.mean(1), rtol=1e-9)
    np.testing.assert_allclose(found.mean, sigma.mean((1, 2)), rtol=1e-9)
    np.testing.assert_allclose(found.std, sigma.mean(2).std(1, ddof=1), rtol=1e-6)
    assert found.std.max() > 1e-3
    assert found.hits.tolist() == clips.hits[0, 1:].tolist()


def test_figure_and_its_numbers(tmp_path: Path, digits: Tensor) -> None:
    path = tmp_path / "figure6.png"
    found = prior_figure(SVG(SMALL), digits, path, motion="nonuniform", num_digits=1, n_clips=3, n_frames=20)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure6-hits.csv", "figure6.csv", "figure6.png"]
    assert path.read_bytes().startswith(b"\x89PNG")
    header, *_ = path.with_suffix(".csv").read_text().splitlines()
    assert header == "t,sigma_mean,sigma_std,sigma_z1,sigma_z2,sigma_z3,hit_digit1"
    table = np.loadtxt(path.with_suffix(".csv"), delimiter=",", skiprows=1)
    columns = found.times[:, None], found.mean[:, None], found.std[:, None], found.by_dimension, found.hits
    np.testing.assert_allclose(table, np.hstack(columns).astype(np.float64), rtol=1e-8)
    assert found.hits.any()
    around = found.around
    table = np.loadtxt(tmp_path / "figure6-hits.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(table, np.stack((around.offsets, around.mean, around.half), 1), rtol=1e-8)


@pytest.mark.parametrize("num_digits", [1, 2])
def test_sigma_around_hits_is_that_of_a_loop(tmp_path: Path, digits: Tensor, num_digits: int) -> None:
    n_clips, n_frames = 5, 14
    model = SVG(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)  # a new model's sigma hardly depends on what it sees
    found = prior_figure(
        model, digits, tmp_path / "figure6.png", num_digits=num_digits, n_clips=n_clips, n_frames=n_frames, seed=3
    ).around

    clips = MovingMNIST(digits, n_frames, num_digits=num_digits, seed=3).clips(range(n_clips))
    prior = model.infer(clips.frames, statistics="running").prior  # whatever the model samples with
    assert prior is not None
    sigma = (prior[1] / 2).exp().double().mean(2)  # (T - 1, B)
    hits = clips.hits.any(2)

    def interval(values: list[float]) -> tuple[float, float]:
        return float(np.mean(values)), 1.96 * float(np.std(values, ddof=1)) / len(values) ** 0.5

    def by_clip(offset: int, other: bool = False) -> dict[int, float]:
        """The mean of a clip's frames that are (or, with `other`, are not) so far from a hit."""
        chosen: dict[int, list[float]] = {}
        for b in range(n_clips):
            for frame in range(1, n_frames):  # from 0; the prior's first is the second frame
                hit = 0 <= frame - offset < n_frames and bool(hits[b, frame - offset])
                if hit != other:
                    chosen.setdefault(b, []).append(float(sigma[frame - 1, b]))
        return {b: float(np.mean(values)) for b, values in chosen.items()}

    for offset, mean, half in zip(found.offsets, found.mean, found.half, strict=True):
        np.testing.assert_allclose((mean, half), interval(list(by_clip(int(offset)).values())), rtol=1e-6)
    after, elsewhere = by_clip(1), by_clip(1, other=True)
    np.testing.assert_allclose(found.at_hits, np.mean(list(after.values())), rtol=1e-6)
    np.testing.assert_allclose(found.elsewhere, np.mean(list(elsewhere.values())), rtol=1e-6)
    wanted = interval([after[b] - elsewhere[b] for b in after if b in elsewhere])
    np.testing.assert_allclose((found.difference, found.difference_half), wanted, rtol=1e-6)


def test_wrong_use_is_told(tmp_path: Path, digits: Tensor) -> None:
    path = tmp_path / "figure6.png"
    for variant in ("fp", "det"):
        with pytest.raises(ValueError, match=rf"learned prior \(variant lp\), got variant {variant}"):
            prior_figure(SVG(replace(SMALL, variant=variant)), digits, path)
    with pytest.raises(ValueError, match="n_clips and n_frames must be at least 2, got 1 and 100"):
        prior_figure(SVG(SMALL), digits, path, n_clips=1)
    with pytest.raises(ValueError, match=r"path must end in \.png, got 'figure6.svg'"):
        prior_figure(SVG(SMALL), digits, tmp_path / "figure6.svg")
    assert not list(tmp_path.iterdir())
