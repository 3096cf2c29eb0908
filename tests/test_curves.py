"""The curve plot shows the numbers it was given, marks the horizon, and refuses models that do not compare."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.color import deltaE_ciede2000, rgb2lab

from svg_fast.evaluation.curves import colour, curve_figure, draw_bound, draw_curves
from svg_fast.evaluation.results import SUMMARIES, Bound, Curve, Evaluation

N_PAST, N_FUTURE, HORIZON = 5, 12, 10
LEVELS = {"ssim": 0.8, "psnr": 20.0, "ssim_finn": 0.7, "lpips": 0.1}


def evaluation(
    name: str, seed: int = 0, n_samples: int = 100, metrics: tuple[str, ...] = ("psnr", "ssim")
) -> Evaluation:
    """Made-up results in which no two numbers are alike."""
    random = np.random.default_rng(seed)

    def curve(metric: str) -> Curve:
        mean = LEVELS[metric] * (1 - 0.02 * np.arange(N_FUTURE) - 0.05 * random.random(N_FUTURE))
        return Curve(mean.tolist(), (0.01 * mean * (1 + random.random(N_FUTURE))).tolist(), 0.005 * LEVELS[metric])

    steps = N_PAST + N_FUTURE - 1
    elbo, kl, mse = -500 - 90 * random.random(steps), 3 + random.random(steps), 0.01 + 0.01 * random.random(steps)
    return Evaluation(
        name=name,
        n_past=N_PAST,
        horizon=HORIZON,
        curves={metric: {summary: curve(metric) for summary in SUMMARIES} for metric in metrics},
        bound=Bound(float(elbo.mean()), elbo.tolist(), mse.tolist(), kl.tolist()),
        scalars={"fvd": 300 + seed, "diversity_mse": 0.0123 if n_samples > 1 else float("nan")},
        protocol={"command": f"svg-fast evaluate {name}", "n_samples": n_samples, "n_clips": 256, "seed": 3},
    )


def models() -> list[Evaluation]:
    return [evaluation("SVG-LP", 0), evaluation("SVG-FP", 1), evaluation("baseline", 2, n_samples=1)]


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_lines_bands_and_horizon_are_where_they_belong() -> None:
    three = models()
    figure = draw_curves(three, ["ssim", "psnr"])
    for axis, metric in zip(figure.axes, ("ssim", "psnr"), strict=True):
        *lines, bar = axis.lines
        for each, line, band in zip(three, lines, axis.collections, strict=True):
            best = each.curves[metric]["best"]
            np.testing.assert_array_equal(line.get_xdata(), range(N_PAST + 1, N_PAST + N_FUTURE + 1))
            np.testing.assert_array_equal(line.get_ydata(), best.mean)
            corners = {(int(x), round(y, 9)) for x, y in band.get_paths()[0].vertices}
            for t, (mean, half) in enumerate(zip(best.mean, best.interval, strict=True), N_PAST + 1):
                assert {(t, round(mean - half, 9)), (t, round(mean + half, 9))} <= corners
        assert list(bar.get_xdata()) == [HORIZON, HORIZON]
        assert [text.get_text() for text in axis.texts] == [f"training horizon: {HORIZON} frames"]
        assert axis.get_xlim()[0] > N_PAST
    assert [axis.get_ylabel() for axis in figure.axes] == ["SSIM", "PSNR (dB)"]
    assert legend(figure) == ["SVG-LP, best of 100", "SVG-FP, best of 100", "baseline"]


def test_files(tmp_path: Path) -> None:
    three = models()
    curve_figure(three, tmp_path / "curves.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.csv", "curves.png"]
    with (tmp_path / "curves.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * N_FUTURE
    for row in rows:
        each = next(each for each in three if each.name == row["model"])
        curve, t = each.curves[row["metric"]]["best"], int(row["frame"]) - N_PAST - 1
        assert row["summary"] == "best"
        assert float(row["mean"]) == pytest.approx(curve.mean[t], rel=1e-8)
        assert float(row["interval95"]) == pytest.approx(curve.interval[t], rel=1e-8)
    pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).reshape(-1, 3)
    for k in range(3):
        assert (np.abs(pixels - rgb(k)).max(axis=1) < 3).sum() > 500


def test_spread_adds_the_mean_and_the_worst(tmp_path: Path) -> None:
    one = [evaluation("SVG-LP")]
    lines = draw_curves(one, ["ssim"], spread=True).axes[0].lines
    drawn = [list(line.get_ydata()) for line in lines[:-1]]
    assert all(one[0].curves["ssim"][summary].mean in drawn for summary in SUMMARIES)
    assert len(drawn) == 3
    curve_figure(one, tmp_path / "curves.png", ["ssim"], spread=True)
    with (tmp_path / "curves.csv").open(newline="") as file:
        assert {row["summary"] for row in csv.DictReader(file)} == set(SUMMARIES)


def test_a_horizon_out_of_sight_is_not_drawn() -> None:
    figure = draw_curves([replace(evaluation("a"), horizon=40)], ["ssim"])
    assert len(figure.axes[0].lines) == 1
    assert figure.axes[0].get_xlim()[1] < 40


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    names = [r"$\frac$", "_hidden", 'a,"b"\nc']
    several = [evaluation(name, k, n_samples=1) for k, name in enumerate(names)]
    assert legend(draw_curves(several, ["ssim"])) == names
    curve_figure(several, tmp_path / "curves.png")
    with (tmp_path / "curves.csv").open(newline="") as file:
        assert {row["model"] for row in csv.DictReader(file)} == set(names)
    (long,) = legend(draw_curves([evaluation("x" * 500)], ["ssim"]))
    assert long.endswith("…, best of 100")
    assert len(long) < 60


def test_bound() -> None:
    three = models()
    three[1] = replace(three[1], bound=None)
    for term, steps in (("elbo", "elbo_per_step"), ("kl", "kl_per_step")):
        figure = draw_bound(three, term)
        *lines, _ = figure.axes[0].lines
        assert [list(line.get_ydata()) for line in lines] == [getattr(three[k].bound, steps) for k in (0, 2)]
        assert list(lines[0].get_xdata()) == list(range(2, N_PAST + N_FUTURE + 1))
        assert lines[1].get_color() == colour(2)
        assert legend(figure) == ["SVG-LP", "baseline"]


def rgb(k: int) -> np.ndarray[Any, Any]:
    return np.array([int(colour(k)[i : i + 2], 16) for i in (1, 3, 5)])


def test_colours_differ_for_every_colour_vision() -> None:
    """As protanopes and deuteranopes see them (Machado et al. 2009, severity 1), and in grey on white."""
    seen = {
        "normal": np.eye(3),
        "protanopia": np.array(
            [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
        ),
        "deuteranopia": np.array(
            [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
        ),
    }
    linear = (np.array([rgb(k) for k in range(4)]) / 255) ** 2.2
    for matrix in seen.values():
        lab = rgb2lab(np.clip(linear @ matrix.T, 0, 1) ** (1 / 2.2))
        assert min(deltaE_ciede2000(lab[i], lab[j]) for i in range(4) for j in range(i)) > 12
        assert lab[:, 0].max() < 75


@pytest.mark.parametrize(
    ("evaluations", "metrics", "message"),
    [
        ([], None, "at least one evaluation is needed, got none"),
        ([evaluation("a"), replace(evaluation("b"), n_past=2)], None, r"as many frames, got n_past \[2, 5\]"),
        (
            [evaluation("a", metrics=("ssim",)), evaluation("b", metrics=("psnr",))],
            None,
            "must share a metric, got a: ssim; b: psnr",
        ),
        ([replace(evaluation("a"), curves={})], None, "must share a metric, got a: none"),
        ([evaluation("a")], ["lpips", "ssim"], "must all have lpips, got a: psnr, ssim"),
        (
            [evaluation("a", metrics=("ssim",)), evaluation("b")],
            ["psnr"],
            "must all have psnr, got a: ssim; b: psnr, ssim",
        ),
    ],
)
def test_models_that_do_not_compare(
    evaluations: list[Evaluation], metrics: list[str] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        curve_figure(evaluations, tmp_path / "curves.png", metrics)
    assert not list(tmp_path.iterdir())


def test_panels_are_what_all_models_have(tmp_path: Path) -> None:
    def panels(*metrics: tuple[str, ...]) -> set[str]:
        curve_figure([evaluation(str(k), k, metrics=m) for k, m in enumerate(metrics)], tmp_path / "curves.png")
        with (tmp_path / "curves.csv").open(newline="") as file:
            return {row["metric"] for row in csv.DictReader(file)}

    assert panels(("ssim", "ssim_finn"), ("psnr", "ssim", "ssim_finn")) == {"ssim"}
    assert panels(("lpips", "ssim_finn"), ("ssim_finn", "lpips")) == {"lpips", "ssim_finn"}
    with pytest.raises(ValueError, match=r"path must end in \.png, got 'curves\.pdf'"):
        curve_figure(models(), tmp_path / "curves.pdf")
