"""Motion profiles of models whose motion is known: perfect ones, ones that are wrong, and what is drawn of them."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
from test_trajectory import Double
from torch import Tensor

from svg_fast import SVG, SVGConfig
from svg_fast.data import load_digits
from svg_fast.data.synchronised import find_first_hits
from svg_fast.evaluation import motion as module
from svg_fast.evaluation.motion import OFFSETS, MotionProfile, motion_figure, motion_profile
from svg_fast.evaluation.trajectory import Comparison, compare_displacements

TINY = SVGConfig(nf=2, g_dim=4, z_dim=2, rnn_size=4)  # five given frames, as the doubles have


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return load_digits(None, "test")


def profile_of(kind: str, digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> tuple[MotionProfile, list[Comparison]]:
    """The profile over four trajectories, with what was compared on each of them."""
    compared = []

    def compare(_: SVG, digits: Tensor, *, index: int, **options: object) -> Comparison:
        double = cast(SVG, Double("uniform", kind, index))
        compared.append(compare_displacements(double, digits, index=index, **options))  # type: ignore[arg-type]
        return compared[-1]

    monkeypatch.setattr(module, "compare_displacements", compare)
    ticks: list[int] = []
    found = motion_profile(SVG(TINY), digits, n_trajectories=4, n_digits=6, n_samples=20, progress=ticks.append)
    assert ticks == [1] * 4
    return found, compared


def test_a_perfect_model(digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    found, compared = profile_of("perfect", digits, monkeypatch)
    assert found.mode_share.shape == found.distance.shape == (4, len(OFFSETS))
    assert (found.mode_share[:, OFFSETS <= 0] == 1).all()
    assert np.isnan(found.mode_share[:, OFFSETS > 0]).all()
    assert (found.distance[:, OFFSETS <= 0] == 0).all()
    assert (float(found.until_hit().mean), float(found.until_hit().half)) == (1, 0)
    for row, steps in zip(found.distance, compared, strict=True):
        hit = int(np.argmax(steps.p_hit > 0))
        assert hit in (3, 4, 5)  # the predicted frames 4 to 6
        np.testing.assert_array_equal(row, steps.distance[hit - 3 : hit + 9])
        assert steps.p_true[hit].max() == 1
        assert steps.p_true[hit + 1].max() < 0.3
    after = found.distance[:, OFFSETS > 0].mean(1)
    np.testing.assert_allclose(found.after_hit().mean, after.mean())
    np.testing.assert_allclose(found.after_hit().half, 1.96 * after.std(ddof=1) / 2)


def test_a_model_that_is_wrong_for_every_third_digit(digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = profile_of("a third frozen", digits, monkeypatch)
    np.testing.assert_allclose(found.mode_share[:, OFFSETS <= 0], 4 / 6)
    np.testing.assert_allclose(found.distance[:, OFFSETS < 0], 2 / 6, atol=1e-12)


def test_trajectories_are_those_with_such_hits() -> None:
    indices = find_first_hits(5, 8, 10, seed=3)
    assert indices == sorted(set(indices))
    assert find_first_hits(2, 8, 10, seed=3) == indices[:2]


def test_figure_and_its_numbers(tmp_path: Path, digits: Tensor) -> None:
    profiles = {
        name: motion_profile(SVG(config), digits, n_trajectories=2, n_digits=3, n_samples=2)
        for name, config in {"a $model_": TINY, "baseline": SVGConfig(variant="det", nf=2, g_dim=4)}.items()
    }
    assert [(p.n_digits, p.n_samples) for p in profiles.values()] == [(3, 2), (6, 1)]  # one future has the baseline
    first, second = profiles.values()
    np.testing.assert_array_equal(first.floor, second.floor)
    path = tmp_path / "motion.png"
    motion_figure(profiles, path, motion="uniform")
    assert path.read_bytes().startswith(b"\x89PNG")
    table = np.loadtxt(tmp_path / "motion.csv", delimiter=",", skiprows=1)
    assert table[:, 0].tolist() == [1] * len(OFFSETS) + [2] * len(OFFSETS)
    assert table[:, 1].tolist() == OFFSETS.tolist() * 2
    np.testing.assert_allclose(table[:12, 4], profiles["a $model_"].distance.mean(0), rtol=1e-8)
    with pytest.raises(ValueError, match=r"path must end in \.png, got 'motion.pdf'"):
        motion_figure(profiles, tmp_path / "motion.pdf", motion="uniform")
    with pytest.raises(ValueError, match="n_trajectories must be at least 2 for an interval, got 1"):
        motion_profile(SVG(TINY), digits, n_trajectories=1)
