"""What an evaluation found: numbers with the protocol they were taken under, as JSON and as CSV.

F predicted frames, S samples of every clip. A score is a number for each predicted frame of each sample; a curve is
what is reported of it for each frame, over the test clips.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files import replacing

FORMAT, VERSION = "svg_fast.evaluation", 1

# Over the samples of a clip: the one with the best mean over its predicted frames, the mean of all, the worst one.
SUMMARIES = ("best", "mean", "worst")

# How figures and reports call a curve's metric or a scalar.
_LABELS = {
    "ssim": "SSIM",
    "ssim_published": "SSIM, published form",
    "ssim_finn": "SSIM, Finn et al.'s form",
    "psnr": "PSNR (dB)",
    "lpips": "LPIPS",
    "fvd": "FVD",
    "diversity_mse": "diversity (MSE between samples)",
    "diversity_lpips": "diversity (LPIPS between samples)",
}
LOWER_IS_BETTER = ("lpips", "fvd")

# A long evaluation has some 100 kB; a file far beyond is something else.
_MAX_BYTES = 16 * 2**20


def label(name: str) -> str:
    """What a reader calls a metric or a scalar."""
    return _LABELS.get(name, name.replace("_", " "))


@dataclass(frozen=True)
class Curve:
    """For each predicted frame (F,): the mean over the test clips, and half the width of its 95 % interval.

    average_interval: the same half for the mean over all frames, which the frames' own do not tell, since a clip's
    frames are alike; None where it was not computed.

    Raises ValueError for no frames, or another number of intervals than of means.
    """

    mean: list[float]
    interval: list[float]
    average_interval: float | None = None

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.interval):
            counts = f"{len(self.mean)} and {len(self.interval)}"
            raise ValueError(f"a curve must have a mean and an interval for each frame, got {counts}")

    @property
    def average(self) -> tuple[float, float]:
        """The mean over the frames, and half the width of its 95 % interval.

        Where that is not known it is the mean of the frames' halves: exact if all frames of a clip rise and fall
        together, else too wide, never too narrow.
        """
        half = self.average_interval
        return _mean(self.mean), _mean(self.interval) if half is None else half


@dataclass(frozen=True)
class Bound:
    """The variational bound of the test clips, teacher-forced, in nats; one entry for each of the T - 1 steps.

    elbo_per_step = -(mse / beta + kl + (D / 2) log(2 pi s2)), with D values in a frame and s2 = beta D / 2; elbo is
    its mean, in nats per frame. mse is the mean squared error of a pixel; kl is zero for the deterministic baseline.

    Raises ValueError for lists of different lengths.
    """

    elbo: float
    elbo_per_step: list[float]
    mse_per_step: list[float]
    kl_per_step: list[float]

    def __post_init__(self) -> None:
        steps = [len(self.elbo_per_step), len(self.mse_per_step), len(self.kl_per_step)]
        if not steps[0] or len(set(steps)) > 1:
            raise ValueError(f"a bound must have elbo, mse and kl for each step, got {steps} of them")


@dataclass(frozen=True)
class Evaluation:
    """One model's results.

    name: what legends call it. n_past: conditioning frames; curves begin at frame n_past + 1, counted from 1.
    horizon: frames of a training clip (n_past + n_future of training): beyond it the model never was trained.
    curves: metric ("psnr", "ssim", "ssim_published", "ssim_finn", "lpips") -> one of SUMMARIES -> curve.
    scalars: figures without a time axis by name ("diversity_mse", "fvd", ...), not a number where undefined.
    protocol: everything needed to repeat the figures, by name, in the order in which a reader wants it; values are
    those of JSON.

    Raises ValueError for an unknown summary, or curves of different lengths.
    """

    name: str
    n_past: int
    horizon: int
    curves: dict[str, dict[str, Curve]]
    bound: Bound | None = None
    scalars: dict[str, float] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("n_past", self.n_past), ("horizon", self.horizon)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for summary in (summary for summaries in self.curves.values() for summary in summaries):
            if summary not in SUMMARIES:
                raise ValueError(f"a curve must be of {', '.join(SUMMARIES)}, got {summary!r}")
        if len(self._lengths()) > 1:
            raise ValueError(f"all curves must have as many frames, got {sorted(self._lengths())}")

    @property
    def n_future(self) -> int:
        """F, predicted frames; 0 without curves."""
        return max(self._lengths(), default=0)

    def _lengths(self) -> set[int]:
        return {len(curve.mean) for summaries in self.curves.values() for curve in summaries.values()}

    def rows(self) -> Iterator[tuple[str, str, int, float, float]]:
        """metric, summary, frame (counted from 1), mean, half the width of its 95 % interval."""
        for metric, summaries in self.curves.items():
            for summary, curve in summaries.items():
                for k, (mean, interval) in enumerate(zip(curve.mean, curve.interval, strict=True)):
                    yield metric, summary, self.n_past + 1 + k, mean, interval


def save_json(evaluation: Evaluation, path: Path) -> None:
    """Write the whole evaluation; numbers that are not finite become null."""
    content = {"format": FORMAT, "version": VERSION, **_finite(asdict(evaluation))}
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def save_csv(evaluation: Evaluation, path: Path) -> None:
    """Write the curves, one row for each metric, summary and frame."""
    lines = ["metric,summary,frame,mean,interval95"]
    lines += [f"{metric},{summary},{t},{mean:.9g},{half:.9g}" for metric, summary, t, mean, half in evaluation.rows()]
    with replacing(path) as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")


def load_json(path: Path) -> Evaluation:
    """Read what `save_json` wrote.

    Raises ValueError for a file that is something else or damaged, OSError if it cannot be opened.
    """
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    # whatever a damaged or hostile file makes of Python, it is the file that is wrong
    try:
        if len(data) > _MAX_BYTES:
            raise ValueError(f"more than {_MAX_BYTES} bytes")
        content = json.loads(data)
        if content["format"] != FORMAT or content["version"] > VERSION:
            raise ValueError(f"format {content['format']!r}, version {content['version']!r}")
        return _evaluation(content)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is not an evaluation of svg_fast up to version {VERSION} ({error})") from error


def _evaluation(content: Mapping[str, Any]) -> Evaluation:
    curves = {
        metric: {summary: _curve(curve) for summary, curve in summaries.items()}
        for metric, summaries in content["curves"].items()
    }
    bound = content["bound"]
    return Evaluation(
        name=str(content["name"]),
        n_past=int(content["n_past"]),
        horizon=int(content["horizon"]),
        curves=curves,
        bound=None if bound is None else _bound(bound),
        scalars={name: _number(value) for name, value in content["scalars"].items()},
        protocol=dict(content["protocol"]),
    )


def _curve(content: Mapping[str, Any]) -> Curve:
    half = content.get("average_interval")
    return Curve(_numbers(content["mean"]), _numbers(content["interval"]), None if half is None else float(half))


def _bound(content: Mapping[str, Any]) -> Bound:
    steps = (_numbers(content[f"{name}_per_step"]) for name in ("elbo", "mse", "kl"))
    return Bound(_number(content["elbo"]), *steps)


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, list):
        raise TypeError(f"a list of numbers is wanted, got {type(values).__name__}")
    return [_number(value) for value in values]


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _finite(value: Any) -> Any:
    """The same with None for every number that JSON does not know."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
