"""Stochastic Moving MNIST against a plain simulation, the paper's distributions and its own promises."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.nn.functional import conv2d
from torch.utils.data import DataLoader

from svg_fast.data import Clips, MovingMNIST, velocity_probabilities
from svg_fast.data.velocity import MOTIONS, Motion
from svg_fast.evaluation.figures import velocity_figure
from svg_fast.reference.philox import philox4x32

Velocity = tuple[int, int]
GRID: list[Velocity] = [(dx, dy) for dx in range(-4, 5) for dy in range(-4, 5)]


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """Ten images of noise inside a black margin: no two alike, and most overlaps saturate somewhere."""
    image = torch.randint(0, 256, (10, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image[:, :4] = image[:, 28:] = image[:, :, :4] = image[:, :, 28:] = 0
    return image


def weights(motion: Motion, walls: Velocity) -> list[float]:
    """The paper's velocity distribution, cell by cell over GRID; walls as in svg_fast.data.velocity."""
    result = []
    for dx, dy in GRID:
        if motion == "nonuniform":
            valid = dx * walls[0] <= 0 and dy * walls[1] <= 0
            result.append(math.exp((abs(dx) + abs(dy)) / 2) if valid else 0.0)
        elif walls[0]:
            result.append(1.0 if dx * walls[0] < 0 else 0.0)
        else:
            result.append(1.0 if not walls[1] or dy * walls[1] < 0 else 0.0)
    return result


def draw_velocity(word: int, motion: Motion, walls: Velocity) -> Velocity:
    weight = weights(motion, walls)
    total = 0.0
    for velocity, w in zip(GRID, weight, strict=True):
        total += w
        if word / 2**32 < total / sum(weight):
            return velocity
    raise AssertionError("the weights sum to less than one")


def simulate(digits: Tensor, motion: Motion, seed: int, index: int, T: int, D: int, S: int) -> Clips:
    """One clip, digit by digit and frame by frame as the paper tells it, from the same random words."""

    def words(digit: int, block: int) -> list[int]:
        counter = (index % 2**32, index >> 32, block, 0x4D4E5354 + digit)
        return list(philox4x32(counter, (seed % 2**32, seed >> 32)).tolist())

    frames = np.zeros((1, T, 1, S, S), dtype=np.int64)
    positions, velocities = np.zeros((2, 1, T, D, 2), dtype=np.int64)
    hits, chosen = np.zeros((1, T, D), dtype=bool), np.zeros((1, D), dtype=np.int64)
    for d in range(D):
        first = words(d, 0)
        chosen[0, d] = first[0] * len(digits) // 2**32
        x, y = (word * (S - 32) // 2**32 for word in first[1:3])
        dx, dy = draw_velocity(first[3], motion, (0, 0))
        for t in range(T):
            wall_x = wall_y = 0
            if y < 0:
                y, wall_y = 0, -1
            elif y >= S - 32:
                y, wall_y = S - 33, 1
            if x < 0:
                x, wall_x = 0, -1
            elif x >= S - 32:
                x, wall_x = S - 33, 1
            if motion == "deterministic":
                dx, dy = (-dx if wall_x else dx), (-dy if wall_y else dy)
            elif wall_x or wall_y:
                dx, dy = draw_velocity(words(d, 1 + t // 4)[t % 4], motion, (wall_x, wall_y))
            frames[0, t, 0, y : y + 32, x : x + 32] += digits[chosen[0, d]].numpy()
            positions[0, t, d], velocities[0, t, d], hits[0, t, d] = (x, y), (dx, dy), bool(wall_x or wall_y)
            x, y = x + dx, y + dy
    pixels = frames.clip(0, 255).astype(np.uint8)
    return Clips(*map(torch.from_numpy, (pixels, positions, velocities, hits, chosen)))


def assert_same(got: Clips, wanted: Clips) -> None:
    for name, a, b in zip(Clips._fields, got, wanted, strict=True):
        assert a.dtype == b.dtype, name
        assert torch.equal(a, b), name


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize(
    ("seed", "index", "T", "D", "S"),
    [
        (0, 0, 15, 2, 64),
        (1, 59_999, 40, 2, 64),
        (2**63 + 7, 2**40 + 3, 15, 3, 48),
        (5, 17, 30, 1, 34),
        (6, 3, 9, 2, 33),
        (7, 8, 1, 5, 128),
    ],
)
def test_clip_is_the_plain_simulation(
    digits: Tensor, motion: Motion, seed: int, index: int, T: int, D: int, S: int
) -> None:
    data = MovingMNIST(digits, T, num_digits=D, image_size=S, motion=motion, seed=seed, length=2**41)
    assert_same(data.clips([index]), simulate(digits, motion, seed, index, T, D, S))


@pytest.mark.parametrize("motion", MOTIONS)
def test_clip_does_not_depend_on_its_batch_or_process(digits: Tensor, motion: Motion) -> None:
    data = MovingMNIST(digits, 12, motion=motion, seed=3, length=24)
    whole = data.clips(range(24))
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    assert_same(data.clips(order), Clips(*(field[order] for field in whole)))
    assert torch.equal(torch.stack([data[i] for i in range(24)]), whole.frames)
    for workers in (0, 2):
        loaded = torch.cat(list(DataLoader(data, batch_size=5, num_workers=workers)))
        assert torch.equal(loaded, whole.frames), f"{workers} workers"


def test_longer_clip_begins_with_the_shorter_one(digits: Tensor) -> None:
    short = MovingMNIST(digits, 7).clips(range(10))
    long = MovingMNIST(digits, 50).clips(range(10))
    assert_same(short, Clips(*(field[:, :7] for field in long))._replace(digits=long.digits))


def test_clips_of_other_seeds_and_indices_differ(digits: Tensor) -> None:
    seeds = [0, 1, 2**32, 2**32 + 1, 2**64 - 1]
    clips = [f for s in seeds for f in MovingMNIST(digits, seed=s).clips(range(20)).frames]
    assert len({clip.numpy().tobytes() for clip in clips}) == len(clips)


def test_empty_batch(digits: Tensor) -> None:
    clips = MovingMNIST(digits, 6, num_digits=3).clips([])
    assert [tuple(field.shape) for field in clips] == [
        (0, 6, 1, 64, 64),
        (0, 6, 3, 2),
        (0, 6, 3, 2),
        (0, 6, 3),
        (0, 3),
    ]


def fit(counts: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """p-value of a chi-square test; cells that expect fewer than 5 are counted as one."""
    expected = expected / expected.sum() * counts.sum()
    assert counts[expected == 0].sum() == 0
    rare = expected < 5
    if rare.any() and expected[rare].sum() > 0:
        counts = np.append(counts[~rare], counts[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    elif rare.any():
        counts, expected = counts[~rare], expected[~rare]
    return float(chisquare(counts, expected).pvalue)


def count_velocities(velocities: Tensor) -> npt.NDArray[Any]:
    cell = (velocities[:, 0] + 4) * 9 + velocities[:, 1] + 4
    return torch.bincount(cell, minlength=81).numpy()


@pytest.mark.parametrize("motion", MOTIONS)
def test_start_has_the_distribution_of_the_paper(digits: Tensor, motion: Motion) -> None:
    clips = MovingMNIST(digits, 1, motion=motion, seed=11).clips(range(10_000))
    x, y = clips.positions.reshape(-1, 2).T
    assert fit(torch.bincount(x * 32 + y, minlength=32 * 32).numpy(), np.ones(32 * 32)) > 1e-3
    assert fit(torch.bincount(clips.digits.reshape(-1)).numpy(), np.ones(10)) > 1e-3
    first = count_velocities(clips.velocities.reshape(-1, 2))
    assert fit(first, np.array(weights(motion, (0, 0)))) > 1e-3


@pytest.mark.parametrize("motion", ["uniform", "nonuniform"])
def test_velocity_after_a_hit_has_the_distribution_of_the_paper(digits: Tensor, motion: Motion) -> None:
    clips = MovingMNIST(digits, 20, image_size=44, motion=motion, seed=12).clips(range(2000))
    beyond = clips.positions[:, :-1] + clips.velocities[:, :-1]
    walls = (beyond - clips.positions[:, 1:]).sign()
    for wall in [(-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1)]:
        after = clips.velocities[:, 1:][(walls == torch.tensor(wall)).all(-1)]
        assert len(after) > 300, wall
        assert fit(count_velocities(after), np.array(weights(motion, wall))) > 1e-3, wall


def test_deterministic_motion_only_reflects(digits: Tensor) -> None:
    clips = MovingMNIST(digits, 60, image_size=44, motion="deterministic").clips(range(50))
    assert torch.equal(clips.velocities.abs(), clips.velocities[:, :1].abs().expand_as(clips.velocities))
    assert clips.hits.any()


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("S", [33, 40, 64, 100])
def test_trajectories_obey_the_walls(digits: Tensor, motion: Motion, S: int) -> None:
    clips = MovingMNIST(digits, 30, image_size=S, num_digits=3, motion=motion).clips(range(50))
    assert clips.positions.min() >= 0
    assert clips.positions.max() <= S - 33
    moved = clips.positions[:, :-1] + clips.velocities[:, :-1]
    assert torch.equal(clips.positions[:, 1:], moved.clamp(0, S - 33))
    assert torch.equal(clips.hits[:, 1:], (clips.positions[:, 1:] != moved).any(-1))
    assert not clips.hits[:, 0].any()
    same = (clips.velocities[:, 1:] == clips.velocities[:, :-1]).all(-1)
    assert (same | clips.hits[:, 1:]).all()


def test_frames_show_the_digit_where_the_trajectory_says(digits: Tensor) -> None:
    clips = MovingMNIST(digits, 20, num_digits=1).clips(range(8))
    for frames, positions, digit in zip(clips.frames, clips.positions, clips.digits, strict=True):
        match = conv2d(frames.double(), digits[digit].view(1, 1, 32, 32).double())
        best = match.flatten(1).argmax(1)
        assert torch.equal(torch.stack((best % 33, best // 33), dim=-1), positions[:, 0])


def test_overlapping_digits_add_up_to_white_and_no_further() -> None:
    clips = MovingMNIST(torch.full((1, 32, 32), 100, dtype=torch.uint8), num_digits=4).clips(range(50))
    covers = torch.zeros(clips.frames.shape)
    for b, t, d in np.ndindex(*clips.hits.shape):
        x, y = clips.positions[b, t, d].tolist()
        covers[b, t, 0, y : y + 32, x : x + 32] += 1
    assert covers.max() == 4
    assert torch.equal(clips.frames, (100 * covers).clamp(max=255).to(torch.uint8))


def test_nonuniform_velocities_are_peaked_at_great_speeds() -> None:
    p = velocity_probabilities("nonuniform")
    assert p.sum() == pytest.approx(1)
    assert p[0, 0] == p.max()
    assert p[4, 4] == p.min()
    assert p[0, 0] / p[4, 4] == pytest.approx(math.exp(4))
    corner = velocity_probabilities("nonuniform", wall_x=1, wall_y=-1)
    assert corner.sum() == pytest.approx(1)
    assert corner[5:].sum() == 0
    assert corner[:, :4].sum() == 0
    assert corner[0, 8] / corner[4, 4] == pytest.approx(math.exp(4))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 32}, "image_size must be more than the digits' 32 pixels, got 32"),
        ({"motion": "brownian"}, "motion must be one of uniform, nonuniform, deterministic, got 'brownian'"),
        ({"n_frames": 0}, "at least 1, got 0, 2 and 60000"),
        ({"num_digits": 0}, "at least 1, got 15, 0 and 60000"),
        ({"length": -1}, "at least 1, got 15, 2 and -1"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*64\), got -1"),
        ({"digits": torch.zeros(4, 28, 28, dtype=torch.uint8)}, r"\(N, 32, 32\).* got .*\(4, 28, 28\)"),
        ({"digits": torch.zeros(4, 32, 32)}, "digits must be uint8 .* got torch.float32"),
        ({"digits": torch.zeros(0, 32, 32, dtype=torch.uint8)}, r"N >= 1, got .*\(0, 32, 32\)"),
    ],
)
def test_wrong_arguments_are_told(digits: Tensor, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MovingMNIST(**{"digits": digits, **wrong})


def test_velocity_figure_and_its_numbers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    velocity_figure(tmp_path / "figure3.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["figure3.csv", "figure3.png"]
    assert (tmp_path / "figure3.png").read_bytes().startswith(b"\x89PNG")
    dx, dy, start, after = np.loadtxt(tmp_path / "figure3.csv", delimiter=",", skiprows=1, unpack=True)
    assert list(zip(dx, dy, strict=True)) == GRID
    for got, walls in ((start, (0, 0)), (after, (1, 0))):
        wanted = np.array(weights("nonuniform", walls))
        np.testing.assert_allclose(got, wanted / wanted.sum(), rtol=1e-6)
    with pytest.raises(ValueError, match=r"path must end in \.png, got 'figure3.pdf'"):
        velocity_figure(tmp_path / "figure3.pdf")


def test_wrong_walls_are_told() -> None:
    with pytest.raises(ValueError, match="wall_x and wall_y must be -1, 0 or 1, got 2 and 0"):
        velocity_probabilities("uniform", 2)
    with pytest.raises(ValueError, match="deterministic motion reflects"):
        velocity_probabilities("deterministic", 1)
    with pytest.raises(ValueError, match="motion must be one of"):
        velocity_probabilities("still")  # type: ignore[arg-type]


@pytest.mark.parametrize("index", [-1, 10])
def test_index_outside_is_told(digits: Tensor, index: int) -> None:
    with pytest.raises(IndexError, match=rf"index must be in \[0, 10\), got {index}"):
        MovingMNIST(digits, length=10)[index]
