"""Evaluations come back from their files as they went in; foreign, damaged and hostile files are refused."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from svg_fast.evaluation.results import Bound, Curve, Evaluation, load_json, save_csv, save_json

CURVES = {
    "ssim": {"best": Curve([0.9, 0.8, 0.7], [0.01, 0.02, 0.03], 0.015), "mean": Curve([0.6] * 3, [0.1] * 3)},
    "psnr": {"best": Curve([20.0, 19.5, 1 / 3], [0.5, 0.25, 0.125])},
}
WHOLE = Evaluation(
    name="SVG-LP, „größer“",
    n_past=2,
    horizon=4,
    curves=CURVES,
    bound=Bound(-580.25, [-500.0, -600.5], [0.01, 0.02], [3.0, 4.0]),
    scalars={"fvd": 312.5, "diversity_mse": 0.01},
    protocol={"n_samples": 100, "statistics": "batch", "sizes": [1, 2], "seed": None, "exact": True},
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "lp.json"
    for evaluation in (WHOLE, replace(WHOLE, bound=None, scalars={}, protocol={}), replace(WHOLE, curves={})):
        save_json(evaluation, path)
        assert load_json(path) == evaluation
    assert (WHOLE.n_future, replace(WHOLE, curves={}).n_future) == (3, 0)


def test_what_is_not_a_number_is_null_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lp.json"
    curve = Curve([math.inf, 0.5, math.nan], [math.nan] * 3, math.nan)
    save_json(replace(WHOLE, curves={"psnr": {"best": curve}}, scalars={"fvd": math.nan}), path)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    loaded = load_json(path)
    np.testing.assert_equal(loaded.curves["psnr"]["best"].mean, [math.nan, 0.5, math.nan])
    assert math.isnan(loaded.scalars["fvd"])


def test_csv(tmp_path: Path) -> None:
    save_csv(WHOLE, tmp_path / "lp.csv")
    with (tmp_path / "lp.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9
    assert {row["frame"] for row in rows} == {"3", "4", "5"}
    last = rows[-1]
    assert (last["metric"], last["summary"], float(last["interval95"])) == ("psnr", "best", 0.125)
    assert float(last["mean"]) == pytest.approx(1 / 3, rel=1e-8)


def test_the_interval_of_an_average_without_its_own_is_never_too_narrow() -> None:
    scores = np.random.default_rng(0).normal(size=(50, 1)) + np.random.default_rng(1).normal(size=(50, 8))
    half = 1.96 / math.sqrt(50) * scores.std(axis=0, ddof=1)
    exact = 1.96 / math.sqrt(50) * scores.mean(axis=1).std(ddof=1)
    mean, upper = Curve(scores.mean(axis=0).tolist(), half.tolist()).average
    assert mean == pytest.approx(scores.mean())
    assert exact < upper < 2 * exact
    assert Curve([1.0, 2.0], [0.1, 0.1], 0.05).average == (1.5, 0.05)


def damage(**change: Any) -> str:
    """What `save_json` writes, with some of its entries changed."""
    curve = {"mean": [1.0], "interval": [0.1]}
    whole = {"format": "svg_fast.evaluation", "version": 1, "name": "a", "n_past": 2, "horizon": 4, "bound": None}
    return json.dumps(whole | {"curves": {"ssim": {"best": curve}}, "scalars": {}, "protocol": {}} | change)


def test_the_undamaged_one_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(damage())
    assert load_json(tmp_path / "a.json").curves == {"ssim": {"best": Curve([1.0], [0.1])}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '"text"',
        "{}",
        "[" * 100_000,
        '{"format": "svg_fast.evaluation"}',
        damage(format="other"),
        damage(version=2),
        damage(version=None),
        damage(n_past=0),
        damage(n_past=math.inf),
        damage(horizon="long"),
        damage(curves=[]),
        damage(curves={"ssim": {"median": {"mean": [1.0], "interval": [0.1]}}}),
        damage(curves={"ssim": {"best": {"mean": [1.0, 2.0], "interval": [0.1]}}}),
        damage(curves={"ssim": {"best": {"mean": "12", "interval": "12"}}}),
        damage(curves={"ssim": {"best": {"mean": [], "interval": []}}}),
        damage(curves={m: {"best": {"mean": [0.0] * n, "interval": [0.0] * n}} for n, m in enumerate("ab", 1)}),
        damage(scalars={"fvd": [1]}),
        damage(scalars={"fvd": 10**400}),
        damage(bound={"elbo": 1.0, "elbo_per_step": [1.0], "kl_per_step": [1.0], "mse_per_step": []}),
        damage(protocol=3),
    ],
    ids=lambda text: text[-60:],
)
def test_damaged_files(text: str, tmp_path: Path) -> None:
    path = tmp_path / "damaged.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"damaged\.json is not an evaluation of svg_fast up to version 1"):
        load_json(path)


def test_binary_endless_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match="is not an evaluation"):
        load_json(tmp_path / "binary.json")
    with pytest.raises(ValueError, match="more than 16777216 bytes"):
        load_json(Path("/dev/zero"))
    with pytest.raises(FileNotFoundError):
        load_json(tmp_path / "missing.json")
