"""The paper's curves: a metric for each predicted frame, of several models in one figure; and the bound's terms."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replacing
from .figures import new_figure, png_path
from .results import Evaluation, label

# Okabe and Ito's, which differ for every kind of colour vision; line styles tell them apart without colours.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINES = ("-", (0, (5, 1.5)), (0, (6, 1.5, 1.5, 1.5)), (0, (1.5, 1.5)))
_FAINT = {"mean": 0.55, "worst": 0.3}
_LETTERS = 56  # of the legend, below a panel


def curve_figure(
    evaluations: Sequence[Evaluation], path: str | Path, metrics: Sequence[str] | None = None, *, spread: bool = False
) -> None:
    """Best-of-N curves with their 95 % bands, one panel a metric, to the PNG `path`; what it shows beside it as CSV.

    metrics: None is SSIM and PSNR, whichever all models have, or else what they share. spread: faint lines for the
    mean over the samples and the worst of them. A vertical bar marks the training horizon: no model was trained beyond.

    Raises ValueError where path does not end in .png, the models share no metric, or their n_past differ; ImportError
    without matplotlib.
    """
    path = png_path(path)
    metrics = _chosen(evaluations, metrics)
    figure = draw_curves(evaluations, metrics, spread=spread)
    with replacing(path.with_suffix(".csv")) as part, part.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["model", "metric", "summary", "frame", "mean", "interval95"])
        for evaluation in evaluations:
            for metric, summary, frame, mean, half in evaluation.rows():
                if metric in metrics and (spread or summary == "best"):
                    table.writerow([evaluation.name, metric, summary, frame, f"{mean:.9g}", f"{half:.9g}"])
    with replacing(path) as part:
        figure.savefig(part, dpi=200)


def shared_metrics(evaluations: Sequence[Evaluation]) -> list[str]:
    """The metrics that can be drawn for all models together; the errors of `curve_figure`."""
    if not evaluations:
        raise ValueError("at least one evaluation is needed, got none")
    n_past = {evaluation.n_past for evaluation in evaluations}
    if len(n_past) > 1:
        raise ValueError(f"models must be conditioned on as many frames, got n_past {sorted(n_past)}")
    shared = [name for name in evaluations[0].curves if all("best" in e.curves.get(name, ()) for e in evaluations)]
    if not shared:
        raise ValueError(f"models must share a metric, got {_holdings(evaluations)}")
    return shared


def _chosen(evaluations: Sequence[Evaluation], metrics: Sequence[str] | None) -> list[str]:
    shared = shared_metrics(evaluations)
    if not metrics:
        return [name for name in ("ssim", "psnr") if name in shared] or shared
    missing = [name for name in metrics if name not in shared]
    if missing:
        raise ValueError(f"models must all have {', '.join(missing)}, got {_holdings(evaluations)}")
    return list(metrics)


def _holdings(evaluations: Sequence[Evaluation]) -> str:
    return "; ".join(f"{e.name}: {', '.join(e.curves) or 'none'}" for e in evaluations)


def draw_curves(evaluations: Sequence[Evaluation], metrics: Sequence[str], *, spread: bool = False) -> Any:
    """The matplotlib Figure of `curve_figure`, for metrics that all evaluations have."""
    figure = new_figure(figsize=(5.6 * len(metrics), 4.2))
    panels = figure.subplots(1, len(metrics), squeeze=False)[0]
    for axis, metric in zip(panels, metrics, strict=True):
        lines = [_draw_curve(axis, k, e, metric, spread) for k, e in enumerate(evaluations)]
        _dress(axis, label(metric), evaluations)
    samples = [e.protocol.get("n_samples", "N") for e in evaluations]
    names = [_short(e.name) + f", best of {n}" * (n != 1) for e, n in zip(evaluations, samples, strict=True)]
    _add_legend(figure, lines, names)
    return figure


def draw_bound(evaluations: Sequence[Evaluation], term: str) -> Any:
    """A matplotlib Figure of "elbo" or "kl" for each teacher-forced step, in nats, of the evaluations with a bound.

    A step is drawn at the frame that it predicts: the first one at frame 2.
    """
    figure = new_figure(figsize=(5.6, 4.2))
    axis = figure.subplots()
    lines, names = [], []
    for k, evaluation in enumerate(evaluations):
        if evaluation.bound is not None:
            steps = getattr(evaluation.bound, f"{term}_per_step")
            lines += axis.plot(range(2, len(steps) + 2), steps, **_style(k))
            names.append(_short(evaluation.name))
    _dress(axis, f"{term.upper()} (nats per frame)", evaluations)
    _add_legend(figure, lines, names)
    return figure


def _draw_curve(axis: Any, k: int, evaluation: Evaluation, metric: str, spread: bool) -> Any:
    """Draws the k-th model's curves; returns the line that stands for it in the legend."""
    summaries, first = evaluation.curves[metric], evaluation.n_past + 1
    frames = range(first, first + evaluation.n_future)
    for summary, alpha in _FAINT.items() if spread else ():
        if summary in summaries:
            end = summaries[summary].mean[-1]
            axis.plot(frames, summaries[summary].mean, **_style(k) | {"linewidth": 1.0, "alpha": alpha})
            axis.annotate(summary, (frames[-1], end), xytext=(3, -3), textcoords="offset points", fontsize=8)
    mean, half = np.array(summaries["best"].mean), np.array(summaries["best"].interval)
    axis.fill_between(frames, mean - half, mean + half, color=colour(k), alpha=0.2, linewidth=0)
    (line,) = axis.plot(frames, mean, **_style(k))
    return line


def colour(k: int) -> str:
    """Of the k-th model, as #rrggbb."""
    return _COLOURS[k % len(_COLOURS)]


def _style(k: int) -> dict[str, Any]:
    return {"color": colour(k), "linestyle": _LINES[k % len(_LINES)], "linewidth": 1.8}


def _dress(axis: Any, y: str, evaluations: Sequence[Evaluation]) -> None:
    """Labels and grid; a vertical bar at the training horizon, with its words above it, where the axis reaches it."""
    from matplotlib.ticker import MaxNLocator

    low, high = axis.get_xlim()
    for horizon in {e.horizon for e in evaluations if low <= e.horizon <= high}:
        axis.axvline(horizon, color="0.35", linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
        axis.annotate(
            f"training horizon: {horizon} frames",
            (horizon, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color="0.35",
        )
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("frame")
    axis.set_ylabel(y)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _add_legend(figure: Any, lines: list[Any], names: list[str]) -> None:
    """Below the panels; a name is shown as it is, not read as mathematics."""
    columns = len(figure.axes) * (2 if max(map(len, names)) <= _LETTERS // 2 else 1)
    blank = [" "] * len(names)  # a name that begins with "_" would be left out
    legend = figure.legend(lines, blank, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _short(name: str) -> str:
    most = _LETTERS - len(", best of 100")
    return name if len(name) <= most else f"{name[: most - 1]}…"
