"""A picture of what a run of the benchmarks found."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from ..benchmarks import Results, Row
from ..files import replacing
from .figures import new_figure, png_path

# Heights in bars; a bar is so many inches high.
_BAR, _BETWEEN_CASES, _GROUP_TITLE, _INCHES = 1.0, 0.6, 1.7, 0.17
_TICKS = (0.25, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)


def benchmark_figure(results: Results, path: str | Path) -> None:
    """How many times as fast ours is as each peer, one bar for each, to the PNG `path`.

    Grouped by op, peers by colour. A black mark beside a bar is where the floor lies: what one would see if ours
    worked at the roof's rate; the column on the right says how much of it is reached.

    Raises ValueError where path does not end in .png or no case has a peer, ImportError without matplotlib.
    """
    path = png_path(path)
    rows = sorted((row for row in results.rows.values() if row.times_as_fast), key=_group_order(results))
    if not rows:
        raise ValueError(f"{results.path} has no case with a peer: there is no ratio to draw")
    height = sum(len(row.times_as_fast) * _BAR + _BETWEEN_CASES for row in rows)
    height += len({row.group for row in rows}) * _GROUP_TITLE
    figure = new_figure(figsize=(10, height * _INCHES + 2.2))
    axis = figure.subplots()
    axis.set_ylim(height, 0)
    colours = _colours(rows)
    _draw_bars(axis, rows, colours)
    _dress_axis(axis, [ratio for row in rows for ratio in row.times_as_fast.values()])
    handles = [axis.barh(0, 0, color=colour, label=peer) for peer, colour in colours.items()]
    figure.legend(handles=handles, fontsize=8, loc="outside lower center", ncols=5)
    figure.suptitle("Times as fast as what one would use instead", fontsize=13)
    axis.set_title(_setting(results, rows), fontsize=8, color="0.35")
    with replacing(path) as part:
        figure.savefig(part, dpi=120)


def _group_order(results: Results) -> Any:
    groups = list(dict.fromkeys(row.group for row in results.rows.values()))
    return lambda row: groups.index(row.group)


def _draw_bars(axis: Any, rows: list[Row], colours: Mapping[str, str]) -> None:
    across = axis.get_yaxis_transform()  # x in the axis' width, y in bars
    y = 0.0
    for group, members in groupby(rows, key=lambda row: row.group):
        axis.text(-0.01, y + _GROUP_TITLE / 2, group, transform=across, ha="right", va="center", weight="bold")
        y += _GROUP_TITLE
        for row in members:
            middle = y + len(row.times_as_fast) * _BAR / 2
            axis.text(-0.01, middle, _case(row), transform=across, ha="right", va="center", fontsize=8)
            axis.text(1.01, middle, _share(row.facts), transform=across, va="center", fontsize=7, color="0.35")
            for peer, ratio in row.times_as_fast.items():
                _draw_bar(axis, y, ratio, colours[peer], row.facts.get("percent_of_floor"))
                y += _BAR
            y += _BETWEEN_CASES


def _draw_bar(axis: Any, y: float, ratio: float, colour: str, percent_of_floor: float | None) -> None:
    axis.barh(y + _BAR / 2, ratio - 1, left=1, height=0.86 * _BAR, color=colour)
    axis.annotate(
        f"{ratio:.2g}" if ratio < 10 else f"{ratio:.0f}",
        (max(ratio, 1), y + _BAR / 2),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
    )
    if percent_of_floor is not None:
        floor = ratio * 100 / percent_of_floor
        axis.plot([floor, floor], [y, y + _BAR], color="black", linewidth=1.5)


def _colours(rows: list[Row]) -> Mapping[str, str]:
    peers = dict.fromkeys(peer for row in rows for peer in row.times_as_fast)
    return {peer: f"C{k}" for k, peer in enumerate(peers)}


def _case(row: Row) -> str:
    """The label, and what serves where that is not a kernel."""
    served = set(row.facts["served_by"].values())
    if "reference" not in served:
        return row.label
    return f"{row.label} ({'part ' if 'kernel' in served else ''}reference)"


def _share(facts: Mapping[str, Any]) -> str:
    for name, words in (("percent_of_floor", ""), ("effective_percent", ", effectively")):
        if name in facts:
            percent = f"{facts[name]:.0f}" if facts[name] >= 1 else "< 1"
            return f"{percent} % of {facts['roof']}{words}"
    return ""


def _dress_axis(axis: Any, ratios: list[float]) -> None:
    low, high = min(1.0, *ratios) / 1.15, max(1.0, *ratios) * 1.5
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    axis.set_xticks([tick for tick in _TICKS if low <= tick <= high], minor=False)
    axis.set_xticks([], minor=True)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axis.axvline(1, color="0.3", linewidth=0.8)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)
    axis.set_yticks([])
    axis.spines[["left", "right", "top"]].set_visible(False)
    axis.set_xlabel("times as fast (black mark: the floor, where a roof of the same run would put the bar's end)")


def _setting(results: Results, rows: list[Row]) -> str:
    threads = " or ".join(str(n) for n in sorted({row.threads for row in rows}))
    sets = ", ".join(sorted({row.instruction_set for row in rows}))
    return f"{results.machine}\nthreads: {threads}; instruction set of the kernels: {sets}"
