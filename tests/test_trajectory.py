"""The true motion of a digit against simulations and the data set; what is read off generated clips against both."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import binom
from test_parity import SMALL
from torch import Tensor, nn

from svg_fast import SVG
from svg_fast.data import MovingMNIST, load_digits
from svg_fast.data.displacements import displacements, expected_distance
from svg_fast.data.synchronised import find_first_hits, synchronised_clips
from svg_fast.data.velocity import MOTIONS, Motion
from svg_fast.evaluation.trajectory import Comparison, compare_displacements, trajectory_figure
from svg_fast.models.chunks import ranges
from svg_fast.models.generation import Chunk

Array = npt.NDArray[Any]
GRID = np.array([(dx, dy) for dx in range(-4, 5) for dy in range(-4, 5)])


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return load_digits(None, "test")


def simulate(
    start: tuple[int, int], velocity: tuple[int, int], motion: Motion, n_steps: int, n: int, seed: int, size: int = 64
) -> Array:
    """n digits from one state, moved as the paper tells it: positions (n, n_steps + 1, 2)."""
    rng = np.random.default_rng(seed)
    p, v = np.tile(start, (n, 1)), np.tile(velocity, (n, 1))
    path = [p.copy()]
    for _ in range(n_steps):
        p = p + v
        walls = np.where(p < 0, -1, np.where(p >= size - 32, 1, 0))
        p = np.where(walls < 0, 0, np.where(walls > 0, size - 33, p))
        if motion == "deterministic":
            v = np.where(walls != 0, -v, v)
        elif motion == "uniform":
            for side in (1, 0):  # the y wall first, and the x wall draws anew
                hit = walls[:, side] != 0
                v[hit, side] = -walls[hit, side] * rng.integers(1, 5, hit.sum())
                v[hit, 1 - side] = rng.integers(-4, 5, hit.sum())
        else:
            for wall in np.unique(walls[(walls != 0).any(1)], axis=0):
                hit = (walls == wall).all(1)
                weight = np.exp(np.abs(GRID).sum(1) / 2) * (GRID * wall <= 0).all(1)
                v[hit] = GRID[rng.choice(81, hit.sum(), p=weight / weight.sum())]
        path.append(p.copy())
    return np.stack(path, axis=1)


def histogram(steps: Array) -> Array:
    """Displacements (n, 2) -> shares (9, 9)."""
    counts = np.zeros((9, 9))
    np.add.at(counts, (steps[:, 0] + 4, steps[:, 1] + 4), 1)
    return counts / len(steps)


def assert_within_sampling_error(sampled: Array, wanted: Array, n: int) -> None:
    """The total variation is near its expectation: farther off than this only once in a million (McDiarmid)."""
    distance = np.abs(sampled - wanted).sum(axis=(1, 2)) / 2
    assert (np.abs(distance - expected_distance(wanted, n)) < math.sqrt(math.log(1e6) / (2 * n))).all()


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize(("start", "velocity"), [((28, 16), (2, -3)), ((2, 29), (-3, 4)), ((10, 0), (0, -1))])
def test_displacements_are_those_of_a_simulation(
    motion: Motion, start: tuple[int, int], velocity: tuple[int, int]
) -> None:
    n, n_steps = 40_000, 12
    path = simulate(start, velocity, motion, n_steps, n, seed=1)
    true = displacements(start, velocity, n_steps, motion=motion)
    np.testing.assert_allclose(true.p.sum(axis=(1, 2)), 1, rtol=1e-12)
    sampled = np.stack([histogram(steps) for steps in np.diff(path, axis=1).swapaxes(0, 1)])
    assert_within_sampling_error(sampled, true.p, n)
    assert ((true.p > 0) >= (sampled > 0)).all()
    if motion == "deterministic":
        assert (true.p.max(axis=(1, 2)) == 1).all()


@pytest.mark.parametrize("motion", MOTIONS)
def test_displacements_are_those_of_the_data_set(motion: Motion) -> None:
    n, n_steps, size = 10_000, 5, 34
    blank = torch.zeros(1, 32, 32, dtype=torch.uint8)
    data = MovingMNIST(blank, n_steps + 1, num_digits=1, image_size=size, motion=motion, seed=2)
    clips = data.clips(range(n))
    states, counts = torch.cat((clips.positions[:, 0, 0], clips.velocities[:, 0, 0]), 1).unique(
        dim=0, return_counts=True
    )
    p, p_hit = np.zeros((n_steps, 9, 9)), np.zeros(n_steps)
    for (x, y, dx, dy), share in zip(states.tolist(), (counts / n).tolist(), strict=True):
        true = displacements((x, y), (dx, dy), n_steps, motion=motion, image_size=size)
        p, p_hit = p + share * true.p, p_hit + share * true.p_hit
    moved = clips.positions[:, :, 0].diff(dim=1).numpy().swapaxes(0, 1)
    assert_within_sampling_error(np.stack([histogram(steps) for steps in moved]), p, n)
    np.testing.assert_allclose(clips.hits[:, 1:, 0].double().mean(0).numpy(), p_hit, atol=0.02)


@pytest.mark.parametrize("n", [1, 7, 100])
def test_expected_distance_is_the_binomials(n: int) -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(12), size=3)
    p[1] = 0
    p[1, 4] = 1
    p[2, :3], p[2, 3:] = (0.5, 0.25, 0.25), 0
    k = np.arange(n + 1)
    wanted = [sum(binom.pmf(k, n, q) @ np.abs(k / n - q) for q in row) / 2 for row in p]
    np.testing.assert_allclose(expected_distance(p, n), wanted, rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("motion", MOTIONS)
def test_synchronised_clips_are_the_data_sets(digits: Tensor, motion: Motion) -> None:
    index, n_clips = 3, 6
    setting = {"num_digits": 2, "image_size": 48, "motion": motion, "seed": 5}
    clips = synchronised_clips(digits, n_clips, 30, index=index, **cast(Any, setting))
    own = MovingMNIST(digits, 30, **cast(Any, setting)).clips([index])
    for field, wanted in zip(clips, own, strict=True):
        assert torch.equal(field[index], wanted[0])
    assert len(clips.digits.unique(dim=0)) == n_clips
    for b, (first, second) in enumerate(clips.digits.tolist()):
        alone = MovingMNIST(digits[first : first + 1], 30, **cast(Any, setting)).clips([index])
        assert torch.equal(clips.positions[b], alone.positions[0])  # whatever the images are
        for t, ((x, y), (u, v)) in enumerate(clips.positions[b].tolist()):
            frame = torch.zeros(48, 48, dtype=torch.int64)
            frame[y : y + 32, x : x + 32] += digits[first]
            frame[v : v + 32, u : u + 32] += digits[second]
            assert torch.equal(clips.frames[b, t, 0], frame.clamp(max=255).to(torch.uint8))


def test_first_hits_are_where_they_are_wanted() -> None:
    blank = torch.zeros(1, 32, 32, dtype=torch.uint8)
    hits = MovingMNIST(blank, 12, num_digits=1, seed=4).clips(range(600)).hits[:, :, 0]
    for first, last in ((1, 1), (7, 9), (11, 11)):
        wanted = [i for i, clip in enumerate(hits.tolist()) if True in clip and first <= clip.index(True) <= last]
        assert find_first_hits(3, first, last, seed=4) == wanted[:3]
    with pytest.raises(ValueError, match="1 <= first <= last, got 5 and 4"):
        find_first_hits(1, 5, 4)
    with pytest.raises(ValueError, match="from 60 to 60 must be in 1 of 16384 clips of 34x34 pixels, got 0"):
        find_first_hits(1, 60, 60, image_size=34, motion="deterministic")
    with pytest.raises(ValueError, match="n_clips must be at least 1, got 0"):
        synchronised_clips(blank, 0, 3, index=0)


class Double(nn.Module):
    """What the figure asks of a model: futures, drawn by the data set's own rules, or other ones."""

    def __init__(self, motion: Motion, kind: str, index: int, n_past: int = 5) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(n_past=n_past, image_size=64, variant="lp")
        self.motion, self.kind, self.index = motion, kind, index

    def sample_chunks(
        self, frames: Tensor, n_future: int, n_samples: int, *, statistics: Any, seed: int
    ) -> Iterator[Chunk]:
        """In chunks of one sample and at most seven clips."""
        for clips in ranges(len(frames), 7):
            video = self.futures(frames[clips.start : clips.stop], n_future, n_samples, seed + clips.start)
            for sample in range(n_samples):
                yield Chunk(range(sample, sample + 1), clips, video[sample : sample + 1], torch.empty(0))

    def futures(self, frames: Tensor, n_future: int, n_samples: int, seed: int) -> Tensor:
        blank = torch.zeros(1, 32, 32, dtype=torch.uint8)
        known = MovingMNIST(blank, frames.shape[1], num_digits=1, motion=self.motion).clips([self.index])
        (x, y), (dx, dy) = known.positions[0, -1, 0].tolist(), known.velocities[0, -1, 0].tolist()
        n, batch = n_samples, len(frames)
        path = np.tile((x, y), (n * batch, n_future, 1))
        if self.kind in ("perfect", "a third frozen"):
            path = simulate((x, y), (dx, dy), self.motion, n_future, n * batch, seed)[:, 1:]
        elif self.kind == "leaping":
            path = (path + 5 * (np.arange(n_future)[:, None] + 1)) % 33
        path = path.reshape(n, batch, n_future, 2)
        if self.kind == "a third frozen":
            path[:, ::3] = x, y
        video = torch.zeros(n, batch, frames.shape[1] + n_future, 1, 64, 64)
        video[:, :, : frames.shape[1]] = frames / 255
        digit = frames[:, -1, 0, y : y + 32, x : x + 32] / 255
        for s, b, t in np.ndindex(n, batch, n_future):
            u, v = path[s, b, t].tolist()
            if self.kind != "blinking" or t % 2:
                video[s, b, frames.shape[1] + t, 0, v : v + 32, u : u + 32] = digit[b]
        return video


def compare(kind: str, motion: Motion, digits: Tensor, n_samples: int, n_future: int) -> Comparison:
    model = cast(SVG, Double(motion, kind, find_first_hits(1, 7, 9, motion=motion)[0]))
    return compare_displacements(model, digits, motion=motion, n_digits=10, n_samples=n_samples, n_future=n_future)


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_perfect_model_is_as_far_off_as_true_draws(digits: Tensor, motion: Motion) -> None:
    found = compare("perfect", motion, digits, n_samples=60, n_future=7)
    assert found.n_draws == 600
    assert not found.outside.any()
    assert not found.lost.any()
    assert_within_sampling_error(found.p_model, found.p_true, 600)
    np.testing.assert_allclose(found.distance, found.floor, atol=0.06)
    certain = found.times[found.p_hit > 1 - 1e-9]
    assert certain[0] in (8, 9, 10)
    before, after = found.times <= certain[0], found.times == certain[0] + 1
    assert (found.distance[before] == 0).all()
    assert (found.mode_share[before] == 1).all()
    if motion != "deterministic":
        assert found.p_true[after].max() < 0.3
        assert np.isnan(found.mode_share[after]).all()


def test_a_frozen_digit_is_as_far_off_as_can_be(digits: Tensor) -> None:
    found = compare("frozen", "uniform", digits, n_samples=2, n_future=12)
    np.testing.assert_allclose(found.distance, 1 - found.p_true[:, 4, 4], atol=1e-12)
    assert (found.p_model[:, 4, 4] == 1).all()
    assert found.distance.min() > 0.9


def test_a_step_from_or_to_an_empty_frame_is_lost(digits: Tensor) -> None:
    found = compare("blinking", "nonuniform", digits, n_samples=2, n_future=3)
    assert (found.lost == 1).all()
    assert not found.p_model.any()
    assert (found.distance == 1).all()


def test_a_leaping_digit_is_outside_the_table(digits: Tensor) -> None:
    found = compare("leaping", "uniform", digits, n_samples=2, n_future=3)
    assert (found.outside == 1).all()
    assert not found.lost.any()
    assert (found.distance == 1).all()


def test_figure_of_a_model_and_its_numbers(tmp_path: Path, digits: Tensor) -> None:
    torch.manual_seed(0)
    model = SVG(SMALL)
    path = tmp_path / "figure4.png"
    found = trajectory_figure(model, digits, path, motion="nonuniform", n_digits=3, n_samples=2, n_future=4)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure4-distance.csv", "figure4.csv", "figure4.png"]
    assert path.read_bytes().startswith(b"\x89PNG")
    t, dx, dy, p_true, p_model = np.loadtxt(tmp_path / "figure4.csv", delimiter=",", skiprows=1, unpack=True)
    assert t.tolist() == np.repeat([3, 4, 5, 6], 81).tolist()
    assert np.stack((dx, dy), 1).tolist() == np.tile(GRID, (4, 1)).tolist()
    np.testing.assert_allclose(p_true.reshape(4, 9, 9), found.p_true, rtol=1e-8)
    np.testing.assert_allclose(p_model.reshape(4, 9, 9), found.p_model, rtol=1e-8)
    table = np.loadtxt(tmp_path / "figure4-distance.csv", delimiter=",", skiprows=1, unpack=True)
    columns = found.times, found.p_hit, found.mode_share, found.distance, found.floor, found.outside, found.lost
    np.testing.assert_allclose(table, columns, rtol=1e-8)
    np.testing.assert_allclose(found.p_model.sum(axis=(1, 2)) + found.outside + found.lost, 1)


def test_wrong_arguments_are_told(tmp_path: Path, digits: Tensor) -> None:
    model = SVG(SMALL)
    with pytest.raises(ValueError, match=r"path must end in \.png, got 'figure4.pdf'"):
        trajectory_figure(model, digits, tmp_path / "figure4.pdf")
    with pytest.raises(ValueError, match=r"n_past must be at least 2 .* got 2, 0 and 15"):
        compare_displacements(model, digits, n_samples=0)
    with pytest.raises(ValueError, match=r"position must be in 0 \.\. 31 .* got \(32, 0\) and \(1, 1\)"):
        displacements((32, 0), (1, 1), 3, motion="uniform")
    (index,) = find_first_hits(1, 1, 1)
    with pytest.raises(ValueError, match=f"touch a wall in its 2 given frames, that of index={index} does"):
        compare_displacements(model, digits, index=index)
    assert not list(tmp_path.iterdir())
